"""The `revmux` command: one thin function a sub-command."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from revmux_core.errors import RevmuxError
from server.settings import PREFIX, Settings, read_settings

app = typer.Typer(
    help="Serve, train and measure multiplexed text classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BundleOption = Annotated[str, typer.Option("--bundle", help="A built-in bundle's name, or a bundle folder.")]
BaseOption = Annotated[
    Path | None, typer.Option("--base", help="Folder of the base model; found by itself where this is left out.")
]
DataOption = Annotated[Path, typer.Option("--data", help="TSV, CSV, JSON lines, Parquet or plain text, by suffix.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text.")]
PairColumn = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label, as its name or index.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def _setting(name: str) -> Any:
    """The option of a server setting, worded where the setting is defined."""
    field = Settings.model_fields[name]
    default = False if field.default in (None, ()) else str(field.default)
    return typer.Option(help=field.description, show_default=default, envvar=f"{PREFIX}{name.upper()}")


@app.command()
def serve(
    bundle: Annotated[str | None, _setting("bundle")] = None,
    base: Annotated[Path | None, _setting("base")] = None,
    host: Annotated[str | None, _setting("host")] = None,
    port: Annotated[int | None, _setting("port")] = None,
    width: Annotated[str | None, _setting("width")] = None,
    device: Annotated[str | None, _setting("device")] = None,
    dtype: Annotated[str | None, _setting("dtype")] = None,
    threads: Annotated[int | None, _setting("threads")] = None,
    max_batch_tokens: Annotated[int | None, _setting("max_batch_tokens")] = None,
    max_queue_items: Annotated[int | None, _setting("max_queue_items")] = None,
    max_queue_tokens: Annotated[int | None, _setting("max_queue_tokens")] = None,
    max_items_per_request: Annotated[int | None, _setting("max_items_per_request")] = None,
    max_body_bytes: Annotated[int | None, _setting("max_body_bytes")] = None,
    default_timeout_ms: Annotated[float | None, _setting("default_timeout_ms")] = None,
    drain_timeout: Annotated[float | None, _setting("drain_timeout")] = None,
    api_keys: Annotated[str | None, _setting("api_keys")] = None,
    log_level: Annotated[str | None, _setting("log_level")] = None,
) -> None:
    """Serve a bundle over HTTP until SIGTERM; every option can also be set by its environment variable."""
    flags = {name: value for name, value in locals().items() if value is not None}
    settings = read_settings(**flags)
    from server.run import serve as run

    run(settings)


@app.command()
def train(
    model: Annotated[str, typer.Option(help="A classifier or a bare encoder: hub id or folder.")],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder for the bundle; checkpoints go to a folder beside it.")],
    width: Annotated[list[int], typer.Option(help="Mux widths to train; repeat the option.")] = [2, 4],  # noqa: B006
    prefill: Annotated[int | None, typer.Option(help="Prefill layers. Default: half the layers.")] = None,
    labels: Annotated[str, typer.Option(help="Names of a bare encoder's classes, by index, with commas.")] = "",
    name: Annotated[str | None, typer.Option(help="Name of the bundle. Default: that of the folder.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Held-out data to measure the bundle on.")] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    base: BaseOption = None,
    epochs: Annotated[float, typer.Option(help="Epochs of adapter training.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the adapters.")] = 7e-4,
    batch_size: Annotated[int, typer.Option(help="Samples a step.")] = 64,
    ce: Annotated[float, typer.Option(help="Weight of the cross-entropy on labels.")] = 1.0,
    kl: Annotated[float, typer.Option(help="Weight of the distillation to the frozen model's logits.")] = 1.0,
    infonce: Annotated[float, typer.Option(help="Weight of InfoNCE against the frozen model's states.")] = 0.25,
    task_epochs: Annotated[float, typer.Option(help="Epochs of each stage of tuning a bare encoder on the task.")] = 2,
    task_learning_rate: Annotated[float, typer.Option(help="Peak learning rate of that tuning.")] = 6e-5,
    task_batch_size: Annotated[int, typer.Option(help="Samples a step of that tuning.")] = 32,
    lora_rank: Annotated[int, typer.Option(help="Rank of the task's LoRA updates.")] = 32,
    max_tokens: Annotated[int, typer.Option(help="Longest input; at most the model's own limit.")] = 512,
    seed: Annotated[int, typer.Option(help="Fixes initial values, order, partners and dropout.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Train adapters around a frozen classifier and write a bundle; run again to go on after a kill."""
    from revmux_core.training.loop import Schedule
    from revmux_core.training.losses import LossWeights
    from revmux_core.training.run import Recipe
    from revmux_core.training.run import train as run

    examples = _read(data, text_column, pair_column, label_column)
    held_out = None if eval_data is None else _read(eval_data, text_column, pair_column, label_column)
    recipe = Recipe(
        model=model,
        widths=tuple(width),
        prefill=prefill,
        labels=tuple(filter(None, (label.strip() for label in labels.split(",")))),
        max_tokens=max_tokens,
        losses=LossWeights(ce=ce, kl=kl, infonce=infonce),
        adapters=Schedule(epochs=epochs, learning_rate=learning_rate, batch_size=batch_size),
        task=Schedule(epochs=task_epochs, learning_rate=task_learning_rate, batch_size=task_batch_size),
        lora_rank=lora_rank,
        seed=seed,
        precision=precision,
    )
    provenance = {"command": shlex.join(["revmux", *sys.argv[1:]]), "data": data.name}
    run(recipe, examples, out, name or out.name, base, _device(device), provenance)
    if held_out is not None and eval_data is not None:
        _measure(out, base, held_out, str(eval_data.name), draws=10)
    typer.echo(f"wrote {out}")


@app.command("eval")
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

    examples = _read(data, text_column, pair_column, label_column)
    loaded = load_bundle(bundle, base, _device(device))
    samples = loaded.tokenizer([(example.text, example.pair) for example in examples])
    labels = label_ids(examples, loaded.manifest.labels)
    point = loaded.point(width)
    with tqdm(total=draws, desc=f"width {point.width}", unit="draw", disable=None) as bar:
        result = run(loaded, samples, labels, point.width, draws, seed, lambda: bar.update() and None)
    _print(result.to_json(), as_json)


@app.command()
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

    examples = _read(data or SAMPLE_TEXTS, text_column, None, None)
    loaded = load_bundle(bundle, base, _device(device))
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
    _print(report, as_json)


@app.command()
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
    examples = _read(data, text_column, pair_column, label_column)
    _measure(bundle, base, examples, data_name or data.name, draws)
    typer.echo(f"wrote {bundle / 'README.md'}")


@app.command()
def info(bundle: BundleOption = "sst2-minilm", as_json: JsonOption = False) -> None:
    """What a bundle holds: labels, operating points, training and measurements."""
    from revmux_core.bundle import read_manifest, resolve_bundle

    manifest = read_manifest(resolve_bundle(bundle))
    _print(manifest.model_dump(mode="json", exclude={"files"}), as_json)


def _read(path: Path, text: str | None, pair: str | None, label: str | None) -> list[Any]:
    from revmux_core.data import read_examples

    return read_examples(path, text, pair, label)


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise RevmuxError(f"--device {name} is not a device: use auto, cpu, cuda or cuda:N") from error


def _measure(folder: Path, base: Path | None, examples: list[Any], data: str, draws: int) -> None:
    from revmux_core.bundle import load_bundle
    from revmux_core.card import measure_and_write
    from revmux_core.data import label_ids

    loaded = load_bundle(folder, base)
    samples = loaded.tokenizer([(example.text, example.pair) for example in examples])
    labels = label_ids(examples, loaded.manifest.labels)
    with tqdm(desc="measuring", unit="step", disable=None) as bar:
        measure_and_write(folder, loaded, samples, labels, data, draws, lambda: bar.update() and None)


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report))
        return
    for key, value in report.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(value[0])
            typer.echo("  ".join(f"{column:>20}" for column in columns))
            for row in value:
                typer.echo("  ".join(f"{_short(row[column]):>20}" for column in columns))
        else:
            typer.echo(f"{key:>20}: {_short(value)}")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False).strip('"')


def main() -> None:
    """Runs the command; a foreseeable error is one line on standard error and exit code 2."""
    try:
        app()
    except RevmuxError as error:
        typer.echo(f"revmux: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
