"""Who may join the queue, and when those who may not should try again. Pure: no clock, no queue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

SHORTEST_RETRY, LONGEST_RETRY = 1, 60
"""Bounds of `Retry-After`, in seconds: HTTP knows no fractions, and an estimate further ahead is a guess."""


HEADROOM = 0.8
"""Share of a request's time that the queue may be expected to take. Speed varies from batch to batch, and with the
texts in it; who is refused at once can still go elsewhere, who expires has waited for nothing."""


FIRST_GUESS = 0.1
"""Seconds that what was measured at the start counts for, about as much as a batch takes on a CPU."""

SMOOTHING = 0.1
"""Weight of the newest full batch in the running estimate of tokens a second."""


class Load(msgspec.Struct, frozen=True):
    """An amount of work: samples and their real tokens."""

    items: int
    tokens: int


class Speed:
    """How fast the device answers with others waiting: what is said at the start, then what full batches show."""

    def __init__(self, tokens_per_second: float) -> None:
        self._tokens, self._seconds = tokens_per_second * FIRST_GUESS, FIRST_GUESS

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds

    @property
    def batch_seconds(self) -> float:
        """How long a full batch takes."""
        return self._seconds

    def observe(self, tokens: int, seconds: float) -> None:
        """Counts a batch that left others waiting: a smaller one says how fast the load is, not the device.

        `tokens` are those that it answered, `seconds` from the end of the batch before it to its own, for whatever
        keeps the device waiting keeps requests waiting too.
        """
        # Means of both, and not of their ratio, as a batch of audits may answer few or none.
        self._tokens += SMOOTHING * (tokens - self._tokens)
        self._seconds += SMOOTHING * (seconds - self._seconds)


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


def excess_wait(tokens_ahead: int, speed: Speed, timeout: float) -> float:
    """By how many seconds a request that has `timeout` is too late, 0 or less where it can be answered in time.

    `tokens_ahead` are due before it, its own among them; the batch that it is planned in takes its time too, and is a
    full one where as much as a full one waits.
    """
    wait = tokens_ahead / speed.tokens_per_second
    return wait + min(wait, speed.batch_seconds) - HEADROOM * timeout


def retry_after(seconds: float) -> int:
    """What to say to one who may come again in `seconds`: whole ones, within bounds."""
    return math.ceil(min(max(seconds, SHORTEST_RETRY), LONGEST_RETRY))
