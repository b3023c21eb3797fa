"""Python's garbage collector, set for a process that answers requests."""

from __future__ import annotations

import gc

THRESHOLDS = 20_000, 20, 20
"""Objects that may come to be and not go until the youngest are looked at, and how often that happens until older ones
are. By default, at 700, every batch of requests that waits is gone through again and again, though hardly any of it is
garbage: an engine process carries 1.15 to 1.20 times as many requests with these (`docs/performance.md`)."""

DEFAULT_THRESHOLDS = gc.get_threshold()


def settle() -> None:
    """Has what collects garbage look at all that is there now, a model and the modules, once and never again, and gives
    back the memory of a model before it that only its own cycles hold.

    A full collection stops all threads; with the demo bundle it took 400 to 470 ms, and came every five seconds at full
    load: 8% of the time, and the reason why admitted requests were not answered in time.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def unsettle() -> None:
    """Has it work as it does by default again."""
    gc.unfreeze()
    gc.set_threshold(*DEFAULT_THRESHOLDS)
