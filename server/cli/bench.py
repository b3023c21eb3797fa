"""`revmux bench`: how fast the engine alone is, on a bundle or on random weights of a well-known size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from server.cli.common import (
    BackendOption,
    BaseOption,
    BundleOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    TextColumn,
    load,
    pick_device,
    print_report,
    read,
)

if TYPE_CHECKING:
    from revmux_core.benchmark import Speed

WIDTHS = (2, 4, 8)


def bench(
    bundle: BundleOption = "sst2-minilm",
    width: Annotated[
        list[int] | None, typer.Option(help="Mux widths; repeat the option. Default: all, and early exits.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Texts to time. Default: sentences that come along.")] = None,
    text_column: TextColumn = None,
    base: BaseOption = None,
    shape: Annotated[
        str | None,
        typer.Option(help="In place of a bundle, random weights of this size: bert-base, t5-small, llama3-8b, ..."),
    ] = None,
    length: Annotated[int, typer.Option(help="With --shape: tokens of every text.", min=2, max=512)] = 128,
    prefill: Annotated[
        int | None, typer.Option(help="With --shape: layers before texts share a sequence. Default: half of them.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; every round times every point once.", min=1)] = 5,
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens a batch.", min=1)] = 4096,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    backend: BackendOption = "torch",
    as_json: JsonOption = False,
) -> None:
    """Sequences a second of the engine alone, per width and early exit, beside the ideal."""
    from revmux_core.backends.select import choose_dtype
    from revmux_core.benchmark import SAMPLE_TEXTS
    from revmux_core.shapes import matrix_rate, peak_bytes, random_classifier, random_tokens, shape_of

    if shape is None:
        examples = read(data or SAMPLE_TEXTS, text_column, None, None)
        loaded = load(bundle, base, device, dtype, backend)
        samples = loaded.tokenizer([(example.text, None) for example in examples])
        points = [loaded.point(number) for number in sorted({1, *width})] if width else loaded.classifier.points
        timed = _time(loaded.classifier, samples, points, loaded.tokenizer.pad_id, rounds, batch_tokens)
        print_report({"bundle": loaded.manifest.name} | timed, as_json)
        return
    size, place = shape_of(shape), pick_device(device)
    precision = choose_dtype(dtype, backend, place)
    widths = sorted({*(width or WIDTHS)} - {1})
    first = size.num_layers // 2 if prefill is None else prefill
    classifier = random_classifier(size, widths, first, place, precision, backend)
    # One batch, which holds a composite of every width.
    samples = random_tokens(max(batch_tokens // length, *widths, 1), length)
    timed = _time(classifier, samples, classifier.points, 0, rounds, batch_tokens)
    plain = next(row for row in timed["widths"] if row["width"] == 1)
    rate = matrix_rate(place, precision)
    compared = {
        "matrix_rate": rate,
        "plain_share_of_matrix_rate": plain["sequences_per_second"] * length * size.flops_per_token(length) / rate,
        "peak_bytes": peak_bytes(place),
    }
    print_report({"shape": shape, "weights": "random"} | timed | compared, as_json)


def _time(classifier: Any, samples: Any, points: Any, pad_id: int, rounds: int, batch_tokens: int) -> dict[str, Any]:
    from revmux_core.benchmark import measure_speed
    from revmux_core.card import machine

    with tqdm(total=rounds + 1, desc="bench", unit="round", disable=None) as bar:
        speeds = measure_speed(classifier, samples, points, pad_id, rounds, batch_tokens, lambda: bar.update() and None)
    layers = classifier.backbone.num_layers
    exits = {point.name for point in points if point.kind(layers) == "early exit"}
    return {
        "machine": machine(),
        "backend": classifier.executor.backend,
        "precision": classifier.executor.precision,
        "samples": len(samples),
        "mean_tokens": sum(map(len, samples)) / len(samples),
        "batch_tokens": batch_tokens,
        # Early exits apart: whoever looks up width 1 in the list wants the plain path.
        "widths": [_row(speed) for speed in speeds if speed.point not in exits],
        "early_exits": [_row(speed) for speed in speeds if speed.point in exits],
    }


def _row(speed: Speed) -> dict[str, Any]:
    return speed.to_json() | {"share_of_ideal": speed.speedup / speed.ideal_speedup}
