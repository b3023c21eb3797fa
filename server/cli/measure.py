"""`revmux eval`, `bench`, `card` and `info`: what a bundle is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from server.cli.common import (
    BaseOption,
    BundleOption,
    DataOption,
    DeviceOption,
    JsonOption,
    LabelColumn,
    PairColumn,
    TextColumn,
    pick_device,
    print_report,
    read,
)


def evaluate(
    bundle: BundleOption,
    data: DataOption,
    width: Annotated[int | None, typer.Option(help="Mux width. Default: the bundle's widest.")] = None,
    draws: Annotated[int, typer.Option(help="Reshuffles of partners.")] = 10,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    base: BaseOption = None,
    seed: Annotated[int, typer.Option(help="Fixes the reshuffles.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Accuracy and agreement with the plain model, over reshuffles of partners. Labels are optional."""
    from revmux_core.bundle import load_bundle
    from revmux_core.data import label_ids
    from revmux_core.evaluation import evaluate as run

    examples = read(data, text_column, pair_column, label_column)
    loaded = load_bundle(bundle, base, pick_device(device))
    samples = loaded.tokenizer([(example.text, example.pair) for example in examples])
    labels = label_ids(examples, loaded.manifest.labels)
    point = loaded.point(width)
    with tqdm(total=draws, desc=f"width {point.width}", unit="draw", disable=None) as bar:
        result = run(
            loaded.classifier,
            point,
            samples,
            labels,
            loaded.tokenizer.pad_id,
            draws,
            seed,
            lambda: bar.update() and None,
        )
    print_report(result.to_json(), as_json)


def bench(
    bundle: BundleOption = "sst2-minilm",
    width: Annotated[list[int] | None, typer.Option(help="Mux widths; repeat the option. Default: all.")] = None,
    data: Annotated[Path | None, typer.Option(help="Texts to time. Default: sentences that come along.")] = None,
    text_column: TextColumn = None,
    base: BaseOption = None,
    rounds: Annotated[int, typer.Option(help="Rounds; every round times every width once.", min=1)] = 5,
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens a batch.", min=1)] = 4096,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Sequences a second of the engine alone, per width, beside the ideal."""
    from revmux_core.benchmark import SAMPLE_TEXTS, measure_speed
    from revmux_core.bundle import load_bundle
    from revmux_core.card import machine

    examples = read(data or SAMPLE_TEXTS, text_column, None, None)
    loaded = load_bundle(bundle, base, pick_device(device))
    samples = loaded.tokenizer([(example.text, None) for example in examples])
    widths = width or [point.width for point in loaded.classifier.points]
    with tqdm(total=rounds + 1, desc="bench", unit="round", disable=None) as bar:
        speeds = measure_speed(loaded, samples, widths, rounds, batch_tokens, lambda: bar.update() and None)
    report = {
        "bundle": loaded.manifest.name,
        "machine": machine(),
        "samples": len(samples),
        "mean_tokens": sum(map(len, samples)) / len(samples),
        "batch_tokens": batch_tokens,
        "widths": [speed.to_json() for speed in speeds],
    }
    print_report(report, as_json)


def card(
    bundle: Annotated[Path, typer.Option("--bundle", help="A bundle folder.")],
    data: DataOption,
    data_name: Annotated[
        str | None, typer.Option(help="What the card calls the data. Default: the file's name.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Reshuffles of partners.")] = 10,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    base: BaseOption = None,
) -> None:
    """Measure every width of a bundle on held-out data and write its model card."""
    examples = read(data, text_column, pair_column, label_column)
    measure(bundle, base, examples, data_name or data.name, draws)
    typer.echo(f"wrote {bundle / 'README.md'}")


def info(bundle: BundleOption = "sst2-minilm", as_json: JsonOption = False) -> None:
    """What a bundle holds: labels, operating points, training and measurements."""
    from revmux_core.bundle import read_manifest, resolve_bundle

    manifest = read_manifest(resolve_bundle(bundle))
    print_report(manifest.model_dump(mode="json", exclude={"files"}), as_json)


def measure(folder: Path, base: Path | None, examples: list[Any], data: str, draws: int) -> None:
    from revmux_core.bundle import load_bundle
    from revmux_core.card import measure_and_write
    from revmux_core.data import label_ids

    loaded = load_bundle(folder, base)
    samples = loaded.tokenizer([(example.text, example.pair) for example in examples])
    labels = label_ids(examples, loaded.manifest.labels)
    with tqdm(desc="measuring", unit="step", disable=None) as bar:
        measure_and_write(folder, loaded, samples, labels, data, draws, lambda: bar.update() and None)
