"""`revmux calibrate`: certify how often a multiplexed answer may differ from the plain model's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from revmux_core.errors import RevmuxError
from server.cli.common import (
    BackendOption,
    BaseOption,
    DataOption,
    DtypeOption,
    JsonOption,
    PairColumn,
    PlaceOption,
    TextColumn,
    load,
    print_report,
    read,
    reference_answers,
)


def calibrate(
    bundle: Annotated[Path, typer.Option("--bundle", help="A bundle folder; the result is stored in it.")],
    data: DataOption,
    target: Annotated[float, typer.Option(help="Share of answers that must be the plain model's.")] = 0.99,
    confidence: Annotated[float, typer.Option(help="Statistical confidence in that, for all widths together.")] = 0.95,
    width: Annotated[
        list[int] | None, typer.Option(help="Mux widths; 1 is early exits. Repeat the option. Default: all.")
    ] = None,
    data_name: Annotated[
        str | None, typer.Option(help="What the bundle calls the data. Default: the file's name.")
    ] = None,
    validate: Annotated[
        int, typer.Option(help="Store nothing; count over so many random splits how often the target is broken.")
    ] = 0,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    base: BaseOption = None,
    seed: Annotated[int, typer.Option(help="Fixes splits and partners.")] = 0,
    device: PlaceOption = "auto",
    dtype: DtypeOption = "auto",
    backend: BackendOption = "torch",
    as_json: JsonOption = False,
) -> None:
    """Certify an agreement with the plain model on text without labels, which training must not have seen."""
    from tqdm import tqdm

    from revmux_core.calibration import calibrate as run
    from revmux_core.calibration import validate as run_validation
    from revmux_core.card import write_card
    from revmux_core.manifest import record_calibration

    for name, value in (("target", target), ("confidence", confidence)):
        if not 0 < value < 1:
            raise RevmuxError(f"--{name} must be between 0 and 1, as in 0.99")
    loaded = load(bundle, base, device, dtype, backend)
    samples = loaded.tokenizer([(example.text, example.pair) for example in read(data, text_column, pair_column, None)])
    reference = reference_answers(loaded, bundle, base, device, samples)
    layers = loaded.classifier.backbone.num_layers
    known = sorted({point.width for point in loaded.classifier.points if point.kind(layers) != "plain"})
    widths = sorted(set(width or known))
    with tqdm(desc="calibrate", unit="stage", disable=None) as bar:

        def progress(stage: str) -> None:
            bar.set_postfix_str(stage)
            bar.update()

        if validate:
            report = run_validation(loaded, samples, target, confidence, widths, validate, seed, progress, reference)
            print_report(report.to_json(), as_json)
            return
        found = run(loaded, samples, target, confidence, widths, data_name or data.name, seed, progress, reference)
    learnt = {point.name: score.state_dict() for point, score in found.learnt.items()}
    manifest = record_calibration(bundle, found.calibration, learnt)
    if manifest.measured:
        write_card(bundle, manifest)
    print_report(found.calibration.model_dump(mode="json"), as_json)
