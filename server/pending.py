"""What waits for the device: admitted requests, and their samples one by one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

import msgspec

from revmux_core.batch import Prefilled
from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint
from server.answers import Answer, Answers, Terms
from server.queue import Rank


class Promise(Protocol):
    """What a request's answers are given to, once, or the error that its batch or its owner set: a future is one."""

    def done(self) -> bool:
        """Whether either came, or nobody waits for them any more."""

    def set_result(self, result: Answers, /) -> None: ...

    def set_exception(self, exception: Exception, /) -> None: ...


_Given = TypeVar("_Given", bound=Promise, covariant=True)


class Pending(Generic[_Given]):
    """An admitted request of samples with the ranks `first` to `last`. `answers` gets `Answers`, or an error."""

    __slots__ = ("_arrived", "_items", "_missing", "answers", "first", "inference_seconds", "last", "tenant", "trace")

    def __init__(self, answers: _Given, terms: Terms, first: Rank, last: Rank, arrived: float) -> None:
        self.answers = answers
        self.tenant, self.trace = terms.tenant, terms.trace
        self.first, self.last = first, last
        self.inference_seconds = 0.0
        """Of all batches so far that held samples of it."""
        self._arrived = arrived
        self._missing = last[1] - first[1] + 1
        self._items: list[Answer | None] = [None] * self._missing

    def resolve(self, item: int, answer: Answer, now: float) -> None:
        self._items[item] = answer
        self._missing -= 1
        if self._missing == 0 and not self.answers.done():
            items = [answer for answer in self._items if answer is not None]
            waited = max(now - self._arrived - self.inference_seconds, 0.0)
            self.answers.set_result(Answers(items, waited, self.inference_seconds))

    def fail(self, error: Exception) -> None:
        if not self.answers.done():
            self.answers.set_exception(error)


class Audit(msgspec.Struct, frozen=True):
    """What was answered, or would have been: its logits, at which width, and by a certified cascade or fast."""

    logits: list[float]
    width: int
    guaranteed: bool


class Entry(msgspec.Struct, eq=False):
    """One waiting sample of a request: its tokens or, where its answer is audited, its states and where it goes on.

    An audited sample ends on the plain path whatever a point says; once it is `answered`, only the comparison is left
    to do.
    """

    request: Pending[Promise]
    item: int
    sample: Tokens | Prefilled
    length: int
    max_width: int
    guaranteed: bool
    audited: bool
    scope: Hashable
    rank: Rank
    start: int = 0
    resumes_at: OperatingPoint | None = None
    audit: Audit | None = None
    answered: bool = False
