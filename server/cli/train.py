"""`revmux train`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from revmux_core.errors import RevmuxError
from revmux_core.problems import ProblemType
from server.cli.common import (
    BaseOption,
    DataOption,
    LabelColumn,
    PairColumn,
    PlaceOption,
    TextColumn,
    pick_place,
    read,
)
from server.cli.measure import measure


def train(
    model: Annotated[
        str,
        typer.Option(
            help="A classifier, a language model or a bare encoder: hub id or folder. Or a bundle, by name or "
            "folder: its model stays as it is, and of the points named here it keeps those it has."
        ),
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder for the bundle; checkpoints go to a folder beside it.")],
    width: Annotated[list[int] | None, typer.Option(help="Mux widths to train; repeat the option.")] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            help="Operating points to train, beside the widths: n1-l3 exits after 3 layers, n2-l3-u3.4 shares layers "
            "3 and 4 between 2 texts that had layers 0 to 2 alone; repeat the option. Without --width and --point: "
            "widths 2 and 4, and exits after a third, half and two thirds of the layers."
        ),
    ] = None,
    retrain: Annotated[
        list[str] | None,
        typer.Option(help="Points that the bundle --model has, to train anew all the same; repeat the option."),
    ] = None,
    method: Annotated[str, typer.Option(help="revmux, or a rival by name: see the docs.")] = "revmux",
    prefill: Annotated[int | None, typer.Option(help="Prefill layers. Default: half the layers.")] = None,
    delta_rank: Annotated[
        int, typer.Option(help="Rank of the updates that upper layers get in multiplexed mode; 0: none.", min=0)
    ] = 0,
    labels: Annotated[
        str, typer.Option(help="Names of the classes of a model without any, by index, with commas.")
    ] = "",
    problem_type: Annotated[
        ProblemType | None,
        typer.Option(help="What a model without a head is tuned to answer. Default: single_label_classification."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Of a regression: how far a score may be from the model's own and agree. Default: 5% of range."
        ),
    ] = None,
    label_word: Annotated[
        list[str] | None,
        typer.Option(
            help="LABEL=WORD: the word that a language model scores for a label, a single token; repeat the option. "
            "Default: the label itself."
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(help="Length of the soft prompt that a language model gets; 0: none.", min=0)
    ] = 50,
    name: Annotated[
        str | None, typer.Option(help="Name of the bundle. Default: that of the folder, or of the bundle before.")
    ] = None,
    data_licence: Annotated[
        str | None, typer.Option(help="Source and licence of the data, for the model card.")
    ] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Held-out data to measure the bundle on.")] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    base: BaseOption = None,
    epochs: Annotated[float, typer.Option(help="Epochs of adapter training.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the adapters.")] = 7e-4,
    batch_size: Annotated[int, typer.Option(help="Samples a step.")] = 64,
    ce: Annotated[float, typer.Option(help="Weight of the loss on labels: cross-entropy, or squared error.")] = 1.0,
    kl: Annotated[float, typer.Option(help="Weight of the distillation to the frozen model's logits.")] = 1.0,
    infonce: Annotated[float, typer.Option(help="Weight of InfoNCE against the frozen model's states.")] = 0.25,
    task_epochs: Annotated[
        float, typer.Option(help="Epochs of tuning a bare encoder, or a soft prompt, on the task.")
    ] = 2,
    task_learning_rate: Annotated[float, typer.Option(help="Peak learning rate of tuning a bare encoder.")] = 6e-5,
    prompt_learning_rate: Annotated[
        float, typer.Option(help="Peak learning rate of a soft prompt, in units of the word embeddings' mean size.")
    ] = 0.05,
    task_batch_size: Annotated[int, typer.Option(help="Samples a step of that tuning.")] = 32,
    lora_rank: Annotated[int, typer.Option(help="Rank of the task's LoRA updates.")] = 32,
    max_tokens: Annotated[int, typer.Option(help="Longest input; at most the model's own limit.")] = 512,
    join_rounds: Annotated[
        int, typer.Option(help="Distil on joined texts too, each text so often: for texts shorter than production's.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Fixes initial values, order, partners and dropout.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    device: PlaceOption = "auto",
) -> None:
    """Train adapters around a frozen classifier and write a bundle; run again to go on after a kill."""
    from revmux_core.manifest import is_bundle
    from revmux_core.training.extension import extend
    from revmux_core.training.loop import Schedule
    from revmux_core.training.losses import LossWeights
    from revmux_core.training.run import Recipe
    from revmux_core.training.run import train as run

    examples = read(data, text_column, pair_column, label_column)
    held_out = None if eval_data is None else read(eval_data, text_column, pair_column, label_column)
    recipe = Recipe(
        model=model,
        widths=tuple(width or ()),
        points=tuple(point or ()),
        retrained=tuple(retrain or ()),
        method=method,
        prefill=prefill,
        delta_rank=delta_rank,
        problem_type=problem_type,
        tolerance=tolerance,
        labels=tuple(filter(None, (label.strip() for label in labels.split(",")))),
        label_words=_label_words(label_word or ()),
        prompt_tokens=prompt_tokens,
        prompt_learning_rate=prompt_learning_rate,
        max_tokens=max_tokens,
        join_rounds=join_rounds,
        losses=LossWeights(ce=ce, kl=kl, infonce=infonce),
        adapters=Schedule(epochs=epochs, learning_rate=learning_rate, batch_size=batch_size),
        task=Schedule(epochs=task_epochs, learning_rate=task_learning_rate, batch_size=task_batch_size),
        lora_rank=lora_rank,
        seed=seed,
        precision=precision,
    )
    provenance = {"command": shlex.join(["revmux", *sys.argv[1:]]), "data": data.name}
    if data_licence is not None:
        provenance["licence"] = data_licence
    place, sharded = pick_place(device)
    if not is_bundle(model):
        run(recipe, examples, out, name or out.name, base, place, provenance, sharded)
    elif sharded:
        raise RevmuxError(f"{model} is a bundle, around whose model nothing is trained with --device sharded")
    else:
        extend(recipe, examples, out, name, base, place, provenance)
    if held_out is not None and eval_data is not None:
        measure(out, base, held_out, str(eval_data.name), draws=10)
    typer.echo(f"wrote {out}")
    if held_out is None:
        typer.echo(f"measure it before you serve it: revmux card --bundle {out} --data HELD_OUT", err=True)


def _label_words(options: Sequence[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    for label, _, word in pairs:
        if not label or not word:
            raise typer.BadParameter("write LABEL=WORD, as in negative=terrible", param_hint="--label-word")
    return {label: word for label, _, word in pairs}
