"""`revmux bench`: how fast the engine alone is, on a bundle or on random weights of a well-known size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from server.cli.common import (
    BackendOption,
    BaseOption,
    BundleOption,
    DtypeOption,
    JsonOption,
    PlaceOption,
    TextColumn,
    load,
    pick_place,
    print_report,
    read,
)

if TYPE_CHECKING:
    from revmux_core.benchmark import Load, Speed

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
    length: Annotated[
        list[int] | None,
        typer.Option(help="With --shape: tokens of every text; repeatable. Default: 128.", min=2, max=512),
    ] = None,
    classes: Annotated[
        list[int] | None, typer.Option(help="With --shape: labels to tell apart; repeatable. Default: 2.", min=2)
    ] = None,
    prefill: Annotated[
        int | None, typer.Option(help="With --shape: layers before texts share a sequence. Default: half of them.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; every round times every point once.", min=1)] = 5,
    batch_tokens: Annotated[
        list[int] | None, typer.Option(help="Padded tokens a batch; repeatable. Default: 4096.", min=1)
    ] = None,
    device: PlaceOption = "auto",
    dtype: DtypeOption = "auto",
    backend: BackendOption = "torch",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads for the model; PyTorch decides by default.", min=1)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sequences a second of the engine alone, per width and early exit, beside the ideal, and the memory of a run.

    Of repeated options every combination is timed, all in turn.
    """
    import torch

    from revmux_core.backends.select import choose_dtype
    from revmux_core.benchmark import SAMPLE_TEXTS, Load
    from revmux_core.offline import BATCH_TOKENS
    from revmux_core.shapes import matrix_rate, peak_bytes, random_classifier, random_tokens, shape_of

    if threads is not None:
        torch.set_num_threads(threads)
    batches = batch_tokens or [BATCH_TOKENS]
    if shape is None:
        examples = read(data or SAMPLE_TEXTS, text_column, None, None)
        loaded = load(bundle, base, device, dtype, backend)
        samples = loaded.tokenizer([(example.text, None) for example in examples])
        points = [loaded.point(number) for number in sorted({1, *width})] if width else loaded.classifier.points
        # As a server does: what is not run cuts no layers apart.
        loaded.classifier.executor.limit(points)
        loads = [Load(loaded.classifier, samples, loaded.tokenizer.pad_id, tokens) for tokens in batches]
        report = {"bundle": loaded.manifest.name, "samples": len(samples)}
        print_report(report | _time(loads, points, rounds), as_json)
        return
    size, (place, sharded) = shape_of(shape), pick_place(device)
    precision = choose_dtype(dtype, backend, place)
    widths = sorted({*(width or WIDTHS)} - {1})
    first = size.num_layers // 2 if prefill is None else prefill
    loads = []
    for labels in classes or [2]:
        classifier = random_classifier(size, widths, first, place, precision, backend, labels, sharded)
        for tokens in length or [128]:
            # One batch of the largest kind, which holds a composite of every width.
            samples = random_tokens(max(max(batches) // tokens, *widths, 1), tokens)
            loads += [Load(classifier, samples, 0, budget) for budget in batches]
    timed = _time(loads, loads[0].classifier.points, rounds)
    rate = matrix_rate(place, precision)
    plain_operations = [
        row["sequences_per_second"] * row["mean_tokens"] * size.flops_per_token(row["mean_tokens"])
        for row in timed["widths"]
        if row["width"] == 1
    ]
    compared = {
        "matrix_rate": rate,
        # The best of them, where there are several.
        "plain_share_of_matrix_rate": max(plain_operations) / rate,
        "peak_bytes": peak_bytes(place),
    }
    print_report({"shape": shape, "weights": "random"} | timed | compared, as_json)


def _time(loads: list[Load], points: Any, rounds: int) -> dict[str, Any]:
    from revmux_core.benchmark import measure_speed
    from revmux_core.card import machine
    from revmux_core.memory import working_bytes

    with tqdm(total=rounds + 1, desc="bench", unit="round", disable=None) as bar:
        speeds = measure_speed(loads, points, rounds, lambda: bar.update() and None)
    classifier = loads[0].classifier
    by_name = {point.name: point for point in classifier.points}
    device = next(classifier.parameters()).device
    rows = [
        {
            "classes": load.classifier.frozen.config.num_labels,
            "mean_tokens": sum(map(len, load.samples)) / len(load.samples),
            "batch_tokens": load.batch_tokens,
            **_row(speed),
            "working_bytes": working_bytes(partial(load.run, by_name[speed.point]), device),
        }
        for load, own in zip(loads, speeds, strict=True)
        for speed in own
    ]
    layers = classifier.backbone.num_layers
    exits = {point.name for point in points if point.kind(layers) == "early exit"}
    return {
        "machine": machine(),
        "backend": classifier.executor.backend,
        "precision": classifier.executor.precision,
        # Early exits apart: whoever looks up width 1 in the list wants the plain path.
        "widths": [row for row in rows if row["point"] not in exits],
        "early_exits": [row for row in rows if row["point"] in exits],
    }


def _row(speed: Speed) -> dict[str, Any]:
    return speed.to_json() | {"share_of_ideal": speed.speedup / speed.ideal_speedup}
