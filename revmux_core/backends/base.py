"""The seam where a way of executing layers plugs in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor, nn

from revmux_core.backends import BackendName
from revmux_core.batch import Words
from revmux_core.composites import Composites
from revmux_core.multiplexing import Multiplexer
from revmux_core.points import OperatingPoint


class Executor(Protocol):
    """Runs layers of a frozen backbone, or a point's own versions of them, multiplexers and demultiplexers.

    Where it `packs`, several texts share a row, so that unlike lengths in a batch cost next to nothing.
    """

    backend: BackendName
    packs: bool

    @property
    def precision(self) -> str:
        """That of the matrix products: float32, bfloat16 or int8."""
        ...

    def limit(self, points: Collection[OperatingPoint]) -> None:
        """From now on only `points` are run, so layers need no seams where other points multiplex, stop or are left."""
        ...

    def positions(self, lengths: Sequence[int]) -> int:
        """How many positions `run` computes for rows that hold texts of these lengths, padding among them."""
        ...

    def run(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        """`layers` in turn over hidden states `[R, T, d]`; `mask` `[R, T]` is 1 where a row holds text."""
        ...

    def multiplex(self, multiplexer: Multiplexer, hidden: Tensor, mask: Tensor) -> Composites:
        """Prefilled samples `[B*N, T, d]` with masks `[B*N, T]` to composites; N consecutive samples share one."""
        ...

    def demultiplex(
        self, multiplexer: Multiplexer, hidden: Tensor, composites: Composites, words: Words | None
    ) -> Tensor:
        """The upper layers' output on the composites to one pooled state per sample, `[B*N, d]`, or word, `[W, d]`."""
        ...
