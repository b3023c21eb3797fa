"""From prefilled samples to composites, and from composites back to one state per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from revmux_core.backbones import Backbone
from revmux_core.batch import Words
from revmux_core.multiplexing import Multiplexer


@dataclass(slots=True)
class Composites:
    """What the upper layers run on, and what separating the answers needs.

    `hidden` and `mask` are what `Multiplexer.multiplex` made; `own` `[B*N, k]` is each sample's own shortcut around
    the composites, `[B*N, T, k]` where words are answered, and `own_mask` `[B*N, T]` its own mask.
    """

    hidden: Tensor
    mask: Tensor
    own: Tensor
    own_mask: Tensor


Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What `Multiplexer.multiplex` does."""


def multiplex(
    backbone: Backbone, multiplexer: Multiplexer, hidden: Tensor, mask: Tensor, mix: Mix | None = None
) -> Composites:
    """Prefilled samples `[B*N, T, d]` with masks `[B*N, T]` to composites; N consecutive samples share one.

    Padded positions are zeroed first: what an encoder computes there is arbitrary and must not reach a partner. `mix`
    stands in for the multiplexer's own `multiplex`, compiled.
    """
    # `shape` and `reshape`, because tracing for a compiled backend takes what `len` and `unflatten` say as constants.
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    pooled = backbone.pool(hidden, rows, mask)
    hidden = hidden * mask.unsqueeze(-1).to(hidden.dtype)
    own = multiplexer.shortcut(hidden, mask, pooled)
    width = multiplexer.width
    composite, union = (mix or multiplexer.multiplex)(
        hidden.reshape(-1, width, *hidden.shape[1:]), mask.reshape(-1, width, mask.shape[1])
    )
    return Composites(composite, union, own, mask)


def demultiplex(
    backbone: Backbone,
    multiplexer: Multiplexer,
    hidden: Tensor,
    own: Tensor,
    own_mask: Tensor,
    words: Words | None = None,
) -> Tensor:
    """The upper layers' output on the composites to one pooled state per sample, `[B*N, d]`, or per word, `[W, d]`:
    a word is demultiplexed as a sample is, from its position of the composite and its own place in the shortcut.

    `own` and `own_mask` are those of `Composites`.
    """
    samples = torch.arange(own.shape[0], device=hidden.device)
    rows = samples if multiplexer.rows_apart else samples // multiplexer.width
    text, appended = hidden.split([hidden.shape[1] - multiplexer.appended, multiplexer.appended], dim=1)
    pooled = backbone.pool(text, rows, own_mask)
    if words is not None:
        samples, rows = words.samples, rows[words.samples]
        pooled, own = words.read(pooled), words.read(own)
    return multiplexer.demultiplex(pooled, samples % multiplexer.width, own, appended[rows])
