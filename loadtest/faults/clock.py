"""A wall clock that jumps."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

from loadtest.faults.load import Load
from loadtest.faults.stage import Finding, SkippedError, Stage, broken
from loadtest.servers import HOST

PLACES = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), Path("/usr/lib/faketime/libfaketimeMT.so.1")]
JUMP_HOURS = (6, -12)


async def clock_jump(stage: Stage) -> Finding:
    """The time of day that the server sees jumps ahead and back while it works; the monotonic clock does not, as no
    adjustment of a system's time moves that."""
    library = stage.faketime or next((place for place in PLACES if place.is_file()), None)
    if library is None:
        raise SkippedError("libfaketime is not installed: install it (Debian: libfaketime) or name it with --faketime")
    finding = Finding(f"the time of day jumps by {JUMP_HOURS[0]:+} and by {JUMP_HOURS[1]:+} hours (libfaketime)")
    offset = stage.out / "clock.offset"
    offset.write_text("+0")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset.resolve()),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), *stage.command()]
    async with stage.serving("clock-jump", command) as server:

        async def jump(load: Load) -> None:
            for hours in JUMP_HOURS:
                offset.write_text(f"{hours:+}h")
                await load.more(200)
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
