"""Continuous batching: keeps the device busy with whatever waits, and hands every answer to its own request."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Protocol, TypeVar

import msgspec

from revmux_core.batch import Prefilled
from revmux_core.cascade import Cascade
from revmux_core.plan import MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from server.adaptive import AdaptiveMenu
from server.admission import Load, QueueLimits, Speed, excess_wait, retry_after
from server.answers import Answer, Answers, Terms
from server.errors import DeviceLost, InferenceFailed, QueueFull, QueueTooLong
from server.guard import Guards
from server.metrics import Metrics
from server.pending import Audit, Entry, Pending, Promise
from server.planner import Menu, MuxScope, plan_batch
from server.queue import FairQueue, WaitingQueue
from server.retries import failed_alone, halves
from server.steps import Steps
from server.traces import record_batch, tracing

logger = logging.getLogger(__name__)

Given = TypeVar("Given", bound=Promise)

WINDOW = 1024
"""Entries at the head of the queue that a batch is chosen from. It bounds planning to about a millisecond."""

BRIEF_SECONDS = 0.02
"""What the device computes in so long is brief, where it shares its cores. Probes and deadlines wait as long for a
batch that is run in the event loop's thread. Of more texts than that a common batch answers the slowest of them later
(`docs/performance/latency.md`)."""

TURNS = 3
"""Turns of the event loop after which it has written the answers of a batch, and admitted what came meanwhile and what
clients on this machine ask for next. With two, no more than before share a batch."""

AUDITS_HELD = 32
"""Audits that wait for an idle device. As many at once are a batch worth running while others wait: without it a
server that is never idle would never be audited."""

REPORT_SECONDS = 0.1
"""How far the exported length of the queue may be behind in growing. It grows with every request, and nobody reads it
as often; what leaves it, in batches or withdrawn, is exported at once."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a batch came to, in the order of its samples: `logits` and `probs`, `[S][C]`. Where words are answered a
    sample's are all in one row, word after word.

    `seconds` is what computing took; `kept` has the states of the samples whose answers are audited, by number;
    `padded_tokens` counts the positions that were computed in all steps, padding among them.
    """

    logits: list[list[float]]
    probs: list[list[float]]
    seconds: float
    kept: Mapping[int, Prefilled]
    padded_tokens: int


class BatchEngine(Protocol):
    """The device, as the batcher sees it: runs one batch at a time.

    Where it `packs`, unlike lengths in a batch cost next to nothing. Where it `shares_cores`, answers are written on
    the cores that it computes on, and either takes as long as it holds up the other.
    """

    @property
    def packs(self) -> bool: ...

    @property
    def shares_cores(self) -> bool: ...

    def run(self, samples: Sequence[Tokens | Prefilled], steps: Steps, here: bool) -> Awaitable[Scores]:
        """Where `here` it may compute in the event loop's own thread, which has nothing else to do meanwhile."""
        ...

    def agrees(self, logits: Sequence[float], reference: Sequence[float]) -> bool:
        """Whether one sample's logits give the answer of the plain model's."""
        ...


class Batcher:
    """Belongs to one event loop. `menu` is all that is served, `adaptive` what of it the load calls for.

    Work-conserving: a free device gets the next batch at once, however small. While a batch runs the next one
    gathers, and is planned only when the device is free, so that late arrivals still join; but once the queue fills a
    batch on its own, one more is handed over early, and the device finds it collated when it finishes. A device that
    shares its cores, and has little to do, gets it a moment later, once answers are written: both at once gain nothing,
    and whoever comes by then still joins. Audits of what is answered run one by one where nothing else waits, or
    together once `AUDITS_HELD` of them do. What a batch fails on is tried again before all else, in halves, until it
    fails alone or does not.
    """

    def __init__(
        self,
        engine: BatchEngine,
        menu: Menu,
        adaptive: AdaptiveMenu,
        max_batch_tokens: int,
        limits: QueueLimits,
        metrics: Metrics,
        guards: Guards,
        tokens_per_second: float,
        mux_scope: MuxScope = "tenant",
    ) -> None:
        self._engine = engine
        self._menu = menu
        self._adaptive = adaptive
        self._budget = max_batch_tokens
        self._limits = limits
        self._metrics = metrics
        self._guards = guards
        self._mux_scope = mux_scope
        self._queue: FairQueue[Entry] = FairQueue()
        self._audits: WaitingQueue[Entry] = WaitingQueue()
        self._retries: deque[tuple[list[Entry], MuxPlan]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        # A batch is of many requests, so it must not take the context, and with that the log lines, of one.
        self._context = Context()
        self._dispatch_due = False
        self._report_due = False
        self._growth_due = False
        self._arrivals = 0
        self._speed = Speed(tokens_per_second)
        self._running_tokens = 0
        self._last_end = 0.0
        self.lost: Future[None] = Future()
        """Done once the device is lost: every batch fails from then on, and the process has to end."""

    @property
    def load(self) -> Load:
        """What waits for the device now."""
        return self._queue.load

    def submit(self, samples: Sequence[Tokens], terms: Terms) -> Pending[asyncio.Future[Answers]]:
        """`admit` for one who awaits the answers."""
        return self.admit(samples, terms, asyncio.get_running_loop().create_future())

    def admit(self, samples: Sequence[Tokens], terms: Terms, answers: Given) -> Pending[Given]:
        """Admits a request of one or more samples.

        Raises `QueueFull` where the limits do not let it in, `QueueTooLong` where it would hardly be answered in time.
        """
        lengths = list(map(len, samples))
        tenant, queued, new = terms.tenant, self._queue.load, Load(len(samples), sum(lengths))
        arrived = monotonic()
        self._adaptive.arrived(new.tokens, arrived)
        if not self._limits.admit(queued, self._queue.load_of(tenant), new):
            self._adaptive.refused(new.tokens)
            raise QueueFull(retry_after(queued.tokens / self._speed.tokens_per_second))
        before = self._running_tokens + self._queue.tokens_before(tenant, terms.priority, new.tokens)
        excess = excess_wait(before + new.tokens, self._speed, terms.timeout)
        # With nobody before it a request is tried: what its time is too short for is told it once that is over.
        if before and excess > 0:
            self._adaptive.refused(new.tokens)
            raise QueueTooLong(retry_after(excess))
        first = self._arrivals
        self._arrivals += len(samples)
        scope = tenant if self._mux_scope == "tenant" else first if self._mux_scope == "request" else None
        ranks = [(terms.priority, number) for number in range(first, self._arrivals)]
        pending = Pending(answers, terms, ranks[0], ranks[-1], arrived)
        self._queue.join(
            tenant,
            [
                Entry(
                    request=pending,
                    item=item,
                    sample=samples[item],
                    length=lengths[item],
                    max_width=terms.max_width,
                    guaranteed=terms.guaranteed,
                    audited=self._guards.draw(),
                    scope=scope,
                    rank=rank,
                )
                for item, rank in enumerate(ranks)
            ],
        )
        if not self._dispatch_due and self._device_wants_more(queued.tokens + new.tokens):
            # After the callbacks that are ready now, so that requests which arrived together share a batch.
            self._dispatch_after(1)
        if not self._growth_due:
            self._growth_due = True
            asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report_growth)
        return pending

    def withdraw(self, pending: Pending[Promise]) -> None:
        """Takes what still waits of a request out of the queue: answered, expired, failed, or its client is gone."""
        self._queue.leave(pending.tenant, pending.first, pending.last)
        if not self._report_due:
            self._report_due = True
            asyncio.get_running_loop().call_soon(self._report)

    async def close(self) -> None:
        """Waits for the batches that run. Whoever closes sees to it that no request waits any more."""
        while self._running or self._dispatch_due:
            self._audits = WaitingQueue()
            await asyncio.gather(asyncio.sleep(0), *self._running)

    def _dispatch(self, written: bool) -> None:
        """`written`: so are the answers of all batches that are over."""
        self._dispatch_due = False
        while self._retries or len(self._queue) or len(self._audits):
            if not self._device_wants_more(self._queue.load.tokens):
                break
            if self._retries:
                entries, plan = self._retries.popleft()
            elif len(self._audits) >= AUDITS_HELD or not len(self._queue):
                entries, plan = self._next_audits()
            else:
                entries, plan = self._next_batch()
            # One that leaves others waiting, or was handed over before the device was free, as a full one waited: so
            # that its speed is the device's and not the load's. At steady overload admission lets no more wait than
            # goes into one batch, and hardly any leaves others: 24 of 560 did, and a neighbour that took half of the
            # core went unnoticed.
            full = len(self._queue) > 0 or len(self._running) > 0
            task = asyncio.get_running_loop().create_task(self._run(entries, plan, full, written))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        self._report()

    def _report(self) -> None:
        self._report_due = False
        self._metrics.observe_queue(self._queue.load)

    def _report_growth(self) -> None:
        self._growth_due = False
        self._report()

    def _next_batch(self) -> tuple[list[Entry], MuxPlan]:
        menu = self._adaptive.choose(self._queue.load.tokens, monotonic())
        if self._guards.suspended:
            menu = replace(menu, suspended=self._guards.suspended)
        planned = plan_batch(self._queue.head(WINDOW), self._budget, menu, self._engine.packs)
        return self._queue.take(planned.members), planned.plan

    def _next_audits(self) -> tuple[list[Entry], MuxPlan]:
        # One alone, so that whoever arrives meanwhile waits no longer than that.
        due = self._audits.head(WINDOW if len(self._audits) >= AUDITS_HELD else 1)
        planned = plan_batch(due, self._budget, self._menu, self._engine.packs)
        return self._audits.take(planned.members), planned.plan

    def _device_wants_more(self, waiting: int) -> bool:
        """Whether a batch may be handed over while so many tokens wait."""
        return not self._running or (len(self._running) == 1 and waiting >= self._budget)

    def _dispatch_after(self, turns: int) -> None:
        """Dispatches after so many turns of the event loop, with all answers written."""
        self._dispatch_due = True
        later = partial(self._dispatch_after, turns - 1) if turns > 1 else partial(self._dispatch, written=True)
        asyncio.get_running_loop().call_soon(later, context=self._context)

    def _is_brief(self, tokens: int) -> bool:
        """Whether so many tokens are few enough for one thing after the other."""
        return self._engine.shares_cores and tokens <= BRIEF_SECONDS * self._speed.tokens_per_second

    async def _run(self, entries: list[Entry], plan: MuxPlan, full: bool, written: bool) -> None:
        """Has one batch computed; then gives the device its next one, see the class, and hands out the answers."""
        steps = Steps(entries, plan, self._menu)
        tokens = steps.tokens
        self._running_tokens += tokens
        begun = monotonic()
        requests = dict.fromkeys([entry.request for entry in entries if not entry.answered])
        scores: Scores | None = None
        suspects: Collection[int] = range(len(entries))
        try:
            here = written and self._is_brief(tokens)
            scores = await self._engine.run([entry.sample for entry in entries], steps, here)
            suspects = steps.suspects
            if suspects:
                logger.error(
                    "of %d samples %d were answered with NaN or infinity, or their partners were",
                    len(entries),
                    len(suspects),
                )
        except DeviceLost:
            suspects = ()
            self._fail(requests, DeviceLost)
            if not self.lost.done():
                logger.critical("the device is lost: this process ends", exc_info=True)
                self.lost.set_result(None)
        except Exception:
            logger.exception("a batch of %d samples from %d requests failed", len(entries), len(requests))
        # Not while the error is handled, whose traceback holds on to the memory that the batch took.
        if suspects:
            self._retry([entries[number] for number in suspects], failed_alone(steps.points, self._menu.plain))
        self._running_tokens -= tokens
        ended = monotonic()
        seconds, self._last_end = ended - max(begun, self._last_end), ended
        # Not in a `finally`: where the event loop ends this task, no further batch may start.
        self._running.discard(asyncio.current_task())
        going_on: set[int] = set()
        if scores is not None:
            for number, states in scores.kept.items():
                if self._audit(
                    entries[number], steps.points[number], steps.cascades[number], states, scores.logits[number]
                ):
                    going_on.add(number)
        if self._is_brief(tokens + self._queue.load.tokens):
            self._dispatch_after(TURNS)
        else:
            self._dispatch(written=False)
        if tracing():
            record_batch(
                [request.trace for request in requests],
                seconds,
                failed=scores is None,
                samples=len(entries),
                tokens=steps.tokens,
                composites=steps.composites,
                points=sorted({point.name for point in steps.points}),
            )
        if scores is None:
            return
        if full and not suspects:
            # What is audited after its answer serves nobody who waits.
            served = (entry for number, entry in enumerate(entries) if number not in going_on and not entry.answered)
            self._speed.observe(sum(entry.length for entry in served), max(seconds, scores.seconds))
        now = monotonic()
        answered: list[tuple[OperatingPoint, Cascade | None, bool, bool]] = []
        for request in requests:
            request.inference_seconds += scores.seconds
        for number, (entry, point, cascade) in enumerate(zip(entries, steps.points, steps.cascades, strict=True)):
            if number in going_on or number in suspects:
                continue
            escalated = steps.escalated(number)
            if entry.audit is not None:
                agreed = self._engine.agrees(entry.audit.logits, scores.logits[number])
                self._guards.observe(entry.audit.width, entry.audit.guaranteed, agreed)
            elif escalated and entry.audited and cascade is not None:
                # The promise is of all answers, and those that are escalated are the plain model's own.
                self._guards.observe(cascade.width, True, True)
            if not entry.answered:
                answered.append((point, cascade, escalated, number in steps.shortened))
                answer = Answer(scores.logits[number], scores.probs[number], point, escalated)
                entry.request.resolve(entry.item, answer, now)
        # After the requests that were answered have gone on: nobody waits for what is counted.
        asyncio.get_running_loop().call_soon(self._count, len(entries), steps, scores, answered)

    def _count(
        self,
        samples: int,
        steps: Steps,
        scores: Scores,
        answered: list[tuple[OperatingPoint, Cascade | None, bool, bool]],
    ) -> None:
        self._metrics.observe_batch(samples, steps.composites, steps.tokens, scores.padded_tokens, scores.seconds)
        for (point, cascade, escalated, shortened), count in Counter(answered).items():
            self._metrics.observe_answers(point, cascade, escalated, shortened, count)

    def _retry(self, suspects: Sequence[Entry], alone: bool) -> None:
        """Tries those in halves that a batch failed on, or fails the request of one that it failed on `alone`."""
        awaited = [entry for entry in suspects if not entry.answered and not entry.request.answers.done()]
        if alone:
            self._fail([entry.request for entry in awaited], InferenceFailed)
        elif awaited:
            self._metrics.retried.inc(len(awaited))
            for half in halves(awaited, self._menu):
                self._retries.append(([awaited[position] for position in half.members], half.plan))

    def _fail(self, requests: Iterable[Pending[Promise]], kind: type[InferenceFailed] | type[DeviceLost]) -> None:
        for request in requests:
            request.fail(kind())
            self.withdraw(request)

    def _audit(
        self, entry: Entry, point: OperatingPoint, cascade: Cascade | None, states: Prefilled, logits: list[float]
    ) -> bool:
        """Keeps a sample, answered with `logits` at `point`, for the plain path; whether its request waits for that.

        It does where the cascade is suspended: then the sample goes back where it stood in the line.
        """
        if entry.request.answers.done():
            return True
        width = point.width if cascade is None else cascade.width
        suspended = cascade is not None and width in self._guards.suspended
        audit = Audit(logits, width, cascade is not None)
        audited = msgspec.structs.replace(
            entry, sample=states, start=states.depth, resumes_at=self._menu.plain, audit=audit, answered=not suspended
        )
        if suspended:
            self._queue.join(entry.request.tenant, [audited])
        else:
            self._audits.join([audited])
        return suspended
