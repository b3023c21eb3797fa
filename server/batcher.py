"""Continuous batching: keeps the device busy with whatever waits, and hands every answer to its own request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from revmux_core.batch import Prefilled
from revmux_core.cascade import Cascade
from revmux_core.plan import MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from server.adaptive import AdaptiveMenu
from server.admission import Load, QueueLimits, retry_after
from server.errors import InferenceFailed, QueueFull
from server.metrics import Metrics
from server.planner import Menu, MuxScope, plan_batch
from server.queue import FairQueue, Rank

logger = logging.getLogger(__name__)

WINDOW = 1024
"""Entries at the head of the queue that a batch is chosen from. It bounds planning to about a millisecond."""

SMOOTHING = 0.2
"""Weight of the newest batch in the running estimate of tokens a second."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A batch's `logits` and `probs`, `[S][C]`, in the order of its samples, and the `seconds` that computing took.

    `unsure` has the states of the samples whose confidence was under their threshold, by their number.
    """

    logits: list[list[float]]
    probs: list[list[float]]
    seconds: float
    unsure: Mapping[int, Prefilled]


class BatchEngine(Protocol):
    """The device, as the batcher sees it: runs batches one after the other, in the order in which they are given."""

    def run(
        self, samples: Sequence[Tokens | Prefilled], plan: MuxPlan, thresholds: Sequence[float]
    ) -> Awaitable[Scores]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One sample's scores, how many samples shared its composite (1: none, it ran plain or exited early), and whether
    it was escalated to the plain path."""

    logits: list[float]
    probs: list[float]
    mux_width: int
    escalated: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """One request's answers in the order of its samples.

    `inference_seconds` is the compute of all batches that held a sample of it, `queue_seconds` the rest of the time
    from admission to the last answer.
    """

    items: list[Answer]
    queue_seconds: float
    inference_seconds: float


class Pending:
    """An admitted request. `answers` resolves to `Answers`, or to the error that its batch or its owner set."""

    __slots__ = ("_arrived", "_inference_seconds", "_items", "_missing", "answers", "first", "last", "tenant")

    def __init__(self, answers: asyncio.Future[Answers], tenant: str, first: Rank, last: Rank, arrived: float) -> None:
        self.answers = answers
        self.tenant = tenant
        self.first, self.last = first, last
        self._arrived = arrived
        self._items: dict[int, Answer] = {}
        self._missing = last[1] - first[1] + 1
        self._inference_seconds = 0.0

    def computed(self, seconds: float) -> None:
        """Counts a batch that held samples of this request."""
        self._inference_seconds += seconds

    def resolve(self, item: int, answer: Answer, now: float) -> None:
        self._items[item] = answer
        self._missing -= 1
        if self._missing == 0 and not self.answers.done():
            items = [self._items[i] for i in range(len(self._items))]
            waited = max(now - self._arrived - self._inference_seconds, 0.0)
            self.answers.set_result(Answers(items, waited, self._inference_seconds))

    def fail(self, error: Exception) -> None:
        if not self.answers.done():
            self.answers.set_exception(error)


@dataclass(slots=True, eq=False)
class _Entry:
    """One sample of a request waiting: its tokens or, once it was escalated to a `step` of a cascade, its states."""

    request: Pending
    item: int
    sample: Tokens | Prefilled
    length: int
    max_width: int
    guaranteed: bool
    scope: Hashable
    rank: Rank
    cascade: Cascade | None = None
    step: int = 0

    @property
    def start(self) -> int:
        return self.sample.depth if isinstance(self.sample, Prefilled) else 0

    @property
    def resumes_at(self) -> OperatingPoint | None:
        if self.cascade is None:
            return None
        return self.cascade.at(self.step)

    def escalate(self, cascade: Cascade, states: Prefilled) -> None:
        """Goes on from `states` at the next step of `cascade`."""
        self.cascade, self.sample = cascade, states
        self.step += 1


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks for beside its samples, and the `tenant` it comes from."""

    max_width: int
    priority: int = 0
    guaranteed: bool = False
    tenant: str = ""


class Batcher:
    """Belongs to one event loop. `menu` is all that is served, `adaptive` what of it the load calls for.

    Work-conserving: a free device gets the next batch at once, however small. While a batch runs the next one
    gathers, and is planned only when the device is free, so that late arrivals still join; but once the queue fills a
    batch on its own, one more is handed over early, and the device finds it collated when it finishes.
    """

    def __init__(
        self,
        engine: BatchEngine,
        menu: Menu,
        adaptive: AdaptiveMenu,
        max_batch_tokens: int,
        limits: QueueLimits,
        metrics: Metrics,
        mux_scope: MuxScope = "tenant",
    ) -> None:
        self._engine = engine
        self._menu = menu
        self._adaptive = adaptive
        self._budget = max_batch_tokens
        self._limits = limits
        self._metrics = metrics
        self._mux_scope = mux_scope
        self._queue: FairQueue[_Entry] = FairQueue()
        self._running: set[asyncio.Task[None]] = set()
        self._dispatch_due = False
        self._arrivals = 0
        self._tokens_per_second: float | None = None

    @property
    def load(self) -> Load:
        """What waits for the device now."""
        return self._queue.load

    def submit(self, samples: Sequence[Tokens], terms: Terms) -> Pending:
        """Admits a request of one or more samples. Raises `QueueFull` where the limits do not let it in."""
        queued, new = self._queue.load, Load(len(samples), sum(map(len, samples)))
        if not self._limits.admit(queued, self._queue.load_of(terms.tenant), new):
            raise QueueFull(retry_after(queued.tokens, self._tokens_per_second))
        loop = asyncio.get_running_loop()
        ranks = [(terms.priority, self._arrivals + item) for item in range(len(samples))]
        scope = {"any": None, "tenant": terms.tenant, "request": self._arrivals}[self._mux_scope]
        self._arrivals += len(samples)
        self._adaptive.arrived(new.tokens, loop.time())
        pending = Pending(loop.create_future(), terms.tenant, ranks[0], ranks[-1], loop.time())
        self._queue.join(
            terms.tenant,
            [
                _Entry(pending, item, tokens, len(tokens), terms.max_width, terms.guaranteed, scope, rank)
                for item, (tokens, rank) in enumerate(zip(samples, ranks, strict=True))
            ],
        )
        if not self._dispatch_due:
            # After the callbacks that are ready now, so that requests which arrived together share a batch.
            self._dispatch_due = True
            loop.call_soon(self._dispatch)
        return pending

    def withdraw(self, pending: Pending) -> None:
        """Takes what still waits of a request out of the queue: answered, expired, failed, or its client is gone."""
        self._queue.leave(pending.tenant, pending.first, pending.last)

    async def close(self) -> None:
        """Waits for the batches that run. Whoever closes sees to it that nothing waits any more."""
        await asyncio.gather(*self._running)

    def _dispatch(self) -> None:
        self._dispatch_due = False
        while len(self._queue) and self._device_wants_more():
            menu = self._adaptive.choose(self._queue.load.tokens, asyncio.get_running_loop().time())
            planned = plan_batch(self._queue.head(WINDOW), self._budget, menu)
            entries = self._queue.take(planned.members)
            task = asyncio.get_running_loop().create_task(self._run(entries, planned.plan))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _device_wants_more(self) -> bool:
        if not self._running:
            return True
        return len(self._running) == 1 and self._queue.load.tokens >= self._budget

    async def _run(self, entries: list[_Entry], plan: MuxPlan) -> None:
        """Has one batch computed; then first gives the device its next one and only then hands out the answers."""
        requests = dict.fromkeys(entry.request for entry in entries)
        points = [group.point for group in plan.groups for _ in group.members]
        cascades = [self._cascade_of(entry, point) for entry, point in zip(entries, points, strict=True)]
        thresholds = [0.0 if cascade is None else cascade.threshold for cascade in cascades]
        scores: Scores | None = None
        try:
            scores = await self._engine.run([entry.sample for entry in entries], plan, thresholds)
        except Exception:
            logger.exception("a batch of %d samples from %d requests failed", len(entries), len(requests))
            for request in requests:
                request.fail(InferenceFailed())
                self.withdraw(request)
        # Not in a `finally`: where the event loop ends this task, no further batch may start.
        self._running.discard(asyncio.current_task())
        unsure = {} if scores is None else scores.unsure
        for number, states in unsure.items():
            self._escalate(entries[number], cascades[number], states)
        self._dispatch()
        if scores is None:
            return
        self._observe(entries, plan, scores)
        now = asyncio.get_running_loop().time()
        for request in requests:
            request.computed(scores.seconds)
        for number, (entry, point) in enumerate(zip(entries, points, strict=True)):
            if number not in unsure:
                escalated = entry.cascade is not None and point == self._menu.plain
                self._metrics.observe_answer(point, entry.cascade or cascades[number], escalated)
                answer = Answer(scores.logits[number], scores.probs[number], point.width, escalated)
                entry.request.resolve(entry.item, answer, now)

    def _cascade_of(self, entry: _Entry, point: OperatingPoint) -> Cascade | None:
        """The cascade that decides whether `entry` may leave at `point`; None where it leaves in any case."""
        if not entry.guaranteed or point == self._menu.plain:
            return None
        return entry.cascade or self._menu.cascade_from(point)

    def _escalate(self, entry: _Entry, cascade: Cascade | None, states: Prefilled) -> None:
        """Puts a sample back where it stood in the line, ahead of all that arrived after it."""
        if cascade is not None and not entry.request.answers.done():
            entry.escalate(cascade, states)
            self._queue.join(entry.request.tenant, [entry])

    def _observe(self, entries: list[_Entry], plan: MuxPlan, scores: Scores) -> None:
        tokens = sum(entry.length for entry in entries)
        longest = max(entry.length for entry in entries)
        self._metrics.observe_batch(plan, tokens, longest * len(entries), scores.seconds)
        speed = tokens / max(scores.seconds, 1e-6)
        known = self._tokens_per_second
        self._tokens_per_second = speed if known is None else known + SMOOTHING * (speed - known)
