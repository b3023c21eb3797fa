"""Every answer goes to its own request and item, whatever the interleaving."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revmux_core.backends import BackendName
from revmux_core.batch import Prefilled, collate
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.cascade import Cascade
from revmux_core.classifier import MuxClassifier, make_adapters
from revmux_core.multiplexing import EARLY_EXIT, make_multiplexer
from revmux_core.offline import run_cascade
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from server.adaptive import AdaptiveMenu, Rung
from server.admission import Load, QueueLimits
from server.batcher import AUDITS_HELD, BRIEF_SECONDS, Batcher, Pending, Scores, Terms
from server.engine import WARM_UP_SECONDS, Engine
from server.errors import ClientDisconnected, DeviceLost, InferenceFailed, QueueFull, QueueTooLong
from server.guard import Audit, Guards
from server.metrics import Metrics
from server.planner import PLAIN_ONLY, Menu, served_points
from server.steps import Steps
from tests.server.test_planner import Waiting

LAYERS = 4
TWO, PLAIN = OperatingPoint.mux(2, 2, LAYERS), OperatingPoint.plain(LAYERS)
EARLY, LATER = OperatingPoint(1, 1, ()), OperatingPoint(1, 3, ())
MENU = Menu(
    (OperatingPoint.mux(4, 2, LAYERS), TWO, PLAIN),
    (Cascade((EARLY, LATER), (0.9, 0.9), LAYERS), Cascade((TWO,), (0.8,), LAYERS)),
)
BUDGET = 40
FAST = 1e6
"""Tokens a second at which nobody is refused for lack of time."""


class ManualDevice:
    """A device whose batches end when the test says so, and whose scores are the ids of each sample.

    Audited samples carry their ids as states. `unsure(ids, point)` says which samples are not sure enough to leave,
    `broken(ids)` whose answers are not finite, and `memory` how many tokens a batch may hold, padding among them.
    """

    packs = False

    def __init__(
        self,
        unsure: Callable[[list[int], OperatingPoint], bool] = lambda ids, point: False,
        broken: Callable[[list[int]], bool] = lambda ids: False,
        memory: float = math.inf,
        shares_cores: bool = False,
    ) -> None:
        self.shares_cores = shares_cores
        self.batches: list[tuple[Sequence[Tokens | Prefilled], asyncio.Future[Scores]]] = []
        self.plans: list[MuxPlan] = []
        self.here: list[bool] = []
        self._unsure = unsure
        self._broken = broken
        self._memory = memory
        self._asked: list[Steps] = []

    def run(self, samples: Sequence[Tokens | Prefilled], steps: Steps, here: bool) -> asyncio.Future[Scores]:
        plan = steps.step.plan
        assert plan.samples == len(samples)
        for group in plan.groups:
            depths = [samples[i].depth if isinstance(samples[i], Prefilled) else 0 for i in group.members]
            assert depths == [group.start] * len(depths)
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self.batches.append((samples, future))
        self.plans.append(plan)
        self.here.append(here)
        self._asked.append(steps)
        return future

    def agrees(self, logits: Sequence[float], reference: Sequence[float]) -> bool:
        return logits.index(max(logits)) == reference.index(max(reference))

    def finish(self) -> None:
        samples, future = self.batches.pop(0)
        steps = self._asked.pop(0)
        if len(samples) * max(map(len, samples)) > self._memory:
            future.set_exception(MemoryError())
            return
        ids = [ids_of(sample) for sample in samples]
        going = True
        while going:
            unsure = [self._unsure(ids[number], steps.points[number]) for number in steps.step.members]
            broken = [self._broken(ids[number]) for number in steps.step.members]
            confidences = [math.nan if nan else float(not one) for nan, one in zip(broken, unsure, strict=True)]
            going = steps.advance(confidences) is not None
            if going:
                self.plans.append(steps.step.plan)
        kept = {
            number: Prefilled(point.prefill, torch.tensor([*ids[number], *[0] * (len(samples[number]) - 2)]))
            for number, point in enumerate(steps.points)
            if steps.audits(number)
        }
        scores = [[float(i) for i in own] for own in ids]
        future.set_result(Scores(scores, scores, 0.001, kept, steps.tokens))

    def fail(self) -> set[int]:
        """The request that this leaves no doubt about, if any."""
        samples, future = self.batches.pop(0)
        points = self._asked.pop(0).points
        future.set_exception(RuntimeError("the device failed"))
        return {ids_of(sample)[0] for sample in samples} if points == [PLAIN] else set()


def ids_of(sample: Tokens | Prefilled) -> list[int]:
    """Request and item."""
    return sample.ids[:2] if isinstance(sample, Tokens) else sample.states[:2].tolist()


def batcher_on(
    device: Any, max_items: int = 10**6, guards: Guards | None = None, tokens_per_second: float = FAST
) -> Batcher:
    guards = guards or Guards(0.9, 0)
    limits = QueueLimits(max_items, 10**6)
    return Batcher(device, MENU, AdaptiveMenu.fixed(MENU), BUDGET, limits, Metrics("test"), guards, tokens_per_second)


def batcher_of(engine: Engine, menu: Menu, mux_scope: Any = "tenant") -> Batcher:
    limits = QueueLimits(100, 10_000)
    return Batcher(
        engine, menu, AdaptiveMenu.fixed(menu), 512, limits, Metrics("test"), Guards(0.9, 0), FAST, mux_scope
    )


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def finish_all(device: ManualDevice, batcher: Batcher) -> None:
    while device.batches:
        device.finish()
        await settle()
    await batcher.close()


def samples_of(request: int, lengths: list[int]) -> list[Tokens]:
    return [Tokens([request, item] + [0] * (length - 2)) for item, length in enumerate(lengths)]


submit = st.tuples(
    st.just("submit"),
    st.lists(st.integers(2, 30), min_size=1, max_size=12),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 2),
    st.booleans(),
)
step = st.one_of(submit, st.sampled_from([("finish",), ("fail",), ("withdraw",), ("settle",)]))


@given(st.lists(step, max_size=40), st.booleans(), st.randoms(use_true_random=False))
def test_answers_reach_their_own_request_under_any_interleaving(
    steps: list[Any], shares_cores: bool, random: Any
) -> None:
    async def scenario() -> None:
        device = ManualDevice(lambda ids, point: random.random() < 0.5, shares_cores=shares_cores)
        audits: list[Audit] = []
        batcher = batcher_on(device, guards=Guards(0.9, 0.2, audits.append, random))
        requests: dict[int, tuple[Pending, int, int, bool]] = {}
        withdrawn: set[int] = set()
        failed: set[int] = set()
        for action, *arguments in steps:
            if action == "submit":
                lengths, max_width, priority, guaranteed = arguments
                number = len(requests)
                pending = batcher.submit(samples_of(number, lengths), Terms(max_width, priority, guaranteed))
                requests[number] = pending, len(lengths), max_width, guaranteed
            elif action == "finish" and device.batches:
                device.finish()
            elif action == "fail" and device.batches:
                failed |= device.fail()
            elif action == "withdraw" and requests:
                number = random.randrange(len(requests))
                batcher.withdraw(requests[number][0])
                requests[number][0].fail(ClientDisconnected())
                withdrawn.add(number)
            else:
                await settle()
                # Work-conserving: nobody waits while the device is free, and at most one batch waits for it.
                assert bool(device.batches) or batcher.load.items == 0
                assert len(device.batches) <= 2
        await settle()
        while device.batches:
            device.finish()
            await settle()
        assert batcher.load == Load(0, 0)
        for number, (pending, count, max_width, guaranteed) in requests.items():
            error = pending.answers.exception()
            if error is not None:
                assert number in (withdrawn if isinstance(error, ClientDisconnected) else failed)
                continue
            items = pending.answers.result().items
            assert [answer.probs for answer in items] == [[number, item] for item in range(count)]
            assert all(answer.point.width <= max_width for answer in items)
            assert guaranteed or not any(answer.escalated for answer in items)
            assert number not in failed

    asyncio.run(scenario())


async def test_while_a_batch_runs_the_next_one_gathers() -> None:
    device = ManualDevice()
    batcher = batcher_on(device)
    batcher.submit(samples_of(0, [5]), Terms(4, 0))
    await settle()
    for request in range(1, 5):
        batcher.submit(samples_of(request, [5]), Terms(4, 0))
        await settle()
    assert [len(samples) for samples, _ in device.batches] == [1]
    device.finish()
    await settle()
    assert [len(samples) for samples, _ in device.batches] == [4]
    device.finish()
    await batcher.close()


@pytest.mark.parametrize(
    ("shares_cores", "waiting", "together", "here"),
    [(True, 5, 2, [True, True]), (True, 6, 1, [True, False]), (True, 40, 1, [True, False]), (False, 5, 1, [False] * 2)],
)
async def test_on_shared_cores_who_is_answered_may_join_the_few_that_wait(
    shares_cores: bool, waiting: int, together: int, here: list[bool]
) -> None:
    device = ManualDevice(shares_cores=shares_cores)
    # A batch that is over and what waits for the next one are few up to ten tokens in all.
    batcher = batcher_on(device, tokens_per_second=10 / BRIEF_SECONDS)
    first = batcher.submit(samples_of(0, [5]), Terms(1))
    await settle()

    async def ask_again() -> None:
        await first.answers
        batcher.submit(samples_of(2, [2]), Terms(1))

    asking = asyncio.create_task(ask_again())
    batcher.submit(samples_of(1, [waiting]), Terms(1))
    device.finish()
    await settle()
    assert asking.done()
    assert [len(samples) for samples, _ in device.batches] == [together]
    assert device.here == here
    await finish_all(device, batcher)


@pytest.mark.parametrize("few", [True, False])
async def test_a_batcher_that_closes_leaves_no_audit_for_later(few: bool) -> None:
    device = ManualDevice(shares_cores=few)
    batcher = batcher_on(device, guards=Guards(0.9, 1))
    pending = batcher.submit(samples_of(0, [5]), Terms(1, guaranteed=True))
    await settle()
    device.finish()
    await pending.answers
    closing = asyncio.create_task(batcher.close())
    await settle()
    while not closing.done():
        device.finish()
        await settle()
    assert not device.batches


async def test_what_is_not_sure_goes_on_in_its_own_batch() -> None:
    device = ManualDevice(lambda ids, point: ids[1] > 0)
    batcher = batcher_on(device)
    first = batcher.submit(samples_of(0, [5, 5]), Terms(1, 0, guaranteed=True))
    await settle()
    device.finish()
    await settle()
    assert [answer.escalated for answer in first.answers.result().items] == [False, True]
    assert [answer.point for answer in first.answers.result().items] == [EARLY, PLAIN]
    assert [[(g.point, g.start, len(g.members)) for g in plan.groups] for plan in device.plans] == [
        [(EARLY, 0, 2)],
        [(LATER, EARLY.prefill, 1)],
        [(PLAIN, LATER.prefill, 1)],
    ]


async def test_an_audited_sample_that_is_escalated_counts_as_agreed() -> None:
    device = ManualDevice(lambda ids, point: True)
    audits: list[Audit] = []
    batcher = batcher_on(device, guards=Guards(0.9, 1, audits.append))
    pending = batcher.submit(samples_of(0, [5]), Terms(1, guaranteed=True))
    while not pending.answers.done():
        await settle()
        device.finish()
        await settle()
    assert pending.answers.result().items[0].escalated
    assert [(audit.width, audit.quality, audit.agreed) for audit in audits] == [(1, "guaranteed", True)]


@pytest.mark.parametrize(("waiting", "refused", "width"), [(8, 0, 4), (4, 0, 1), (4, 8, 4)])
async def test_a_crowd_is_multiplexed_though_it_is_refused_and_a_lone_sample_is_not(
    waiting: int, refused: int, width: int
) -> None:
    device = ManualDevice()
    plain = Rung(Menu((PLAIN,)), 0, 0.01)
    batcher = Batcher(
        device,
        MENU,
        AdaptiveMenu([plain], [plain, Rung(MENU, 0, 0.005)], BUDGET, patience=0.2),
        BUDGET,
        QueueLimits(waiting, 10**6),
        Metrics("test"),
        Guards(0.9, 0),
        FAST,
    )
    batcher.submit(samples_of(0, [5]), Terms(4, 0))
    await settle()
    batcher.submit(samples_of(1, [5] * waiting), Terms(4, 0))
    if refused:
        with pytest.raises(QueueFull):
            batcher.submit(samples_of(2, [5] * refused), Terms(4, 0))
    device.finish()
    await settle()
    assert [[group.point.width for group in plan.groups] for plan in device.plans] == [[1], [width]]
    device.finish()
    await batcher.close()


async def test_an_audit_costs_its_request_no_time() -> None:
    device = ManualDevice()
    audits: list[Audit] = []
    batcher = batcher_on(device, guards=Guards(0.9, 1, audits.append))
    fast = batcher.submit(samples_of(0, [5, 5]), Terms(2))
    sure = batcher.submit(samples_of(1, [5]), Terms(1, guaranteed=True))
    await settle()
    device.finish()
    late = batcher.submit(samples_of(2, [5]), Terms(0))
    await settle()
    answers = [*fast.answers.result().items, *sure.answers.result().items]
    assert [answer.point for answer in answers] == [TWO, TWO, EARLY]
    while device.batches:
        device.finish()
        await settle()
    assert late.answers.done()
    rest = [(group.point, group.start, len(group.members)) for plan in device.plans[1:] for group in plan.groups]
    assert rest[0] == (PLAIN, 0, 1)
    assert sorted(rest[1:]) == [(PLAIN, EARLY.prefill, 1), (PLAIN, TWO.prefill, 1), (PLAIN, TWO.prefill, 1)]
    assert sorted((audit.width, audit.quality, audit.agreed) for audit in audits) == [
        (1, "guaranteed", True),
        (2, "fast", True),
        (2, "fast", True),
    ]


async def test_a_server_that_is_never_idle_is_audited_all_the_same() -> None:
    device = ManualDevice()
    audits: list[Audit] = []
    batcher = batcher_on(device, guards=Guards(0.9, 1, audits.append))
    for request in range(200):
        batcher.submit(samples_of(request, [5]), Terms(1, guaranteed=True))
    await settle()
    while batcher.load.items:
        device.finish()
        await settle()
    assert len(audits) > 200 - 2 * AUDITS_HELD
    while device.batches:
        device.finish()
        await settle()
    assert len(audits) == 200


async def test_a_suspended_cascade_answers_nothing_but_is_audited() -> None:
    device = ManualDevice()
    audits: list[Audit] = []
    guards = Guards(0.9, 1, audits.append)
    while not guards.suspended:
        guards.observe(1, True, agreed=False)
    before = len(audits)
    batcher = batcher_on(device, guards=guards)
    pending = batcher.submit(samples_of(0, [5]), Terms(1, guaranteed=True))
    while not pending.answers.done():
        await settle()
        device.finish()
        await settle()
    assert pending.answers.result().items[0].point == PLAIN
    assert [(audit.width, audit.agreed) for audit in audits[before:]] == [(1, True)]


async def test_a_withdrawn_request_does_not_come_back_to_be_audited() -> None:
    device = ManualDevice()
    batcher = batcher_on(device, guards=Guards(0.9, 1))
    gone = batcher.submit(samples_of(0, [5]), Terms(1, 0, guaranteed=True))
    await settle()
    gone.fail(ClientDisconnected())
    batcher.withdraw(gone)
    device.finish()
    await settle()
    assert not device.batches
    assert batcher.load == Load(0, 0)


async def test_a_full_queue_hands_one_batch_over_early() -> None:
    device = ManualDevice()
    batcher = batcher_on(device)
    batcher.submit(samples_of(0, [10] * 20), Terms(4, 0))
    await settle()
    assert [len(samples) for samples, _ in device.batches] == [6, 6]
    assert batcher.load == Load(8, 80)


async def test_lower_priority_values_go_first() -> None:
    device = ManualDevice()
    batcher = batcher_on(device)
    for request, priority in enumerate([0, 5, -5]):
        batcher.submit(samples_of(request, [40]), Terms(4, priority))
    await settle()
    order = []
    while device.batches:
        order.append(device.batches[0][0][0].ids[0])
        device.finish()
        await settle()
    assert order == [2, 0, 1]


async def test_a_full_queue_refuses_and_says_when_to_return() -> None:
    batcher = batcher_on(ManualDevice(), max_items=2)
    batcher.submit(samples_of(0, [5, 5]), Terms(4, 0))
    with pytest.raises(QueueFull) as refused:
        batcher.submit(samples_of(1, [5]), Terms(4, 0))
    assert refused.value.headers == {"Retry-After": "1"}


async def test_who_cannot_be_answered_in_time_is_told_at_once() -> None:
    device = ManualDevice()
    batcher = batcher_on(device, max_items=100, tokens_per_second=100.0)
    # With nobody before it a request is tried, however little time it has.
    batcher.submit(samples_of(0, [40] * 3), Terms(PLAIN_ONLY, timeout=0.1))
    await settle()
    # 80 tokens run and 40 wait: with its own 1.4 s, and 0.1 for its batch to end, which is 0.8 of 1.875.
    with pytest.raises(QueueTooLong) as refused:
        batcher.submit(samples_of(1, [20]), Terms(PLAIN_ONLY, timeout=1.8))
    assert refused.value.headers == {"Retry-After": "1"}
    assert batcher.load == Load(1, 40)
    batcher.submit(samples_of(1, [20]), Terms(PLAIN_ONLY, timeout=1.9))
    # Ahead of all that waits, behind what runs.
    batcher.submit(samples_of(2, [20]), Terms(PLAIN_ONLY, priority=-1, timeout=1.4))
    # Lines of tenants take turns: behind what runs, and of the other line what is left of its turn.
    batcher.submit(samples_of(3, [20]), Terms(PLAIN_ONLY, tenant="other", timeout=1.75))
    await finish_all(device, batcher)


class ManualClock:
    """The batcher's clock, which the test moves on: a busy machine would look like a slow device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr("server.batcher.monotonic", lambda: self.seconds)


async def test_how_fast_the_device_is_it_shows_when_others_are_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    device, clock = ManualDevice(), ManualClock(monkeypatch)
    batcher = batcher_on(device)
    batcher.submit(samples_of(0, [40] * 200), Terms(PLAIN_ONLY))
    for _ in range(100):
        await settle()
        clock.seconds += 0.001
        device.finish()
    await settle()
    # Batches of 40 tokens took a millisecond; 4,000 wait, which are 4 ms at what was said at the start.
    batcher.submit(samples_of(1, [40]), Terms(PLAIN_ONLY, timeout=0.2))
    with pytest.raises(QueueTooLong):
        batcher.submit(samples_of(2, [40]), Terms(PLAIN_ONLY, timeout=0.05))
    await finish_all(device, batcher)


async def test_how_fast_it_is_a_batch_shows_that_was_handed_over_early(monkeypatch: pytest.MonkeyPatch) -> None:
    device, clock = ManualDevice(), ManualClock(monkeypatch)
    batcher = batcher_on(device, max_items=100, tokens_per_second=100.0)
    batcher.submit(samples_of(0, [BUDGET]), Terms(PLAIN_ONLY))
    await settle()
    for number in range(1, 100):
        # What waits is one batch, so that none leaves others waiting.
        batcher.submit(samples_of(number, [BUDGET]), Terms(PLAIN_ONLY))
        await settle()
        assert (len(device.batches), batcher.load) == (2, Load(0, 0))
        clock.seconds += 0.001
        device.finish()
        await settle()
    # At what was said at the start it would take as long again as it has.
    batcher.submit(samples_of(100, [BUDGET]), Terms(PLAIN_ONLY, timeout=0.5))
    await finish_all(device, batcher)


@given(
    st.lists(st.tuples(st.integers(2, 30), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([math.inf, 60, 20]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_a_failing_batch_fails_the_culprits_only(
    texts: list[tuple[int, bool]], memory: float, max_width: int, guaranteed: bool
) -> None:
    async def scenario() -> None:
        # Every text with a flag is answered with NaN, and those of more tokens than the memory holds with nothing.
        device = ManualDevice(broken=lambda ids: texts[ids[0]][1], memory=memory)
        batcher = batcher_on(device)
        terms = Terms(max_width, guaranteed=guaranteed)
        requests = [batcher.submit(samples_of(n, [length]), terms) for n, (length, _) in enumerate(texts)]
        await settle()
        while device.batches:
            device.finish()
            await settle()
        for number, (request, (length, broken)) in enumerate(zip(requests, texts, strict=True)):
            if broken or length > memory:
                assert isinstance(request.answers.exception(), InferenceFailed)
            else:
                assert request.answers.result().items[0].probs == [number, 0]

    asyncio.run(scenario())


async def test_only_the_culprits_composite_is_tried_again() -> None:
    device = ManualDevice(broken=lambda ids: ids[0] == 5)
    batcher = batcher_on(device)
    requests = [batcher.submit(samples_of(number, [5]), Terms(4)) for number in range(8)]
    await settle()
    while device.batches:
        device.finish()
        await settle()
    groups = [(group.point.width, len(group.members)) for plan in device.plans for group in plan.groups]
    assert groups == [(4, 8), (1, 2), (1, 2), (1, 1)]
    assert [type(request.answers.exception()) for request in requests] == [
        InferenceFailed if number == 5 else type(None) for number in range(8)
    ]
    assert [request.answers.result().items[0].point.width for request in requests[:5]] == [4, 4, 4, 4, 1]


async def test_a_lost_device_is_told_to_whoever_waits_and_to_the_owner() -> None:
    device = ManualDevice()
    batcher = batcher_on(device)
    pending = batcher.submit(samples_of(0, [5] * 3), Terms(4))
    await settle()
    _, future = device.batches.pop()
    future.set_exception(DeviceLost())
    await settle()
    assert batcher.lost.done()
    assert not device.batches
    assert isinstance(pending.answers.exception(), DeviceLost)


@pytest.mark.parametrize("max_width", [1, 2, 4])
async def test_the_real_engine_answers_as_the_classifier_does(tiny_bundle: Bundle, max_width: int) -> None:
    classifier = tiny_bundle.classifier
    points = served_points(classifier.points, classifier.backbone.num_layers)
    engine = Engine(tiny_bundle, points, torch.device("cpu"))
    menu = Menu(points)
    batcher = batcher_of(engine, menu)
    texts = [" ".join(["word1", "film", f"word{i}"] * (1 + i % 3)) for i in range(max_width)]
    samples = tiny_bundle.tokenizer([(text, None) for text in texts])
    answers = await batcher.submit(samples, Terms(max_width)).answers
    order = tuple(sorted(range(len(samples)), key=lambda i: len(samples[i])))
    point = next(point for point in points if point.width == max_width)
    expected = classifier(collate(samples, MuxPlan((Group(point, order),)), tiny_bundle.tokenizer.pad_id)).logits
    torch.testing.assert_close(torch.tensor([answer.logits for answer in answers.items]), expected)
    assert [answer.point.width for answer in answers.items] == [max_width] * max_width
    engine.close()


@pytest.mark.parametrize("backend", ["torch", "openvino"])
async def test_openvino_computes_where_it_may_unless_the_device_is_busy(
    calibrated_path: Path, backend: BackendName
) -> None:
    pytest.importorskip(backend)
    bundle = load_bundle(calibrated_path, backend=backend)
    point = bundle.classifier.plain
    engine = Engine(bundle, (point,), torch.device("cpu"))
    # As another model's is that was warmed up in its thread.
    beside = Engine(bundle, (point,), torch.device("cpu"), engine)
    beside.warm_up(64)
    here: list[bool] = []
    begun, let_go = threading.Event(), threading.Event()

    def note(*_: Any) -> None:
        here.append(threading.current_thread() is threading.main_thread())
        begun.set()
        let_go.wait(10)

    bundle.classifier.register_forward_hook(note)
    samples = bundle.tokenizer([("a good film", None)])
    steps = partial(Steps, [Waiting(len(samples[0]))], MuxPlan((Group(point, (0,)),)), Menu((point,)))
    busy = asyncio.create_task(engine.run(samples, steps(), here=False))
    await asyncio.to_thread(begun.wait, 10)
    behind = asyncio.create_task(beside.run(samples, steps(), here=True))
    await settle()
    assert here == [False]
    let_go.set()
    expected = (await busy).logits
    assert (await behind).logits == expected
    assert (await beside.run(samples, steps(), here=True)).logits == expected
    assert here == [False, False, backend == "openvino"]
    engine.close()


@pytest.mark.parametrize("max_batch_tokens", [1, 512, 10**9])
def test_the_warm_up_runs_all_points_at_one_composite_and_as_many_as_take_a_moment(
    tiny_bundle: Bundle, max_batch_tokens: int
) -> None:
    points = served_points(tiny_bundle.classifier.points, LAYERS)
    engine = Engine(tiny_bundle, points, torch.device("cpu"))
    timings = engine.warm_up(max_batch_tokens)
    engine.close()
    shapes = {(timing.point, timing.length) for timing in timings}
    alone = {(t.point, t.length): t for t in timings if t.rows == t.point.width}
    more = [timing for timing in timings if timing.rows > timing.point.width]
    assert set(alone) == shapes == set(itertools.product(points, {length for _, length in shapes}))
    assert len(more) == (0 if max_batch_tokens == 1 else len(shapes))
    for timing in more:
        fitting = WARM_UP_SECONDS / alone[timing.point, timing.length].seconds
        assert timing.rows // timing.point.width <= max(fitting, 2)
        assert timing.rows * timing.length * timing.point.ideal_cost(LAYERS) <= max_batch_tokens


async def test_cutting_a_batch_by_length_changes_no_answer(tiny_bundle: Bundle) -> None:
    plain, two, _ = tiny_bundle.classifier.points
    samples = tiny_bundle.tokenizer([(" ".join(["film"] * n), None) for n in (1, 30, 2, 9, 31, 8, 3)])
    plan = MuxPlan((Group(two, (0, 2, 3, 5)), Group(plain, (1, 4, 6))))
    engine = Engine(tiny_bundle, (two, plain), torch.device("cpu"))
    menu = Menu((two, plain))
    waiting = [Waiting(len(sample), audited=number in (2, 5)) for number, sample in enumerate(samples)]
    whole = await engine.run(samples, Steps(waiting, plan, menu), here=False)
    engine._part_cost = 0.0
    cut = await engine.run(samples, Steps(waiting, plan, menu), here=False)
    real = sum(map(len, samples))
    assert whole.padded_tokens == 7 * len(samples[4])
    assert real <= cut.padded_tokens < 1.1 * real
    torch.testing.assert_close(torch.tensor(cut.logits), torch.tensor(whole.logits))
    assert set(cut.kept) == set(whole.kept) == {2, 5}
    for number, states in whole.kept.items():
        torch.testing.assert_close(cut.kept[number].states, states.states)
    engine.close()


@pytest.mark.parametrize("sure", [(0.0, 0.0), (0.51, 0.51), (2.0, 0.0), (2.0, 2.0)])
async def test_a_cascade_ends_where_its_points_say_in_one_batch(tiny_bundle: Bundle, sure: tuple[float, float]) -> None:
    """0.0: every sample leaves at that point; 2.0: none does, and past both all get the plain model's own scores."""
    backbone, pad_id = tiny_bundle.classifier.backbone, tiny_bundle.tokenizer.pad_id
    torch.manual_seed(0)
    adapters = {
        point: make_adapters(backbone, point, make_multiplexer(EARLY_EXIT, 1, backbone.hidden_size), 0)
        for point in (EARLY, LATER)
    }
    classifier = MuxClassifier(backbone, adapters)
    cascade = Cascade((EARLY, LATER), sure, LAYERS)
    menu = Menu((PLAIN,), (cascade,))
    engine = Engine(replace(tiny_bundle, classifier=classifier), menu.points, torch.device("cpu"))
    samples = tiny_bundle.tokenizer([("film " * n + f"word{n}", None) for n in (1, 30, 2, 9, 31, 8, 3, 5)])
    answers = await batcher_of(engine, menu).submit(samples, Terms(1, guaranteed=True)).answers
    logits, left_at = run_cascade(classifier, samples, cascade, pad_id, 10_000)
    torch.testing.assert_close(torch.tensor([answer.logits for answer in answers.items]), logits)
    assert [answer.point for answer in answers.items] == [cascade.at(step) for step in left_at]
    assert [answer.escalated for answer in answers.items] == [step == len(cascade.points) for step in left_at]
    engine.close()


@pytest.mark.parametrize(("scope", "changes"), [("request", False), ("tenant", False), ("any", True)])
async def test_no_text_outside_the_scope_changes_an_answer(tiny_bundle: Bundle, scope: Any, changes: bool) -> None:
    menu = Menu(served_points(tiny_bundle.classifier.points, LAYERS))
    engine = Engine(tiny_bundle, menu.points, torch.device("cpu"))
    batcher = batcher_of(engine, menu, scope)
    own = tiny_bundle.tokenizer([("a good film", None), ("a bad film", None), ("not very good", None)])
    answers = []
    for word in ("word1", "word2"):
        # Of the same length, so that whatever changes is not the shape of the batch.
        others = tiny_bundle.tokenizer([(f"{word} {word} {word}", None)])
        mine = batcher.submit(own, Terms(4, tenant="mine"))
        batcher.submit(others, Terms(4, tenant="theirs"))
        answers.append([answer.logits for answer in (await mine.answers).items])
    assert (answers[0] != answers[1]) == changes
    engine.close()


async def test_nan_is_a_failed_request(tiny_bundle: Bundle) -> None:
    points = served_points(tiny_bundle.classifier.points, LAYERS)
    engine = Engine(tiny_bundle, points, torch.device("cpu"))
    menu = Menu(points)
    batcher = batcher_of(engine, menu)
    hook = tiny_bundle.classifier.register_forward_hook(
        lambda module, args, outcome: replace(outcome, logits=outcome.logits * torch.nan)
    )
    samples = tiny_bundle.tokenizer([("a film", None)])
    with pytest.raises(InferenceFailed):
        await batcher.submit(samples, Terms(4)).answers
    hook.remove()
    assert (await batcher.submit(samples, Terms(4)).answers).items[0].point.width == 1
    engine.close()
