"""A wall clock that jumps."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import subprocess
import time
import urllib.request
from pathlib import Path

from loadtest.faults.load import Load
from loadtest.faults.stage import WARM_ANSWERS, Finding, SkippedError, Stage, broken
from loadtest.servers import HOST

SOURCE = Path(__file__).with_name("clock.c")
JUMP_HOURS = (6, -12)


async def clock_jump(stage: Stage) -> Finding:
    """The time of day that the server sees jumps ahead and back while it works; the monotonic clock does not, as no
    setting of a system's time moves that.

    Not with libfaketime: it stands between threads' waits, too, and a server under it answered nothing in 30 s.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise SkippedError("a C compiler (cc) is needed, for what stands between the server and its clock")
    library, offset = stage.out / "clock.so", stage.out / "clock.offset"
    await asyncio.to_thread(
        subprocess.run, [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE)], check=True
    )
    finding = Finding(
        f"the time of day jumps to {JUMP_HOURS[0]} hours ahead, then to {-JUMP_HOURS[1]} hours behind, for the server "
        "only (a preloaded library); the monotonic clock stays"
    )
    offset.write_bytes(struct.pack("d", 0))
    environment = [f"LD_PRELOAD={library.resolve()}", f"CLOCK_OFFSET={offset.resolve()}"]
    async with stage.serving("clock-jump", ["env", *environment, *stage.command()]) as server:

        async def jump(load: Load) -> None:
            for hours in JUMP_HOURS:
                with offset.open("r+b") as file:
                    file.write(struct.pack("d", 3600 * hours))
                await load.more(WARM_ANSWERS)
                ahead = (_created(server.port) - time.time()) / 3600
                finding.notes.append(f"the server's clock was {ahead:+.1f} hours off")
                finding.expect(abs(ahead - hours) < 0.1, "the server's clock did not jump")

        tally, finding.seconds = await broken(server, stage.known, jump)
        finding.tallies.append(tally)
    finding.judge()
    return finding


def _created(port: int) -> float:
    """When the server says that it answered."""
    body = json.dumps({"input": "a film", "timeout_ms": 5000}).encode()
    request = urllib.request.Request(f"http://{HOST}:{port}/classify", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return float(json.load(response)["created"])
