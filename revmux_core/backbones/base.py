"""The one seam where a model family plugs in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
    from revmux_core.backbones.encoder import EncoderBackbone

    freeze(model)
    return EncoderBackbone(model)


def freeze(model: nn.Module) -> None:
    model.eval()
    model.requires_grad_(False)
