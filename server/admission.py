"""Who may join the queue, and when those who may not should try again. Pure: no clock, no queue."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHORTEST_RETRY, LONGEST_RETRY = 1, 60
"""Bounds of `Retry-After`, in seconds: HTTP knows no fractions, and an estimate further ahead is a guess."""


@dataclass(frozen=True, slots=True)
class Load:
    """An amount of work: samples and their real tokens."""

    items: int
    tokens: int


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The most that may wait for the device."""

    max_items: int
    max_tokens: int
    tenant_share: float = 1.0

    def admit(self, queued: Load, own: Load, new: Load) -> bool:
        """Whether `new` may join `queued`, of which `own` is the same tenant's: of either limit a tenant may fill
        `tenant_share`.

        Where nothing of the tenant waits, and room for it is left, any request is admitted, or one with more tokens
        than the limit could never be answered.
        """
        if queued.items == 0:
            return True
        if queued.items + new.items > self.max_items or queued.tokens + new.tokens > self.max_tokens:
            return False
        if own.items == 0:
            return True
        return (
            own.items + new.items <= self.tenant_share * self.max_items
            and own.tokens + new.tokens <= self.tenant_share * self.max_tokens
        )


def retry_after(queued_tokens: int, tokens_per_second: float | None) -> int:
    """Seconds until the queue has probably drained; `tokens_per_second` is None until a batch was measured."""
    if not tokens_per_second:
        return SHORTEST_RETRY
    seconds = math.ceil(queued_tokens / tokens_per_second)
    return min(max(seconds, SHORTEST_RETRY), LONGEST_RETRY)
