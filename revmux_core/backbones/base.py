"""The one seam where a model family plugs in."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from revmux_core.errors import RevmuxError


class UnsupportedModelError(RevmuxError):
    """The model is of a family that has no view yet."""


class Backbone(Protocol):
    """What multiplexing needs to know of a frozen model.

    Chaining `embed`, `run` over all `layers`, `pool` and `head` is exactly the untouched model. A layer is whatever can
    run between two composites: an encoder-decoder family counts its one decoder step as the last layer, a decoder-only
    family closes over its causal mask and positions in `run`. `lora_targets` names the word embeddings and the linear
    maps inside the layers, `head_modules` the modules after them, by their paths in `model`: what tuning on a task
    trains. `packs` says whether layers know of positions by what `embed` and the mask tell them only, so that several
    texts can share a row.
    """

    model: PreTrainedModel
    num_layers: int
    hidden_size: int
    max_tokens: int
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
        samples which share a composite are pooled apart.
        """
        ...

    def head(self, pooled: Tensor) -> Tensor:
        """Pooled states `[S, d]` to logits `[S, C]`."""
        ...

    def pruned(self, layers: Sequence[int]) -> PreTrainedModel:
        """A copy of `model` that has only these of its layers."""
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
        f"{type(model).__name__} is not supported: bring a sequence classifier of one of "
        f"{', '.join(sorted((*encoder.FAMILIES, *decoder.FAMILIES)))}, or a language model of one of "
        f"{', '.join(sorted((*decoder.FAMILIES, *t5.FAMILIES)))}"
    )


def freeze(model: nn.Module) -> None:
    model.eval()
    model.requires_grad_(False)


def check_single_label(model: PreTrainedModel) -> None:
    """Raises `UnsupportedModelError` for a head whose task is not single-label classification."""
    config: Any = model.config
    if config.problem_type not in (None, "single_label_classification") or len(config.id2label) < 2:
        raise UnsupportedModelError(
            f"{type(model).__name__} with {len(config.id2label)} labels and problem type {config.problem_type} is "
            "not supported: only single-label classification with at least two labels is"
        )


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
