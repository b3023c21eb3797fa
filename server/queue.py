"""The waiting lines: a tenant's samples by priority, then arrival, and tenants by turns. Pure: no torch, no clock."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
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
        self.tokens = 0
        """Of all entries."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def load(self) -> Load:
        return Load(len(self._entries), self.tokens)

    def tokens_before(self, priority: int) -> int:
        """Tokens of the entries behind which one of this priority would stand, if it joined now."""
        if not self._entries or self._entries[-1].rank[0] <= priority:
            return self.tokens
        stop = bisect_left(self._entries, (priority + 1, 0), key=_rank)
        return _tokens(self._entries[:stop])

    def join(self, entries: Sequence[Entry]) -> None:
        """Adds one request's entries, in ascending rank."""
        if not self._entries or self._entries[-1].rank < entries[0].rank:
            self._entries += entries
        else:
            at = bisect_left(self._entries, entries[0].rank, key=_rank)
            self._entries[at:at] = entries
        self.tokens += _tokens(entries)

    def leave(self, first: Rank, last: Rank) -> None:
        """Removes what still waits of the request whose entries have the ranks `first` to `last`."""
        start = bisect_left(self._entries, first, key=_rank)
        stop = bisect_right(self._entries, last, key=_rank)
        self.tokens -= _tokens(self._entries[start:stop])
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
        self.tokens -= _tokens(taken)
        return taken


class FairQueue(Generic[Entry]):
    """A line for every tenant, merged so that each gets the same share of the device's tokens.

    Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): every tenant has a clock of the tokens that were
    taken for it, and the next sample is always from the line whose clock is behind. A tenant that comes back after a
    pause starts at the clock of those that wait, so it has nothing saved up.
    """

    def __init__(self) -> None:
        self._lines: dict[str, WaitingQueue[Entry]] = {}
        self._clocks: dict[str, int] = {}
        self._now = 0

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def load(self) -> Load:
        if len(self._lines) == 1:
            (line,) = self._lines.values()
            return line.load
        items = tokens = 0
        for line in self._lines.values():
            items += len(line)
            tokens += line.tokens
        return Load(items, tokens)

    def load_of(self, tenant: str) -> Load:
        line = self._lines.get(tenant)
        return Load(0, 0) if line is None else line.load

    def tokens_before(self, tenant: str, priority: int, new: int) -> int:
        """Tokens that are due before the last of `new` ones of this tenant and priority, should they join now.

        Those ahead in the tenant's own line, and of every other line what is due until its clock has caught up. What
        joins later may still come before, by its priority.
        """
        own = self._lines[tenant].tokens_before(priority) if tenant in self._lines else 0
        clock = self._clocks[tenant] if tenant in self._lines else max(self._clocks.get(tenant, 0), self._now)
        before = own
        for name, line in self._lines.items():
            if name != tenant:
                before += min(line.tokens, max(clock + own + new - self._clocks[name], 0))
        return before

    def join(self, tenant: str, entries: Sequence[Entry]) -> None:
        """Adds one request's entries, in ascending rank."""
        if tenant not in self._lines:
            self._lines[tenant] = WaitingQueue()
            self._clocks[tenant] = max(self._clocks.get(tenant, 0), self._now)
        self._lines[tenant].join(entries)

    def leave(self, tenant: str, first: Rank, last: Rank) -> None:
        """Removes what still waits of the request whose entries have the ranks `first` to `last`."""
        if tenant in self._lines:
            self._lines[tenant].leave(first, last)
            self._forget(tenant)

    def head(self, count: int) -> list[Entry]:
        """The first `count` entries in the order in which they are due; they stay in the queue."""
        if len(self._lines) == 1:
            (line,) = self._lines.values()
            return line.head(count)
        return [entry for _, _, entry in self._due(count)]

    def take(self, positions: Sequence[int]) -> list[Entry]:
        """Removes and returns the entries at `positions` of `head`, in that order."""
        if len(self._lines) == 1:
            tenants = list(self._lines)
            entries = self._take(tenants[0], positions)
        else:
            due = self._due(max(positions) + 1)
            taken: dict[str, list[int]] = {}
            for position in positions:
                tenant, place, _ = due[position]
                taken.setdefault(tenant, []).append(place)
            for tenant, places in taken.items():
                self._take(tenant, places)
            tenants = list(taken)
            entries = [due[position][2] for position in positions]
        waiting = [self._clocks[tenant] for tenant, line in self._lines.items() if len(line)]
        # Where nobody is left waiting, nobody is owed anything for what ran alone.
        self._now = max(self._now, min(waiting) if waiting else max(self._clocks.values()))
        for tenant in tenants:
            self._forget(tenant)
        return entries

    def _take(self, tenant: str, places: Sequence[int]) -> list[Entry]:
        """Takes the entries at `places` of one tenant's line, for which its clock goes on."""
        line = self._lines[tenant]
        before = line.tokens
        entries = line.take(places)
        self._clocks[tenant] += before - line.tokens
        return entries

    def _due(self, count: int) -> list[tuple[str, int, Entry]]:
        """The first `count` entries, each with its tenant and its place in that tenant's line."""
        heads = {tenant: line.head(count) for tenant, line in self._lines.items()}
        clocks = [(self._clocks[tenant], tenant, 0) for tenant in heads]
        heapify(clocks)
        due: list[tuple[str, int, Entry]] = []
        while clocks and len(due) < count:
            clock, tenant, place = heappop(clocks)
            entry = heads[tenant][place]
            due.append((tenant, place, entry))
            if place + 1 < len(heads[tenant]):
                heappush(clocks, (clock + entry.length, tenant, place + 1))
        return due

    def _forget(self, tenant: str) -> None:
        """Ends an empty line; its clock is kept only while it is ahead, so that tenants cannot pile up."""
        if not len(self._lines[tenant]):
            del self._lines[tenant]
        for name in [name for name, clock in self._clocks.items() if name not in self._lines and clock <= self._now]:
            del self._clocks[name]


def _rank(entry: Ranked) -> Rank:
    return entry.rank


def _tokens(entries: Sequence[Ranked]) -> int:
    return sum([entry.length for entry in entries])
