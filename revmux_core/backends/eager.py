"""PyTorch as it is: the reference that every other backend is held to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from revmux_core.backbones import Backbone
from revmux_core.backends import BackendName
from revmux_core.batch import Words
from revmux_core.composites import Composites, demultiplex, multiplex
from revmux_core.multiplexing import Multiplexer
from revmux_core.points import OperatingPoint


class EagerExecutor:
    """Calls the model's own modules, so that the plain path is the untouched model bit for bit."""

    backend: BackendName = "torch"
    packs = False

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    @property
    def precision(self) -> str:
        return str(self._backbone.model.dtype).removeprefix("torch.")

    def limit(self, points: Collection[OperatingPoint]) -> None:
        pass

    def positions(self, lengths: Sequence[int]) -> int:
        return len(lengths) * max(lengths)

    def run(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        return self._backbone.run(hidden, mask, layers)

    def multiplex(self, multiplexer: Multiplexer, hidden: Tensor, mask: Tensor) -> Composites:
        return multiplex(self._backbone, multiplexer, hidden, mask)

    def demultiplex(
        self, multiplexer: Multiplexer, hidden: Tensor, composites: Composites, words: Words | None
    ) -> Tensor:
        return demultiplex(self._backbone, multiplexer, hidden, composites, words)
