"""From a Hugging Face model and a data file to a bundle."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from revmux_core.backbones import Backbone, view
from revmux_core.backbones.base import TOKEN_HEAD, problem_of
from revmux_core.backbones.words import prompt_ids
from revmux_core.base_model import BaseModel, find_base, sha256
from revmux_core.bundle import load_model
from revmux_core.classifier import Adapters, MuxClassifier, make_adapters
from revmux_core.data import Example, label_targets
from revmux_core.errors import RevmuxError
from revmux_core.manifest import BaseEntry
from revmux_core.multiplexing import DEFAULT_METHOD, Multiplexer, make_multiplexer, method_at
from revmux_core.offline import BATCH_TOKENS, run_all
from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint
from revmux_core.problems import MultiLabel, Problem, ProblemType, Regression, make_problem
from revmux_core.saving import save_bundle, save_task
from revmux_core.sharding import adapter_bytes, shard
from revmux_core.tokenization import Tokenizer
from revmux_core.training.adapters import train_adapters
from revmux_core.training.cache import compute_states
from revmux_core.training.joining import join_texts
from revmux_core.training.loop import Schedule, default_precision
from revmux_core.training.losses import LossWeights
from revmux_core.training.prompt import train_prompt, verbalize
from revmux_core.training.task import tune
from revmux_core.training.thresholds import choose_thresholds, hold_out

DEFAULT_WIDTHS = (2, 4)

Kind = Literal["classifier", "language model", "bare"]
"""A base model with a classification head, with a language model head, or with none."""

_TOLERANCE = 1 / 20
"""Share of the range of the scores in the data that a score may be off and agree, where nothing else is said."""


class TrainingError(RevmuxError):
    """Training that cannot start as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what training produces, beside the data.

    `widths` are trained at `prefill` layers with every layer above shared, `points` are further operating points by
    name, where one of width 1 is an early exit; without any of them it is `DEFAULT_WIDTHS`, and early exits after a
    third, half and two thirds of the layers. `retrained` are points of a bundle that it is not to keep as they are.
    `prefill` None is half the layers. `join_rounds` adds unlabelled texts, joined from the given ones (`join_texts`),
    to what is distilled. `delta_rank` above 0 gives every point its own low-rank updates of the upper layers. `labels`
    names the classes in the order of their indices; a classifier brings its own, and its `problem_type`, which without
    one is a single label. `tolerance` is how far a score may be from the frozen model's and agree, by default a
    twentieth of the labels' range. `task` and `lora_rank` are used for a bare model. A language model stays frozen: it
    scores a word for every label, of `label_words` or the label itself, behind a soft prompt of `prompt_tokens`
    embeddings (50 as in the paper, 0 for none), trained as `task` says at `prompt_learning_rate` (in units of
    `train_prompt`).
    """

    model: str
    widths: tuple[int, ...]
    points: tuple[str, ...] = ()
    retrained: tuple[str, ...] = ()
    method: str = DEFAULT_METHOD
    prefill: int | None = None
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    tolerance: float | None = None
    max_tokens: int = 512
    join_rounds: int = 0
    delta_rank: int = 0
    losses: LossWeights = field(default_factory=LossWeights)
    adapters: Schedule = field(default_factory=lambda: Schedule(epochs=8, learning_rate=7e-4))
    task: Schedule = field(default_factory=lambda: Schedule(epochs=2, learning_rate=6e-5, batch_size=32))
    lora_rank: int = 32
    label_words: dict[str, str] = field(default_factory=dict)
    prompt_tokens: int = 50
    prompt_learning_rate: float = 0.05
    seed: int = 0
    precision: str = "auto"


def train(
    recipe: Recipe,
    examples: Sequence[Example],
    out: Path,
    name: str,
    base: Path | None = None,
    device: torch.device | None = None,
    provenance: dict[str, Any] | None = None,
    sharded: bool = False,
) -> None:
    """Trains a bundle into the folder `out`; checkpoints and metrics go to `OUT.work` beside it.

    A model that already classifies is frozen as it is; a bare one is first tuned on the labelled examples, and a
    language model gets a soft prompt from them (`Recipe`). The same call after a kill goes on from the last checkpoint,
    and a fixed seed on one machine repeats the run.
    `provenance` (the command, the data's name and licence) is stored as it is. Where it is `sharded` the frozen model
    is spread over all GPUs, of which `device` is the first.

    Raises `TrainingError` for settings that do not fit the model, the data or an earlier run in the same place, and
    what `find_base` and `view` raise.
    """
    if recipe.retrained:
        raise TrainingError(f"{recipe.model} is no bundle, so it has no points to --retrain: name them with --point")
    found = find_base(recipe.model, base)
    kind = _kind(found)
    problem = _problem(found, kind, recipe, examples)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = default_precision(device) if recipe.precision == "auto" else recipe.precision

    torch.manual_seed(recipe.seed)
    base_tokenizer = AutoTokenizer.from_pretrained(found.folder)
    verbalizer = verbalize(base_tokenizer, problem.labels, recipe.label_words) if kind == "language model" else None
    prompt_tokens = 0 if verbalizer is None else recipe.prompt_tokens
    load = partial(load_model, found.folder, found.folder, problem, verbalizer)
    model = load()
    backbone = view(model)
    if not sharded:
        nn.Module.to(model, device)
    max_tokens = min(recipe.max_tokens, backbone.max_tokens)
    if prompt_tokens >= max_tokens:
        raise TrainingError(f"a soft prompt of {prompt_tokens} tokens leaves no room for text in {max_tokens}")
    tokenizer = Tokenizer(base_tokenizer, max_tokens, prompt_ids(model, prompt_tokens), problem.by_word)
    joined = join_texts(examples, recipe.join_rounds, recipe.seed)
    samples = tokenizer([(example.text, example.pair) for example in (*examples, *joined)])
    targets = label_targets(examples, problem, samples)
    points = points_of(recipe, backbone.num_layers)
    if not points and kind != "bare" and not prompt_tokens:
        raise TrainingError("there is nothing to train: name at least one --width of 2 or more, or a --point")
    # Made before tuning, so that a method or width that does not fit is refused at once.
    multiplexers = multiplexers_of(recipe, backbone, points, device)
    if targets is None and kind == "bare":
        raise TrainingError(f"{recipe.model} is a bare model: tuning it needs labelled text (--label-column)")
    if targets is None and prompt_tokens:
        raise TrainingError("a soft prompt needs labelled text (--label-column): or leave it out, --prompt-tokens 0")
    if sharded and (kind == "bare" or recipe.delta_rank):
        raise TrainingError("tuning a bare model and --delta-rank change layers, which a sharded model keeps frozen")
    # Only now, so that settings which were refused leave nothing behind that is in the way of better ones.
    work = begin(out, recipe, examples)
    seconds = {}
    held_out = hold_out(targets, recipe.seed) if isinstance(problem, MultiLabel) and targets is not None else []
    if sharded:
        # Beside an adapter its gradient and AdamW's two moments.
        held = sum(adapter_bytes(multiplexer, torch.float32) for multiplexer in multiplexers.values())
        backbone = shard(backbone, 4 * held)

    task: PeftModel | None = None
    prompt: Tensor | None = None
    if prompt_tokens and targets is not None:
        schedule = replace(recipe.task, learning_rate=recipe.prompt_learning_rate)
        prompt, seconds["task"] = train_prompt(
            backbone, prompt_tokens, samples, targets, schedule, work, tokenizer, recipe.seed, device, precision
        )
    if kind == "bare" and targets is not None:
        tuned_on = targets.copy()
        if held_out:
            tuned_on[held_out] = math.nan
        task, seconds["task"] = tune(
            load,
            samples,
            tuned_on,
            recipe.task,
            recipe.lora_rank,
            work,
            tokenizer,
            recipe.seed,
            device,
            precision,
        )
        # The merged copy is what gets frozen; the adapters apart are what the bundle stores.
        save_task(task, work / "task", recipe.model)
        merged = PeftModel.from_pretrained(load(), str(work / "task"))
        backbone = view(merged.merge_and_unload().to(device))
    if held_out and targets is not None:
        backbone.problem = _with_thresholds(backbone, [samples[i] for i in held_out], targets[held_out], tokenizer)

    adapters: dict[OperatingPoint, Adapters] = {}
    if multiplexers:
        adapters, seconds["adapters"] = fit(
            backbone, multiplexers, samples, targets, recipe, work, tokenizer.pad_id, device, precision
        )
    save_bundle(
        out,
        name=name,
        base=BaseEntry(model_id=recipe.model, sha256=sha256(*found.weights)),
        problem=backbone.problem,
        max_tokens=max_tokens,
        source=found.folder,
        task=task,
        adapters=adapters,
        num_layers=backbone.num_layers,
        training=record(recipe, examples, joined, precision, device, seconds, provenance),
        verbalizer=verbalizer,
        prompt=prompt,
    )


def points_of(recipe: Recipe, num_layers: int) -> list[OperatingPoint]:
    """What the recipe names: all but the plain point, which needs no adapters and is always there. Raises
    `TrainingError` for one that does not fit so many layers."""
    prefill = num_layers // 2 if recipe.prefill is None else recipe.prefill
    named = (*recipe.points, *recipe.retrained)
    unasked = not recipe.widths and not named
    widths = DEFAULT_WIDTHS if unasked else recipe.widths
    points = {OperatingPoint.mux(width, prefill, num_layers) for width in {*widths} - {1}}
    if unasked:
        exits = {round(num_layers * share) for share in (1 / 3, 1 / 2, 2 / 3)} - {0, num_layers}
        points |= {OperatingPoint(1, depth, ()) for depth in exits}
    for name in named:
        point = OperatingPoint.parse(name)
        if point.prefill >= num_layers or any(layer >= num_layers for layer in point.upper):
            raise TrainingError(f"--point {name} does not fit a model of {num_layers} layers")
        if bool(point.upper) != (point.width > 1):
            raise TrainingError(
                f"--point {name}: composites (n2 and wider) need upper layers to run on, an early exit (n1) has none"
            )
        points.add(point)
    return sorted(points)


def multiplexers_of(
    recipe: Recipe, backbone: Backbone, points: Sequence[OperatingPoint], device: torch.device
) -> dict[OperatingPoint, Multiplexer]:
    """Untrained ones of `points`. Raises `TrainingError` for a method that does not fit the model's task."""
    multiplexers = {
        point: make_multiplexer(method_at(point.width, recipe.method), point.width, backbone.hidden_size).to(device)
        for point in points
    }
    if backbone.problem.by_word and any(multiplexer.rows_apart for multiplexer in multiplexers.values()):
        raise TrainingError(f"--method {recipe.method} merges neighbouring tokens: no word could be told from the next")
    return multiplexers


def fit(
    backbone: Backbone,
    multiplexers: Mapping[OperatingPoint, Multiplexer],
    samples: Sequence[Tokens],
    targets: np.ndarray | None,
    recipe: Recipe,
    work: Path,
    pad_id: int,
    device: torch.device,
    precision: str,
) -> tuple[dict[OperatingPoint, Adapters], float]:
    """The adapters around `multiplexers`, trained as the recipe says, and the seconds that training took."""
    adapters = {
        point: make_adapters(backbone, point, multiplexer, recipe.delta_rank)
        for point, multiplexer in multiplexers.items()
    }
    depths = [point.prefill for point in adapters]
    states = compute_states(backbone, samples, depths, work, pad_id, device, precision)
    seconds = train_adapters(
        backbone, adapters, states, targets, recipe.losses, recipe.adapters, work, recipe.seed, device, precision
    )
    return adapters, seconds


def record(
    recipe: Recipe,
    examples: Sequence[Example],
    joined: Sequence[Example],
    precision: str,
    device: torch.device,
    seconds: Mapping[str, float],
    provenance: dict[str, Any] | None,
) -> dict[str, Any]:
    """What a manifest says of a training; `seconds` are those of its stages."""
    return {
        "recipe": asdict(recipe),
        "samples": len(examples),
        "joined_samples": len(joined),
        "precision": precision,
        "device": device.type,
        "seconds": {stage: round(value) for stage, value in seconds.items()},
        **(provenance or {}),
    }


def _with_thresholds(
    backbone: Backbone, samples: Sequence[Tokens], targets: np.ndarray, tokenizer: Tokenizer
) -> Problem:
    """The problem with the thresholds that suit the frozen model, on samples that no tuning saw."""
    plain = MuxClassifier(backbone, {})
    logits, _ = run_all(plain, samples, plain.plain, tokenizer.pad_id, BATCH_TOKENS)
    thresholds = choose_thresholds(backbone.problem.activate(logits.numpy()), targets)
    return make_problem(backbone.problem.type, backbone.problem.labels, thresholds)


def _kind(found: BaseModel) -> Kind:
    architecture = _architecture(found)
    if architecture.endswith(("ForSequenceClassification", TOKEN_HEAD)):
        return "classifier"
    return "language model" if architecture.endswith(("ForCausalLM", "ForConditionalGeneration")) else "bare"


def _architecture(found: BaseModel) -> str:
    return (AutoConfig.from_pretrained(found.folder).architectures or [""])[0]


def _problem(found: BaseModel, kind: Kind, recipe: Recipe, examples: Sequence[Example]) -> Problem:
    """What the model answers: what it brings, or what is asked for."""
    if recipe.label_words and kind != "language model":
        raise TrainingError(f"{recipe.model} is no language model: leave out --label-word")
    if kind == "classifier":
        if recipe.labels:
            raise TrainingError(f"{recipe.model} is a classifier with its own labels: leave out --labels")
        own = problem_of(AutoConfig.from_pretrained(found.folder), _architecture(found))
        if recipe.problem_type not in (None, own.type):
            raise TrainingError(f"{recipe.model} is a classifier of type {own.type}: leave out --problem-type")
        asked, labels = own.type, list(own.labels)
    else:
        asked = recipe.problem_type or "single_label_classification"
        if kind == "language model" and asked != "single_label_classification":
            raise TrainingError(f"{recipe.model} is a language model, which scores one label out of several only")
        labels = list(recipe.labels) or _labels(asked, kind, recipe, examples)
    if asked != "regression" and recipe.tolerance is not None:
        raise TrainingError(f"--tolerance is how far scores may differ, and this is {asked}: leave it out")
    tolerance = recipe.tolerance
    if asked == "regression" and tolerance is None:
        scores = [Regression(("score",), 0).target(e.label, e.text) for e in examples if e.label is not None]
        if not scores:
            raise TrainingError("without labels nothing says how far a score may be off and agree: name a --tolerance")
        tolerance = _TOLERANCE * (max(scores) - min(scores))
    return make_problem(asked, labels, None, tolerance)


def _labels(asked: ProblemType, kind: Kind, recipe: Recipe, examples: Sequence[Example]) -> list[str]:
    """The class names, by index, as the data has them."""
    if asked == "regression":
        return ["score"]
    separator = {"multi_label_classification": ",", "token_classification": None}
    names: set[str] = set()
    for label in (example.label for example in examples if example.label is not None):
        if isinstance(label, tuple):
            names.update(label)
        else:
            parts = label.split(separator[asked]) if asked in separator else [label]
            names.update(filter(None, (part.strip() for part in parts)))
    if len(names) < 2:
        raise TrainingError(f"{recipe.model} is a {kind} without labels of its own: name them, or bring labelled text")
    if all(name.isdigit() for name in names):
        # Numbers are class indices; sorted as text, 10 would come before 2.
        return [str(index) for index in range(max(map(int, names)) + 1)]
    return sorted(names)


def begin(out: Path, recipe: Recipe, examples: Sequence[Example]) -> Path:
    """The folder for checkpoints and metrics of a bundle that is to be `out`. Raises `TrainingError` where it holds
    those of other settings or data."""
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    path = work / "run.json"
    data = hashlib.sha256(repr(examples).encode()).hexdigest()
    run = json.dumps({"recipe": asdict(recipe), "data_sha256": data}, indent=1)
    if path.is_file() and path.read_text() != run:
        raise TrainingError(f"{work} holds a run with other settings or data: remove it, or name another --out")
    path.write_text(run)
    return work
