"""The waiting line: samples in the order of their priority, then of their arrival. Pure: no torch, no clock."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from server.admission import Load

Rank = tuple[int, int]
"""Priority (lower first, as in vLLM) and arrival number, both unique to a sample as a pair."""


class Ranked(Protocol):
    @property
    def rank(self) -> Rank: ...

    @property
    def length(self) -> int: ...


Entry = TypeVar("Entry", bound=Ranked)


class WaitingQueue(Generic[Entry]):
    """Entries sorted by rank.

    The entries of one request have consecutive arrival numbers and one priority, so they stand side by side: a
    request joins and leaves as one slice, whatever the length of the queue.
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def load(self) -> Load:
        return Load(len(self._entries), self._tokens)

    def join(self, entries: Sequence[Entry]) -> None:
        """Adds one request's entries, in ascending rank."""
        at = bisect_left(self._entries, entries[0].rank, key=_rank)
        self._entries[at:at] = entries
        self._tokens += sum(entry.length for entry in entries)

    def leave(self, first: Rank, last: Rank) -> None:
        """Removes what still waits of the request whose entries have the ranks `first` to `last`."""
        start = bisect_left(self._entries, first, key=_rank)
        stop = bisect_right(self._entries, last, key=_rank)
        self._tokens -= sum(entry.length for entry in self._entries[start:stop])
        del self._entries[start:stop]

    def head(self, count: int) -> list[Entry]:
        """The first `count` entries, which stay in the queue."""
        return self._entries[:count]

    def take(self, positions: Sequence[int]) -> list[Entry]:
        """Removes and returns the entries at `positions`, in that order."""
        taken = [self._entries[position] for position in positions]
        gone = set(positions)
        depth = max(positions) + 1
        self._entries[:depth] = [self._entries[i] for i in range(depth) if i not in gone]
        self._tokens -= sum(entry.length for entry in taken)
        return taken


def _rank(entry: Ranked) -> Rank:
    return entry.rank
