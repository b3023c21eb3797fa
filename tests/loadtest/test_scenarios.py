import asyncio

import pytest

from loadtest.client import Client
from loadtest.scenarios import CapacityError, Comparison, Plan, compare

TEXTS = [f"text {i}" for i in range(20)]
PLAN = Plan(concurrencies=[1, 4], loads=[0.5], rounds=2, seconds=0.15, timeout_ms=60_000)


def server(delay: float, point: str, log: list[str], wrong: frozenset[str] = frozenset()):
    """Takes `delay` seconds a request, however many there are, and calls all texts good but those in `wrong`."""

    async def classify(text: str) -> tuple[str, str]:
        log.append(text)
        await asyncio.sleep(delay)
        return ("bad" if text in wrong else "good"), point

    return classify


async def test_servers_are_driven_alternately_and_compared(serve):
    plain_log: list[str] = []
    mux_log: list[str] = []
    plain_port = await serve(server(0.04, "n1-l6", plain_log))
    mux_port = await serve(server(0.01, "n2-l3", mux_log, wrong=frozenset(TEXTS[:5])))
    lines: list[str] = []
    async with Client(plain_port, TEXTS) as plain, Client(mux_port, TEXTS) as fast:
        result = await compare(plain, fast, ["good"] * len(TEXTS), PLAN, lines.append)

    assert sorted(plain_log[:20]) == sorted(mux_log[:20]) == sorted(TEXTS), "both begin with every sentence once"
    once = result.once.sides
    assert (once["plain"].accuracy, once["plain"].agreement) == (1, 1)
    assert (once["fast"].accuracy, once["fast"].agreement) == (0.75, 0.75)
    assert once["fast"].points == {"n2-l3": 20}

    assert [comparison.name for comparison in result.closed] == ["1 at once", "4 at once"]
    assert [line.split(": ")[0] for line in lines[1:5]] == [
        f"1 at once, round {number} of 2, {side}"
        for number, side in ((1, "plain"), (1, "fast"), (2, "fast"), (2, "plain"))
    ]
    assert all(comparison.speedup and comparison.speedup > 1 for comparison in result.closed)
    assert result.capacity == result.closed[1].sides["plain"].throughput
    (opened,) = result.open
    assert opened.rate == 0.5 * result.capacity
    assert opened.plain[0].requests == opened.fast[0].requests, "both see the same arrivals"
    assert result.unexpected_errors == 0


async def test_a_silent_plain_server_is_an_error(serve):
    async def refuse(text: str) -> tuple[str, str]:
        return "overloaded", "n1-l6"

    async with Client(await serve(refuse), TEXTS) as client, Client(await serve(refuse), TEXTS) as other:
        with pytest.raises(CapacityError, match="closed loop of 4"):
            await compare(client, other, [None] * len(TEXTS), Plan([4], [0.5], 1, 0.1, 60_000), lambda line: None)


def test_speedup_is_the_median_of_the_rounds_ratios(make_summary):
    plain = [make_summary(throughput) for throughput in (100, 50, 10)]
    fast = [make_summary(throughput) for throughput in (150, 60, 40)]
    assert Comparison("8 at once", None, plain, fast).speedup == 1.5
    assert Comparison("80% load", 80.0, plain, fast).speedup is None
    assert Comparison("8 at once", None, [make_summary(0)], [make_summary(1)]).speedup is None
