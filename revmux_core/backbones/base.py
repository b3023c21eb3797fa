"""The one seam where a model family plugs in."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from revmux_core.errors import RevmuxError
from revmux_core.problems import LabelError, MultiLabel, Problem, ProblemType, Regression, make_problem

THRESHOLDS, TOLERANCE = "label_thresholds", "agreement_tolerance"
"""Where a model's configuration keeps a problem's own settings."""

TOKEN_HEAD = "ForTokenClassification"
"""What the name of a class ends with whose head reads every token."""


class UnsupportedModelError(RevmuxError):
    """The model is of a family that has no view yet."""


class Backbone(Protocol):
    """What multiplexing needs to know of a frozen model.

    Chaining `embed`, `run` over all `layers`, `pool` and `head` is exactly the untouched model. A layer is whatever can
    run between two composites: an encoder-decoder family counts its one decoder step as the last layer, a decoder-only
    family closes over its causal mask and positions in `run`. `lora_targets` names the word embeddings and the linear
    maps inside the layers, `head_modules` the modules after them, by their paths in `model`: what tuning on a task
    trains. `last_layer` is the compute of the last layer for a token, in units of the others: 1 but for an
    encoder-decoder. `packs` says whether it is a `PackingBackbone`. `problem` is what the head answers.
    """

    model: PreTrainedModel
    problem: Problem
    num_layers: int
    hidden_size: int
    max_tokens: int
    last_layer: float
    padding_side: str
    packs: bool
    lora_targets: list[str]
    head_modules: list[str]

    def embed(self, ids: Tensor, mask: Tensor, type_ids: Tensor | None) -> Tensor:
        """Ids `[S, T]` to hidden states `[S, T, d]`."""
        ...

    def layers(self, lo: int, hi: int) -> Sequence[nn.Module]:
        """The frozen layers `lo` to `hi - 1`; `run` takes these, or changed copies of them."""
        ...

    def run(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        """`layers` in turn over hidden states `[R, T, d]`; `mask` `[R, T]` is 1 where a row holds text.

        Where the backbone `packs`, `mask` may be `[R, T, T]`: True where a position (first) reads another (second).
        """
        ...

    def pool(self, hidden: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        """The positions that feed the classifier: `[S, d]`.

        Sample s is read from row `rows[s]` of `hidden` (`[R, T, d]`) with its own mask `mask[s]` (`[T]`), so that
        samples which share a composite are pooled apart. A head that reads words gets all positions: `[S, T, d]`.
        """
        ...

    def head(self, pooled: Tensor) -> Tensor:
        """Pooled states `[S, d]` to logits `[S, C]`, of samples or of words."""
        ...

    def pruned(self, layers: Sequence[int]) -> PreTrainedModel:
        """A copy of `model` that has only these of its layers."""
        ...


class PackingBackbone(Backbone, Protocol):
    """One whose layers know of positions by what embedding and mask tell them only, so that several texts can share a
    row, and which pools a text from its first position, or reads every word from its own."""

    def join_tables(self) -> tuple[Tensor, Tensor]:
        """The embedding's tables as one, `[rows, d]`, in the order in which the model adds what it reads there, and the
        row that each has for 0.

        One call then reads and sums all that a token has. The model's own tables become parts of it, so that none is
        held twice. Made once, whatever asks first, which must not be traced meanwhile.
        """
        ...

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """As `embed`, on a CPU, of tokens wherever they stand: `[..., 3]`, of each its id, its type id (0 where there
        are none) and its position in its text, from 0 on. `[..., d]`."""
        ...

    def run_at(self, hidden: Tensor, at: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
        """What `layer` makes of the positions `at` `[R, K]` of hidden states `[R, T, d]` alone: `[R, K, d]`.

        `mask` `[R, K, T]` is True where one of them (first) reads a position (second).
        """
        ...

    def run_unpadded(self, flat: Tensor, offsets: Tensor, longest: int, layers: Sequence[nn.Module]) -> Tensor:
        """`layers` in turn over texts that stand one after the other without padding, `[P, d]`.

        Text s stands from `offsets[s]` to before `offsets[s + 1]` (`[S + 1]`, int32); none is longer than `longest`.
        Raises `RuntimeError` where PyTorch has no such attention: it has for GPUs, in half precision.
        """
        ...

    def run_firsts(self, flat: Tensor, offsets: Tensor, longest: int, layer: nn.Module) -> Tensor:
        """What `layer` makes of the first position of each such text alone: `[S, d]`."""
        ...


def view(model: PreTrainedModel) -> Backbone:
    """The view that fits `model`, which is put into evaluation mode and frozen.

    Raises `UnsupportedModelError` for a family without a view.
    """
    from revmux_core.backbones import decoder, encoder, t5

    freeze(model)
    family = model.config.model_type
    if family in t5.FAMILIES:
        return t5.T5Backbone(model)
    if family in decoder.FAMILIES:
        return decoder.DecoderBackbone(model)
    if family in encoder.FAMILIES:
        return encoder.EncoderBackbone(model)
    raise UnsupportedModelError(
        f"{type(model).__name__} is not supported: bring a sequence or token classifier of one of "
        f"{', '.join(sorted(encoder.FAMILIES))}, a sequence classifier of one of "
        f"{', '.join(sorted(decoder.FAMILIES))}, or a language model of one of "
        f"{', '.join(sorted((*decoder.FAMILIES, *t5.FAMILIES)))}"
    )


def freeze(model: nn.Module) -> None:
    model.eval()
    model.requires_grad_(False)


def problem_of(config: Any, architecture: str) -> Problem:
    """What a model with a classification head answers, by its configuration, where `set_problem` left what Hugging Face
    has no place for, and the name of its class.

    As in Hugging Face's losses, a head of one number that names no `problem_type` is a regression's. Raises
    `UnsupportedModelError` for a head that fits no type of task here.
    """
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    kind: ProblemType = config.problem_type or ("regression" if len(labels) == 1 else "single_label_classification")
    if architecture.endswith(TOKEN_HEAD):
        kind = "token_classification"
    try:
        return make_problem(kind, labels, getattr(config, THRESHOLDS, None), getattr(config, TOLERANCE, None))
    except LabelError as error:
        raise UnsupportedModelError(f"{architecture} with {len(labels)} labels is not supported: {error}") from None


def set_problem(config: Any, problem: Problem) -> None:
    """Has `problem_of` find `problem` in a model of this configuration."""
    config.id2label = dict(enumerate(problem.labels))
    config.label2id = {name: index for index, name in enumerate(problem.labels)}
    # Token classifiers are told by their class; Hugging Face takes no other name for their problem.
    config.problem_type = None if problem.by_word else problem.type
    if isinstance(problem, MultiLabel):
        setattr(config, THRESHOLDS, list(problem.thresholds))
    if isinstance(problem, Regression):
        setattr(config, TOLERANCE, problem.tolerance)


def linear_maps(model: PreTrainedModel, layers: Iterable[nn.Module]) -> list[str]:
    """The paths in `model` of its word embeddings and of the linear maps inside `layers`."""
    names = {module: name for name, module in model.named_modules()}
    linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    return [names[module] for module in (model.get_input_embeddings(), *linear)]


def prune(model: PreTrainedModel, stack: nn.Module, kept: Sequence[int], changes: Mapping[str, Any]) -> PreTrainedModel:
    """A copy of `model` that has only the layers `kept` of its list `stack`, and `changes` in its configuration."""
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    student = type(model)(config)
    for name, parameter in model.named_parameters(recurse=False):
        student.register_parameter(name, nn.Parameter(torch.empty_like(parameter), requires_grad=False))
    (prefix,) = (name for name, module in model.named_modules() if module is stack)
    renamed = {f"{prefix}.{old}.": f"{prefix}.{new}." for new, old in enumerate(kept)}
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(f"{prefix}."):
            old = next((start for start in renamed if name.startswith(start)), None)
            if old is None:
                continue
            name = renamed[old] + name.removeprefix(old)
        tensors[name] = tensor
    student.load_state_dict(tensors)
    return student
