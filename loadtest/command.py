"""What the load tests' commands have in common."""

from __future__ import annotations

import signal
import sys


def end_on_sigterm() -> None:
    """Has SIGTERM unwind the stack, so that servers are stopped: the default would leave them running."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def say(line: str) -> None:
    """On standard error, at once."""
    print(line, file=sys.stderr, flush=True)
