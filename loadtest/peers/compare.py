"""Drives one server after the other, round by round, with the same sentences.

Only one server is up at a time, started anew for every visit: some peers poll while idle (Ray's daemons, worker
loops), and on few cores that would slow whoever is being measured. It costs a start a visit, and gives the start time
as often as everything else. A round goes through all servers, so that a drift of the machine's speed meets all alike.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import uvloop

from loadtest.client import Client
from loadtest.measure import OK, Run, Summary, over_rounds, summarize
from loadtest.peers.environments import last_line
from loadtest.peers.peer import Peer, Setting
from loadtest.scenarios import PASS_SECONDS
from loadtest.servers import HOST, ServerError, raise_errors, started
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

    `rates` are loads, in requests a second, that all servers get alike.
    """

    concurrency: int
    rounds: int
    seconds: float
    rates: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Visit:
    """One round of one server. `passed` is every sentence once, `half` the open loop at `half_rate` requests a second.

    `start_seconds` run from starting the process to the first right-formed answer. `rated` has the open loops at the
    plan's rates, None at one that is more than the server bears.
    """

    start_seconds: float
    peak_rss_bytes: int | None
    passed: Summary
    saturated: Summary
    half: Summary
    half_rate: float
    rated: tuple[Summary | None, ...] = ()


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
            over_rounds([visit.passed for visit in self.visits]),
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
    for number in range(plan.rounds):
        for index, contender in enumerate(contenders):
            if contender.problem is not None:
                continue
            progress(f"round {number + 1} of {plan.rounds}: {contender.name}")
            log = logs / f"{contender.peer.key}-{index}.log"
            try:
                visit = _visit(contender, texts, labels, reference, plan, number, log)
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
    texts: Sequence[str],
    labels: Sequence[str | None],
    reference: dict[int, str],
    plan: Plan,
    seed: int,
    log: Path,
) -> Visit:
    wire = contender.setting.wire
    with (
        started(contender.command, log, lambda port: answers(port, wire, texts[0]), contender.variables) as server,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        once, full, half, rate, rated = runner.run(_drive(server.port, wire, texts, plan, seed))
        peak = server.peak_rss_bytes()
    if contender.peer.requirements is None:
        raise_errors(log)
    if not reference:
        reference.update({o.sample: o.label for o in once.outcomes if o.label is not None})
    passed, saturated, halved = (summarize(run, labels, reference) for run in (once, full, half))
    at_rates = tuple(None if run is None else summarize(run, labels, reference) for run in rated)
    return Visit(server.start_seconds, peak, passed, saturated, halved, rate, at_rates)


async def _drive(
    port: int, wire: Wire, texts: Sequence[str], plan: Plan, seed: int
) -> tuple[Run, Run, Run, float, list[Run | None]]:
    """Every sentence once, which also warms the server up, then saturation, half of that, and the plan's rates."""
    async with Client(port, texts, wire=wire) as client:
        once = await client.closed_loop(iter(range(len(texts))), plan.concurrency, PASS_SECONDS)
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
    return once, full, half, rate, rated


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
