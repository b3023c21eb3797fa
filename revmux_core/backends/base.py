"""The seam where a way of executing layers plugs in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor, nn

from revmux_core.backends import BackendName
from revmux_core.batch import Words
from revmux_core.multiplexing import Multiplexer
from revmux_core.points import OperatingPoint
from revmux_core.states import States

Laid = TypeVar("Laid", bound=States)
"""States as this executor lays them out."""


@dataclass(frozen=True, slots=True, eq=False)
class Answered(Generic[Laid]):
    """What texts at one point came to: `pooled` `[S, d]`, which the head reads, `logits` `[S, C]`, and the states where
    the point's prefill ends, None on the plain path."""

    pooled: Tensor
    logits: Tensor
    states: Laid | None


class Executor(Protocol[Laid]):
    """Runs layers of a frozen backbone, or a point's own versions of them, multiplexers and demultiplexers.

    Where it `packs`, texts share rows or are not padded, so that unlike lengths in a batch cost next to nothing.
    """

    backend: BackendName
    packs: bool

    @property
    def precision(self) -> str:
        """That of the matrix products: float32, bfloat16 or int8."""
        ...

    @property
    def last_layer(self) -> float:
        """`Backbone.last_layer`, of what is computed here of that layer."""
        ...

    def limit(self, points: Collection[OperatingPoint]) -> None:
        """From now on only `points` are run, so layers need no seams where other points multiplex, stop or are left."""
        ...

    def prepare(self, alone: OperatingPoint) -> None:
        """What makes few texts at a time faster, which begin with the point `alone`, and takes a moment and memory: for
        who serves, before the first."""
        ...

    def positions(self, lengths: Sequence[int]) -> int:
        """How many positions `run` computes for texts of these lengths, padding among them."""
        ...

    def answer(
        self,
        points: Sequence[tuple[OperatingPoint, int]],
        ids: Tensor,
        type_ids: Tensor | None,
        lengths: tuple[int, ...],
    ) -> list[Answered[Laid]] | None:
        """What `points` make of so many of the texts of `embed` each, where none of them takes more than a call or two
        from tokens to logits; else None."""
        ...

    def embed(self, ids: Tensor, mask: Tensor, type_ids: Tensor | None, lengths: tuple[int, ...]) -> Laid:
        """The states of ids `[S, T]`; `mask` `[S, T]` is 1 where a row holds text, as much as `lengths` `[S]` say."""
        ...

    def resume(self, texts: Sequence[Tensor], mask: Tensor) -> Laid:
        """The same of states `[T_s, d]` that samples stand at; `mask` `[S, T]` is theirs in a batch of length T."""
        ...

    def run(self, states: Laid, layers: Sequence[nn.Module], firsts: bool) -> Laid:
        """`layers` in turn. Where `firsts` alone, the first position of each, are read of the outcome, it may be that
        nothing else is in it."""
        ...

    def pool(self, states: Laid, words: Words | None) -> Tensor:
        """What the head reads of each, `[S, d]`, or of each word, `[W, d]`."""
        ...

    def multiplex(self, multiplexer: Multiplexer, states: Laid) -> tuple[Laid, Tensor, Tensor]:
        """Prefilled samples to composites, N neighbours to one, and the `own` and `own_mask` of `Composites`."""
        ...

    def demultiplex(
        self, multiplexer: Multiplexer, states: Laid, own: Tensor, own_mask: Tensor, words: Words | None
    ) -> Tensor:
        """The upper layers' output on the composites to one pooled state per sample, `[B*N, d]`, or word, `[W, d]`."""
        ...
