"""Python's garbage collector, set for a process that answers requests."""

from __future__ import annotations

import gc

THRESHOLDS = 20_000, 20, 20
"""Objects that may come to be and not go until the youngest are looked at, and how often that happens until older ones
are. By default, at 700, every batch of requests that waits is gone through again and again, though hardly any of it is
garbage: an engine process carries 1.15 to 1.20 times as many requests with these. Importing PyTorch and Transformers
takes 0.8 of the time: by default all that is there is looked at again and again (`docs/performance.md`)."""

DEFAULT_THRESHOLDS = gc.get_threshold()


def relax() -> None:
    """Has it look as seldom as `THRESHOLDS` say: before the modules are imported that take seconds."""
    gc.set_threshold(*THRESHOLDS)


def settle() -> None:
    """Has it never look again at what is there now: modules, before the first model is loaded.

    A full collection stops all threads. With modules and a model it took 250 to 470 ms, and came every five seconds at
    full load: 8% of the time, and the reason why admitted requests were not answered in time.
    """
    relax()
    gc.freeze()


def clear() -> None:
    """Gives back at once what loading a model left, and a model before it that only its own cycles hold: some ms where
    modules are not looked at."""
    gc.collect()


def unsettle() -> None:
    """Has it work as it does by default again."""
    gc.unfreeze()
    gc.set_threshold(*DEFAULT_THRESHOLDS)
