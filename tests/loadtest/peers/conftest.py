"""A contender with figures that a test decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loadtest.measure import Summary
from loadtest.peers.catalog import PEERS, ours
from loadtest.peers.compare import Contender, Visit


@pytest.fixture
def contender(make_summary: Callable[..., Summary]) -> Callable[..., Contender]:
    """The first setting of the peer `key`, visited once for each of `throughputs`."""

    def make(key: str, throughputs: list[float], problem: str | None = None, **figures: Any) -> Contender:
        peer = next(peer for peer in (ours("demo", None, []), *PEERS) if peer.key == key)
        visits = [
            Visit(
                start,
                300 * 2**20,
                make_summary(rate, **figures),
                make_summary(rate),
                make_summary(rate / 2),
                rate / 2,
                (make_summary(60) if rate > 60 else None, None),
            )
            for start, rate in enumerate(throughputs, start=2)
        ]
        return Contender(peer, peer.settings[0], version="1.2", visits=visits, problem=problem)

    return make
