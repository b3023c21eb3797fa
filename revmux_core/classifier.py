"""One frozen backbone, several operating points: runs a planned batch from tokens to logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from revmux_core.backbones import Backbone
from revmux_core.batch import MuxBatch
from revmux_core.multiplexing import Multiplexer
from revmux_core.points import OperatingPoint


@dataclass(slots=True)
class Composites:
    """What the upper layers run on, and what separating the answers needs.

    `hidden` `[B, T, d]` and `mask` `[B, T]` (the union of the members' masks) are the composites; `own` `[B*N, d]` is
    each sample's own pooled prefill state and `own_mask` `[B*N, T]` its own mask.
    """

    hidden: Tensor
    mask: Tensor
    own: Tensor
    own_mask: Tensor


def multiplex(backbone: Backbone, multiplexer: Multiplexer, hidden: Tensor, mask: Tensor) -> Composites:
    """Prefilled samples `[B*N, T, d]` with masks `[B*N, T]` to composites; N consecutive samples share one.

    Padded positions are zeroed first: what an encoder computes there is arbitrary and must not reach a partner.
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    own = backbone.pool(hidden, rows, mask)
    hidden = hidden * mask.unsqueeze(-1).to(hidden.dtype)
    width = multiplexer.width
    composite = multiplexer.multiplex(hidden.unflatten(0, (-1, width)))
    return Composites(composite, mask.unflatten(0, (-1, width)).amax(dim=1), own, mask)


def demultiplex(backbone: Backbone, multiplexer: Multiplexer, hidden: Tensor, composites: Composites) -> Tensor:
    """The upper layers' output on the composites, `[B, T, d]`, to one pooled state per sample, `[B*N, d]`."""
    samples = torch.arange(len(composites.own), device=hidden.device)
    pooled = backbone.pool(hidden, samples // multiplexer.width, composites.own_mask)
    return multiplexer.demultiplex(pooled, samples % multiplexer.width, composites.own)


@dataclass(slots=True)
class _Track:
    """One group on its way through the layers: its rows become composites where its prefill ends."""

    point: OperatingPoint
    hidden: Tensor
    mask: Tensor
    composites: Composites | None = field(default=None)


class MuxClassifier(nn.Module):
    """Prefill, multiplex, upper layers, demultiplex, head: for samples that sit at different points of one batch.

    `multiplexers` maps every multiplexed point to its adapters. Plain inference needs none and is always there.
    """

    def __init__(self, backbone: Backbone, multiplexers: Mapping[OperatingPoint, Multiplexer]) -> None:
        super().__init__()
        self.backbone = backbone
        self.plain = OperatingPoint.plain(backbone.num_layers)
        self.points = (self.plain, *sorted(multiplexers))
        # Registered, so that `.to(device)` moves the frozen weights and the adapters together.
        self.frozen = backbone.model
        self.adapters = nn.ModuleDict({_key(point): module for point, module in multiplexers.items()})
        self.eval()

    def multiplexer(self, point: OperatingPoint) -> Multiplexer:
        return cast(Multiplexer, self.adapters[_key(point)])

    @torch.inference_mode()
    def forward(self, batch: MuxBatch) -> Tensor:
        """Logits `[S, C]` in the order of the samples that the plan was made for."""
        logits = self.backbone.head(self._states(batch))
        answers = torch.empty_like(logits)
        answers[torch.tensor(batch.plan.order, device=logits.device)] = logits
        return answers

    def _states(self, batch: MuxBatch) -> Tensor:
        """The pooled states `[S, d]` that the head reads, in plan order.

        All groups that run a layer run it in one call, so samples of different points share every matrix product.
        """
        backbone = self.backbone
        hidden = backbone.embed(batch.ids, batch.mask, batch.type_ids)
        sizes = [len(group.members) for group in batch.plan.groups]
        tracks = [
            _Track(group.point, rows, mask)
            for group, rows, mask in zip(batch.plan.groups, hidden.split(sizes), batch.mask.split(sizes), strict=True)
        ]
        for lo, hi in _spans([track.point for track in tracks], backbone.num_layers):
            for track in tracks:
                if track.point.prefill == lo and not track.point.is_plain:
                    track.composites = multiplex(backbone, self.multiplexer(track.point), track.hidden, track.mask)
                    track.hidden, track.mask = track.composites.hidden, track.composites.mask
            active = [track for track in tracks if track.point.runs(lo)]
            if not active:
                continue
            hidden = backbone.run(_cat([t.hidden for t in active]), _cat([t.mask for t in active]), lo, hi)
            for track, rows in zip(active, hidden.split([len(t.hidden) for t in active]), strict=True):
                track.hidden = rows
        return _cat([self._pool(track) for track in tracks])

    def _pool(self, track: _Track) -> Tensor:
        if track.composites is None:
            rows = torch.arange(len(track.hidden), device=track.hidden.device)
            return self.backbone.pool(track.hidden, rows, track.mask)
        return demultiplex(self.backbone, self.multiplexer(track.point), track.hidden, track.composites)


def _key(point: OperatingPoint) -> str:
    # A dot is torch's path separator and may not stand in a module's name.
    return point.name.replace(".", "_")


def _cat(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _spans(points: list[OperatingPoint], num_layers: int) -> list[tuple[int, int]]:
    """The longest layer ranges within which no point multiplexes, and none starts or stops running layers."""
    edges = {0, num_layers}
    for point in points:
        edges.update({point.prefill} - {num_layers})
        edges.update(layer for layer in range(1, num_layers) if point.runs(layer) != point.runs(layer - 1))
    return list(pairwise(sorted(edges)))
