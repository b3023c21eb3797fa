"""What a request asks of the model and what it gets, and the seam between: `Batching`, here or in another process."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """What a request asks for beside its samples, the `tenant` it comes from, and the seconds that it has left.

    `trace` is its span, see `server.traces.current_trace`.
    """

    max_width: int
    priority: int = 0
    guaranteed: bool = False
    tenant: str = ""
    timeout: float = math.inf
    trace: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """One sample's scores, the `point` that they are from, and whether it was escalated to it."""

    logits: list[float]
    probs: list[float]
    point: OperatingPoint
    escalated: bool


class Answers(msgspec.Struct, frozen=True):
    """One request's answers in the order of its samples.

    `inference_seconds` is the compute of all batches that held a sample of it, `queue_seconds` the rest of the time
    from admission to the last answer.
    """

    items: list[Answer]
    queue_seconds: float
    inference_seconds: float


class Admitted(Protocol):
    """A request that waits. `answers` resolves to `Answers`, or to the error that its batch or its owner set."""

    @property
    def answers(self) -> asyncio.Future[Answers]: ...

    def fail(self, error: Exception) -> None: ...


Ticket = TypeVar("Ticket", bound=Admitted)


class Batching(Protocol[Ticket]):
    """Where requests wait for the device: in this process, or on the other side of a socket."""

    def submit(self, samples: Sequence[Tokens], terms: Terms) -> Ticket:
        """Hands over a request of one or more samples. Raises a `ServiceError`, or fails the ticket with one, where it
        is not admitted."""

    def withdraw(self, pending: Ticket) -> None:
        """Whoever submitted a request no longer waits for it: answered, expired, failed, or its client is gone."""
