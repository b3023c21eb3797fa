"""`revmux plan` and `experiment`: what to train, and how it compares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from revmux_core.errors import RevmuxError
from server.cli.common import (
    BaseOption,
    DataOption,
    DeviceOption,
    JsonOption,
    PairColumn,
    TextColumn,
    pick_device,
    print_report,
    read,
)


def plan(
    bundle: Annotated[str, typer.Option("--bundle", help="A bundle whose plain model is to be multiplexed.")],
    data: DataOption,
    agreement: Annotated[float | None, typer.Option(help="The fastest point with this agreement.", max=1)] = None,
    speedup: Annotated[float | None, typer.Option(help="Or the most faithful point with this speed-up.")] = None,
    epochs: Annotated[float, typer.Option(help="Length of the training that is planned.")] = 8,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Name the operating point to train for a target, from short pilots on unlabelled text."""
    from revmux_core.bundle import load_bundle
    from revmux_core.pilots import choose, predict

    if (agreement is None) == (speedup is None):
        raise RevmuxError("name one target: --agreement 0.98, or --speedup 1.5")
    loaded = load_bundle(bundle, base, pick_device(device))
    samples = loaded.tokenizer([(example.text, example.pair) for example in read(data, text_column, pair_column, None)])
    pilots, predictions = predict(
        loaded.classifier,
        samples,
        loaded.tokenizer.pad_id,
        epochs,
        pick_device(device),
        say=lambda line: typer.echo(line, err=True),
    )
    chosen = choose(predictions, agreement, speedup)
    rows = [
        {
            "point": prediction.point.name,
            "width": prediction.point.width,
            "prefill": prediction.point.prefill,
            "agreement": round(prediction.agreement, 4),
            "speedup": round(prediction.speedup, 3),
        }
        for prediction in predictions
    ]
    report = {
        "pilots": [
            {"point": pilot.point.name, "samples_seen": pilot.samples_seen, "agreement": round(pilot.agreement, 4)}
            for pilot in pilots
        ],
        "predictions": rows,
        "chosen": rows[predictions.index(chosen)],
        "train": f"revmux train --point {chosen.point.name} --epochs {epochs:g}",
    }
    print_report(report, as_json)


def experiment(
    file: Annotated[Path, typer.Argument(help="YAML file: tasks, and grids of runs.")],
    data: Annotated[Path, typer.Option(help="Folder that the tasks' files are relative to.")],
    out: Annotated[Path, typer.Option(help="Folder for results, checkpoints and the report.")],
    base: BaseOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train and measure a matrix of methods and settings, and write a report; run again to go on after a kill."""
    from revmux_core.experiments.matrix import read_experiment
    from revmux_core.experiments.report import write_report
    from revmux_core.experiments.runner import Runner

    wanted = read_experiment(file)
    results = Runner(wanted, data, out, base, pick_device(device)).run(lambda line: typer.echo(line, err=True))
    typer.echo(f"wrote {write_report(wanted, results, out)}")


def hostile(
    bundle: Annotated[str, typer.Option("--bundle", help="A built-in bundle's name, or a bundle folder.")],
    data: DataOption,
    width: Annotated[int, typer.Option(help="Mux width.", min=2)] = 2,
    victims: Annotated[int, typer.Option(help="Texts whose answers are attacked, from the head of the data.")] = 200,
    partners: Annotated[int, typer.Option(help="Texts to attack with, from the end of the data.")] = 100,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """How many answers some partner can change inside a composite: raw, and past the certified threshold."""
    from tqdm import tqdm

    from revmux_core.bundle import load_bundle
    from revmux_core.hostile import search_partners

    loaded = load_bundle(bundle, base, pick_device(device))
    samples = loaded.tokenizer([(example.text, example.pair) for example in read(data, text_column, pair_column, None)])
    if len(samples) < victims + partners:
        raise RevmuxError(f"the data has {len(samples)} texts, fewer than {victims} victims and {partners} partners")
    calibrated = {cascade.width: cascade for cascade, _ in loaded.cascades()}
    with tqdm(total=partners, desc="partners", unit="partner", disable=None) as bar:
        report = search_partners(
            loaded,
            loaded.point(width),
            samples[:victims],
            samples[-partners:],
            calibrated.get(width),
            lambda: bar.update() and None,
        )
    print_report(report.to_json(), as_json)
