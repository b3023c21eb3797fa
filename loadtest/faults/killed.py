"""Processes that are killed or stand still, and a machine without memory."""

from __future__ import annotations

import asyncio
import resource
import signal
import time

from loadtest.faults.load import Load, ask, is_right
from loadtest.faults.stage import Finding, Stage, broken, processes, send_signal, until
from loadtest.workload import joined, read_samples

FRONT_ENDS = 2
ENGINE, FRONT_END = "server.engine_process", "server.frontend"
STOP_SECONDS = 3.0
BATCH_TOKENS = 16384
SPARE_BYTES = 48 * 2**20
"""Memory that is left once a server is warm: less than what one layer of a full batch takes in float32, so that the
batch must fail, and more than its quarter takes."""
LONG_TEXTS = 32
LONG_WORDS = 500
"""More than the demo bundle's 512 tokens hold, so that all are cut to the same length and share a batch."""


async def engine_killed(stage: Stage) -> Finding:
    return await _killed(stage, ENGINE, "kills the engine with SIGKILL", "503")


async def front_end_killed(stage: Stage) -> Finding:
    return await _killed(stage, FRONT_END, "kills one of two front ends with SIGKILL", "ConnectionError")


async def engine_stopped(stage: Stage) -> Finding:
    return await _stopped(stage, ENGINE, "the engine")


async def front_end_stopped(stage: Stage) -> Finding:
    return await _stopped(stage, FRONT_END, "one of two front ends")


async def _killed(stage: Stage, module: str, did: str, seen: str) -> Finding:
    finding = Finding(f"`--http-workers {FRONT_ENDS}`; {did}")
    async with stage.serving(module, stage.command("--http-workers", str(FRONT_ENDS))) as server:
        victim = processes(server, module)[0]

        async def kill(load: Load) -> None:
            send_signal(victim, signal.SIGKILL)
            await until(lambda: not victim.is_alive())

        tally, finding.seconds = await broken(server, stage.known, kill, FRONT_ENDS)
        finding.tallies.append(tally)
        finding.expect(seen in tally.statuses(), f"no client saw {seen}")
        finding.expect(len(processes(server, module)) > 0, "nothing came in place of what was killed")
    finding.judge(seen, "ConnectionResetError")
    return finding


async def _stopped(stage: Stage, module: str, who: str) -> Finding:
    finding = Finding(f"`--http-workers {FRONT_ENDS}`; SIGSTOP to {who}, SIGCONT {STOP_SECONDS:g} s later")
    async with stage.serving(f"{module}-stopped", stage.command("--http-workers", str(FRONT_ENDS))) as server:
        victim = processes(server, module)[0]

        async def stop(load: Load) -> None:
            send_signal(victim, signal.SIGSTOP)
            await asyncio.sleep(STOP_SECONDS)
            send_signal(victim, signal.SIGCONT)

        tally, finding.seconds = await broken(server, stage.known, stop)
        finding.tallies.append(tally)
        finding.notes.append(f"the {STOP_SECONDS:g} s of standing still count")
    finding.judge()
    return finding


async def out_of_memory(stage: Stage) -> Finding:
    """Real: the system refuses what the allocator asks for, as the address space of the process is limited."""
    finding = Finding(
        f"`--max-batch-tokens {BATCH_TOKENS}`; RLIMIT_AS leaves {SPARE_BYTES // 2**20} MiB, then a request of "
        f"{LONG_TEXTS} texts of 512 tokens"
    )
    samples = [text for text in joined(read_samples(stage.data), 2 * LONG_WORDS) if len(text.text.split()) > LONG_WORDS]
    texts = [sample.text for sample in samples[:LONG_TEXTS]]
    command = stage.command("--width", "1", "--max-batch-tokens", str(BATCH_TOKENS))
    async with stage.serving("out-of-memory", command) as server:
        before = await ask(server.port, texts, size=8)

        async def starve(load: Load) -> None:
            size = _address_space(server.pid)
            resource.prlimit(server.pid, resource.RLIMIT_AS, (size + SPARE_BYTES, resource.RLIM_INFINITY))
            try:
                begun = time.monotonic()
                again = await ask(server.port, texts, size=LONG_TEXTS)
                finding.notes.append(f"{LONG_TEXTS} long texts took {time.monotonic() - begun:.1f} s")
                same = all(is_right(known, {"probs": one.probs}) for known, one in zip(before, again, strict=True))
                finding.expect(same, "a long text got another answer")
            finally:
                resource.prlimit(server.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        tally, finding.seconds = await broken(server, stage.known, starve)
        finding.tallies.append(tally)
    failed = (stage.out / "out-of-memory.log").read_text().count("can't allocate memory")
    finding.notes.append(f"the allocator failed {failed} times")
    finding.expect(failed > 0, "the allocator never failed")
    finding.judge()
    return finding


def _address_space(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
