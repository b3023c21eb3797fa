"""Drives one server after the other, round by round, with the same sentences.

By default only one server is up at a time, started anew for every visit: some peers poll while idle (Ray's daemons,
worker loops), and on few cores that would slow whoever is being measured. It costs a start a visit, and gives the start
time as often as everything else. A round goes through all servers, so that a drift of the machine's speed meets all
alike. Where it drifts within a round, as on a shared host, many short rounds say more than a few long ones: then all
servers stay up, and what the others use meanwhile is measured.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median

import uvloop

from loadtest.client import Client
from loadtest.measure import OK, Run, Summary, over_rounds, summarize
from loadtest.peers.environments import last_line
from loadtest.peers.peer import Peer, Setting
from loadtest.processes import cpu_seconds
from loadtest.scenarios import PASS_SECONDS
from loadtest.servers import HOST, Server, ServerError, raise_errors, started
from loadtest.wire import Wire
from loadtest.workload import poisson_arrivals, shuffled

HALF = 0.5
# Of what a server can answer at most: closer to it, latency says how long the run was.
BEARABLE = 0.9
# A server that needs longer than this for its first answer alone is asked again.
FIRST_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`concurrency` requests in flight for saturation; `seconds` a run, `rounds` of them.

    `rates` are loads, in requests a second, that all servers get alike. With `together` a server stays up from its
    first visit on, and answers every sentence once on that one only.
    """

    concurrency: int
    rounds: int
    seconds: float
    rates: tuple[float, ...] = ()
    together: bool = False


@dataclass(frozen=True, slots=True)
class Visit:
    """One round of one server. `passed` is every sentence once, where that was its turn, `half` the open loop at
    `half_rate` requests a second.

    `start_seconds` run from starting the process to the first right-formed answer. `rated` has the open loops at the
    plan's rates, None at one that is more than the server bears. `others_cpu_share`, of one core, is what the other
    servers that were up took meanwhile.
    """

    start_seconds: float
    peak_rss_bytes: int | None
    passed: Summary | None
    saturated: Summary
    half: Summary
    half_rate: float
    rated: tuple[Summary | None, ...] = ()
    others_cpu_share: float = 0.0


@dataclass(slots=True)
class Contender:
    """A server in the race: how it is started, what was measured, and why it was not, or not to the end."""

    peer: Peer
    setting: Setting
    version: str = "-"
    packages: Mapping[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    variables: dict[str, str] | None = None
    visits: list[Visit] = field(default_factory=list)
    problem: str | None = None

    @property
    def name(self) -> str:
        return f"{self.peer.title}, {self.setting.name}, {self.setting.precision}"

    def over_rounds(self) -> tuple[Summary, Summary, Summary]:
        """`passed`, `saturated` and `half` over all visits, of which there must be one."""
        return (
            over_rounds([visit.passed for visit in self.visits if visit.passed is not None]),
            over_rounds([visit.saturated for visit in self.visits]),
            over_rounds([visit.half for visit in self.visits]),
        )

    def at_rates(self) -> list[Summary | None]:
        """For each of the plan's rates what it came to over the visits that bore it, None where none did."""
        return [
            over_rounds(borne) if (borne := [summary for summary in own if summary is not None]) else None
            for own in zip(*(visit.rated for visit in self.visits), strict=True)
        ]

    def ratio_to(self, other: Contender) -> float | None:
        """Median over rounds of its saturation over the other's; None without a round that both have."""
        pairs = zip(self.visits, other.visits, strict=False)
        ratios = [m.saturated.throughput / o.saturated.throughput for m, o in pairs if o.saturated.throughput]
        return median(ratios) if ratios else None


def compare(
    contenders: Sequence[Contender],
    texts: Sequence[str],
    labels: Sequence[str | None],
    plan: Plan,
    logs: Path,
    progress: Callable[[str], None],
) -> None:
    """Visits all contenders without a problem, `plan.rounds` times; the first one is the reference of agreement.

    A contender that fails keeps its earlier visits, gets a problem, and is not visited again. Raises `ServerError`
    where the first fails before it has answered everything once.
    """
    reference: dict[int, str] = {}
    up: dict[int, Server] = {}
    with ExitStack() as kept, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number, (index, contender) in product(range(plan.rounds), enumerate(contenders)):
            if contender.problem is not None:
                continue
            progress(f"round {number + 1} of {plan.rounds}: {contender.name}")
            log = logs / f"{contender.peer.key}-{index}.log"
            try:
                with ExitStack() as own:
                    server = up.get(index)
                    if server is None:
                        server = (kept if plan.together else own).enter_context(_served(contender, texts, log))
                    if plan.together:
                        up[index] = server
                    others = [other for other in up.values() if other is not server]
                    visit = _visit(contender, server, others, texts, labels, reference, plan, number, runner)
                if contender.peer.requirements is None:
                    raise_errors(log)
            except ServerError as error:
                if contender is contenders[0]:
                    raise
                contender.problem = last_line(str(error))
                progress(f"  failed: {contender.problem}")
                continue
            contender.visits.append(visit)
            progress(f"  {visit.saturated.throughput:.1f} requests/s, started in {visit.start_seconds:.1f} s")


def _visit(
    contender: Contender,
    server: Server,
    others: Sequence[Server],
    texts: Sequence[str],
    labels: Sequence[str | None],
    reference: dict[int, str],
    plan: Plan,
    seed: int,
    runner: asyncio.Runner,
) -> Visit:
    wire = contender.setting.wire
    passed = None
    if not (plan.together and contender.visits):
        once = runner.run(_pass(server.port, wire, texts, plan))
        if not reference:
            reference.update({o.sample: o.label for o in once.outcomes if o.label is not None})
        passed = summarize(once, labels, reference)
    began, used = time.perf_counter(), _cpu_seconds(others)
    full, half, rate, rated = runner.run(_drive(server.port, wire, texts, plan, seed))
    others_share = (_cpu_seconds(others) - used) / (time.perf_counter() - began)
    saturated, halved = (summarize(run, labels, reference) for run in (full, half))
    at_rates = tuple(None if run is None else summarize(run, labels, reference) for run in rated)
    peak = server.peak_rss_bytes()
    return Visit(server.start_seconds, peak, passed, saturated, halved, rate, at_rates, others_share)


def _served(contender: Contender, texts: Sequence[str], log: Path) -> AbstractContextManager[Server]:
    wire = contender.setting.wire
    return started(contender.command, log, lambda port: answers(port, wire, texts[0]), contender.variables)


def _cpu_seconds(servers: Sequence[Server]) -> float:
    return sum(cpu_seconds(server.pid) or 0.0 for server in servers)


async def _pass(port: int, wire: Wire, texts: Sequence[str], plan: Plan) -> Run:
    """Every sentence once, which also warms the server up."""
    async with Client(port, texts, wire=wire) as client:
        return await client.closed_loop(iter(range(len(texts))), plan.concurrency, PASS_SECONDS)


async def _drive(
    port: int, wire: Wire, texts: Sequence[str], plan: Plan, seed: int
) -> tuple[Run, Run, float, list[Run | None]]:
    """Saturation, half of that, and the plan's rates."""
    async with Client(port, texts, wire=wire) as client:
        full = await client.closed_loop(shuffled(len(texts), seed), plan.concurrency, plan.seconds)
        answered = sum(o.status == OK and o.done <= full.seconds for o in full.outcomes)
        if not answered:
            statuses = ", ".join(sorted({outcome.status for outcome in full.outcomes}))
            raise ServerError(f"no request was answered with {plan.concurrency} in flight: {statuses}")
        rate = HALF * answered / full.seconds

        async def at(rate: float) -> Run:
            arrivals = poisson_arrivals(rate, plan.seconds, seed)
            return await client.open_loop(shuffled(len(texts), seed), arrivals, plan.seconds)

        half = await at(rate)
        rated = [await at(own) if own <= BEARABLE * rate / HALF else None for own in plan.rates]
    return full, half, rate, rated


def answers(port: int, wire: Wire, text: str | list[str]) -> bool:
    """Whether the server answers a request, in its format: what ready means to a client."""
    request = urllib.request.Request(
        f"http://{HOST}:{port}{wire.path}",
        json.dumps(wire.body(text)).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=FIRST_ANSWER_SECONDS) as response:
            wire.read(json.load(response))
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return False
    return True
