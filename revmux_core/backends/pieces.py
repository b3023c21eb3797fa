"""Where a classifier's layers are cut for compilation, and what is compiled."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from revmux_core.backbones import Backbone
from revmux_core.backends import BackendName
from revmux_core.classifier import MuxClassifier
from revmux_core.composites import demultiplex, multiplex
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import Multiplexer
from revmux_core.points import OperatingPoint

Piece = tuple[nn.Module, ...]
"""Neighbouring layers between two seams: no point multiplexes, stops or skips layers within."""

LAST_LAYER = 1 / 6
"""`last_layer` where the first position of a text is all that is read of it: the others have keys and values there,
2 of the 12 d^2 operations of a layer's maps, and nothing else. What the first ones add is not counted."""


class Pieces:
    """Cuts layers where any point multiplexes, stops or skips some, so that any plan runs on the same few pieces.

    `frozen` are the frozen layers, all of them in one piece; `points` are those that make seams.
    """

    def __init__(self, classifier: MuxClassifier) -> None:
        backbone = classifier.backbone
        self.frozen = tuple(backbone.layers(0, backbone.num_layers))
        self._depths = {layer: depth for depth, layer in enumerate(self.frozen)}
        self._own: dict[OperatingPoint, Sequence[nn.Module]] = {}
        for point in classifier.points:
            if point == classifier.plain:
                continue
            deltas = classifier.adapters_of(point).deltas
            if deltas is not None:
                self._own[point] = list(deltas.layers)
                self._depths.update(zip(deltas.layers, point.upper, strict=True))
        self.limit(classifier.points)

    def limit(self, points: Collection[OperatingPoint]) -> None:
        """From now on only `points` make seams."""
        self.points = points
        self._seams = {seam for point in points for seam in point.seams(len(self.frozen))}

    def cut(self, layers: Sequence[nn.Module]) -> Iterator[Piece]:
        """`layers`, which begin at a seam, in pieces."""
        piece: list[nn.Module] = []
        for layer in layers:
            if piece and self._depths[layer] in self._seams:
                yield tuple(piece)
                piece = []
            piece.append(layer)
        yield tuple(piece)

    def ends(self, piece: Piece) -> bool:
        """Whether `piece` ends with the model's last layer, or a point's own version of it."""
        return self._depths[piece[-1]] == len(self.frozen) - 1

    def all(self) -> list[Piece]:
        """The pieces of the frozen layers, and of every point's own versions of its upper layers."""
        own = [self._own[point] for point in self.points if point in self._own]
        return [piece for layers in [self.frozen, *own] for piece in self.cut(layers)]


class Layers(nn.Module):
    """Neighbouring layers as one module."""

    def __init__(self, backbone: Backbone, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._backbone = backbone
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states `[R, T, d]` with their mask `[R, T]` to those after the layers."""
        return self._backbone.run(hidden, mask, list(self.layers))


class Adapter(nn.Module):
    """Something that a multiplexer does, as one module."""

    def __init__(self, backbone: Backbone, multiplexer: Multiplexer) -> None:
        super().__init__()
        self._backbone = backbone
        self.multiplexer = multiplexer


class Multiplexing(Adapter):
    """What makes composites of prefilled samples."""

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples `[B*N, T, d]` with their masks `[B*N, T]` to the `hidden`, `mask` and `own` of `Composites`."""
        composites = multiplex(self._backbone, self.multiplexer, hidden, mask)
        return composites.hidden, composites.mask, composites.own


class Demultiplexing(Adapter):
    """What separates the samples of composites: pool, the multiplexer's inverse, up projection."""

    def forward(self, hidden: Tensor, own: Tensor, own_mask: Tensor) -> Tensor:
        """The upper layers' output `[B, T, d]` and the `own` and `own_mask` of `Composites` to `[B*N, d]`."""
        return demultiplex(self._backbone, self.multiplexer, hidden, own, own_mask)


def example_states(rows: int, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Random hidden states `[R, T, d]` and a mask `[R, T]`, every other row of which is half as long."""
    hidden = torch.randn(rows, length, size, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[1::2, length // 2 :] = 0
    return hidden, mask


def check_outputs(
    backend: BackendName, found: Sequence[Tensor], expected: Sequence[Tensor], mask: Tensor | None, tolerance: float
) -> None:
    """Raises `RevmuxError` where one of `found` is further from what PyTorch computed than `tolerance`, a relative
    error. Where the `mask` `[R, T]` of the states is 0 nothing is compared: what is computed there is arbitrary."""
    for own, reference in zip(found, expected, strict=True):
        if own.shape == reference.shape:
            error = (own - reference).float()
            if mask is not None and error.shape[:2] == mask.shape:
                error[mask == 0] = 0
            if error.norm() <= tolerance * reference.float().norm():
                continue
        raise RevmuxError(f"the backend {backend} does not compute what PyTorch computes: use the backend torch")
