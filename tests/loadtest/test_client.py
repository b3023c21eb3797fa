import asyncio
import sys

import pytest

from loadtest.client import Client
from loadtest.generators import generators, shares_of
from loadtest.measure import OK, percentile
from loadtest.workload import shuffled


class Stall:
    """Answers at once, but holds back whatever arrives within `seconds` of the first request until they are over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.over: asyncio.Task[None] | None = None

    async def __call__(self, text: str) -> tuple[str, str]:
        self.over = self.over or asyncio.create_task(asyncio.sleep(self.seconds))
        await self.over
        return "good", "n1-l6"


async def test_closed_loop_keeps_its_concurrency(serve):
    open_now = most = 0

    async def slow(text: str) -> tuple[str, str]:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.05)
        open_now -= 1
        return text, "n2-l3"

    async with Client(await serve(slow), ["zero", "one", "two"]) as client:
        run = await client.closed_loop(shuffled(3, seed=0), concurrency=4, seconds=0.4)
    assert most == 4
    # 4 in flight, 50 ms each, 400 ms: at most 8 waves.
    assert 12 <= len(run.outcomes) <= 32
    assert all(o.latency >= 0.049 and o.lateness < 0.05 for o in run.outcomes)
    assert all(o.label == ["zero", "one", "two"][o.sample] and o.point == "n2-l3" for o in run.outcomes)
    assert run.seconds == 0.4
    assert run.loop_lags
    assert run.cpu_share > 0


async def test_closed_loop_ends_with_its_order(serve):
    async def echo(text: str) -> tuple[str, str]:
        return text, "n1-l6"

    async with Client(await serve(echo), list("abcde")) as client:
        run = await client.closed_loop(iter(range(5)), concurrency=2, seconds=30)
    assert sorted(o.sample for o in run.outcomes) == [0, 1, 2, 3, 4]
    assert run.seconds < 5


@pytest.mark.parametrize("processes", [1, 2])
async def test_processes_share_what_is_in_flight(serve, processes):
    open_now, seen = 0, []

    async def slow(text: str) -> tuple[str, str]:
        nonlocal open_now
        open_now += 1
        seen.append(open_now)
        await asyncio.sleep(0.05)
        open_now -= 1
        return text, "n1-l6"

    def drive() -> None:
        with generators(processes) as load:
            run = load.closed_loop(port, ["zero", "one", "two"], concurrency=3, seconds=0.4, seed=7)
        assert len(run.outcomes) == len(seen)
        assert all(o.label == ["zero", "one", "two"][o.sample] for o in run.outcomes)
        assert run.seconds == 0.4
        assert 0 < run.cpu_share < 1

    port = await serve(slow)
    await asyncio.to_thread(drive)
    # Each alone would have two at most.
    assert max(seen) == 3


def test_shares_of_what_is_in_flight():
    assert shares_of(7, 3) == [3, 2, 2]
    assert shares_of(1, 2) == [1, 0]


async def test_drive_prints_a_row_a_run(serve, tmp_path):
    async def echo(text: str) -> tuple[str, str]:
        return text, "n1-l6"

    (tmp_path / "texts.txt").write_text("good\nbad\n")
    command = [sys.executable, "-m", "loadtest.drive", "--data", str(tmp_path / "texts.txt"), "--seconds", "0.5"]
    command += ["--port", str(await serve(echo)), "--processes", "2", "--concurrency", "2", "--concurrency"]
    for most, ended in (("4", 0), ("2000", 2)):
        process = await asyncio.create_subprocess_exec(*command, most, stdout=-1, stderr=-1)
        out, errors = await process.communicate()
        assert process.returncode == ended, errors
        if ended:
            assert b"2000 in flight take --processes 4" in errors
        else:
            rows = out.decode().splitlines()
            assert [row.split(" | ")[0] for row in rows[2:]] == ["| 2", "| 4"]
            assert all(row.endswith("| 0 |") for row in rows[2:])


async def test_open_loop_counts_from_the_intended_send_time(serve):
    """Coordinated omission: a stall of 400 ms must show in every request that was due meanwhile.

    One connection is all there is, so the requests behind the stalled one cannot even be sent.
    """
    arrivals = [i * 0.01 for i in range(50)]
    async with Client(await serve(Stall(0.4)), ["a"], connections=1) as client:
        opened = await client.open_loop(shuffled(1, seed=0), arrivals, seconds=0.5)
    async with Client(await serve(Stall(0.4)), ["a"], connections=1) as client:
        closed = await client.closed_loop(shuffled(1, seed=0), concurrency=1, seconds=0.5)

    assert [o.due for o in opened.outcomes] == arrivals
    for outcome in opened.outcomes[:40]:
        assert outcome.latency >= 0.39 - outcome.due
    assert opened.outcomes[20].lateness >= 0.19
    assert (percentile([o.latency for o in opened.outcomes], 0.5) or 0) > 0.1
    # The closed loop saw one slow request and no more.
    assert sum(o.latency > 0.3 for o in closed.outcomes) == 1


async def test_failures_are_told_apart(serve, unused_tcp_port, monkeypatch):
    async def behaviour(text: str) -> tuple[str, str]:
        if text == "slow":
            await asyncio.sleep(0.3)
        return text, "n1-l6"

    monkeypatch.setattr("loadtest.client.REQUEST_TIMEOUT_SECONDS", 0.1)
    async with Client(await serve(behaviour), ["good", "overloaded", "slow"]) as client:
        run = await client.closed_loop(iter([0, 1, 2, 0]), concurrency=1, seconds=5)
    assert [o.status for o in run.outcomes] == [OK, "429", "timeout", OK]
    async with Client(unused_tcp_port, ["good"]) as client:
        run = await client.closed_loop(iter([0]), concurrency=1, seconds=5)
    assert [o.status for o in run.outcomes] == ["ConnectionRefusedError"]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n[]", "malformed answer"),
        (b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 12\r\n\r\n{"data": []}', "malformed answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ncut", "ConnectionError"),
        (b"nonsense\r\n\r\n", "ConnectionError"),
        (b"", "ConnectionError"),
    ],
)
async def test_anything_but_a_whole_answer_is_a_failure(raw, status):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(raw)
        writer.close()

    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        Client(server.sockets[0].getsockname()[1], ["good"]) as client,
    ):
        run = await client.closed_loop(iter([0, 0]), concurrency=1, seconds=5)
    assert [o.status for o in run.outcomes] == [status, status]
