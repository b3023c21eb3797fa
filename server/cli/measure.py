"""`revmux eval`, `card` and `info`: what a bundle is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from revmux_core.cascade import Quality
from revmux_core.errors import RevmuxError
from server.cli.common import (
    BackendOption,
    BaseOption,
    BundleOption,
    DataOption,
    DtypeOption,
    JsonOption,
    LabelColumn,
    PairColumn,
    PlaceOption,
    TextColumn,
    load,
    print_report,
    read,
    reference_answers,
)


def evaluate(
    bundle: BundleOption,
    data: DataOption,
    width: Annotated[int | None, typer.Option(help="Mux width; 1 is the plain path.")] = None,
    point: Annotated[str | None, typer.Option(help="Or an operating point by its name, see `revmux info`.")] = None,
    quality: Annotated[
        Quality, typer.Option(help="fast: as demultiplexed; guaranteed: the calibrated cascade; exact: plain.")
    ] = "fast",
    draws: Annotated[int, typer.Option(help="Reshuffles of partners.")] = 10,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    base: BaseOption = None,
    seed: Annotated[int, typer.Option(help="Fixes the reshuffles.")] = 0,
    device: PlaceOption = "auto",
    dtype: DtypeOption = "auto",
    backend: BackendOption = "torch",
    as_json: JsonOption = False,
) -> None:
    """Accuracy, or what the task has in its place, and agreement with the plain model, over reshuffles of partners.
    Labels are optional."""
    from revmux_core.benchmark import cascade_speedup
    from revmux_core.data import label_targets
    from revmux_core.evaluation import evaluate as run
    from revmux_core.evaluation import evaluate_cascade

    if width is not None and point is not None:
        raise RevmuxError("name one of --width and --point")
    if point is not None and quality != "fast":
        raise RevmuxError("--point goes with the quality fast; name a --width, or leave both out")
    examples = read(data, text_column, pair_column, label_column)
    loaded = load(bundle, base, device, dtype, backend)
    samples = loaded.tokenizer([(example.text, example.pair) for example in examples])
    targets = label_targets(examples, loaded.classifier.backbone.problem, samples)
    reference = reference_answers(loaded, bundle, base, device, samples)
    if quality == "guaranteed":
        cascade = loaded.cascade(width)
        with tqdm(total=draws, desc="cascade", unit="draw", disable=None) as bar:
            certified = evaluate_cascade(
                loaded.classifier,
                cascade,
                samples,
                targets,
                loaded.tokenizer.pad_id,
                draws,
                seed,
                lambda: bar.update() and None,
                reference,
            )
        speedup = cascade_speedup(loaded, samples, cascade)
        print_report({"quality": quality} | certified.to_json() | {"speedup": speedup}, as_json)
        return
    chosen = loaded.point(1 if quality == "exact" else point or width)
    with tqdm(total=draws, desc=chosen.name, unit="draw", disable=None) as bar:
        result = run(
            loaded.classifier,
            chosen,
            samples,
            targets,
            loaded.tokenizer.pad_id,
            draws,
            seed,
            lambda: bar.update() and None,
            reference,
        )
    print_report(result.to_json(), as_json)


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
    """Measure every point of a bundle on held-out data and write its model card."""
    examples = read(data, text_column, pair_column, label_column)
    measure(bundle, base, examples, data_name or data.name, draws)
    typer.echo(f"wrote {bundle / 'README.md'}")


def info(bundle: BundleOption = "sst2-minilm", as_json: JsonOption = False) -> None:
    """What a bundle holds: labels, operating points, training and measurements."""
    from revmux_core.manifest import read_manifest, resolve_bundle

    manifest = read_manifest(resolve_bundle(bundle))
    report = manifest.model_dump(mode="json", exclude={"files"})
    report["points"] = [point.name for point in manifest.points]
    print_report(report, as_json)


def measure(folder: Path, base: Path | None, examples: list[Any], data: str, draws: int) -> None:
    from revmux_core.bundle import load_bundle
    from revmux_core.card import measure_and_write
    from revmux_core.data import label_targets

    loaded = load_bundle(folder, base)
    samples = loaded.tokenizer([(example.text, example.pair) for example in examples])
    targets = label_targets(examples, loaded.classifier.backbone.problem, samples)
    with tqdm(desc="measuring", unit="step", disable=None) as bar:
        measure_and_write(folder, loaded, samples, targets, data, draws, lambda: bar.update() and None)
