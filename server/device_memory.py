"""A GPU's memory, read every few seconds. Not when metrics are asked for: that may be in a process without the GPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between readings: several in each of Prometheus's usual 15 to 60 s, at well under a millisecond each."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a GPU's memory: all it has; what anyone has `used` of it; what PyTorch's allocator has `reserved`, which
    is part of that; and what of this is `allocated` to tensors."""

    total: int
    used: int
    reserved: int
    allocated: int


class MemoryWatch:
    """Reports what `read` reads, at once and every `interval` seconds until it is closed, from a thread of its own."""

    def __init__(
        self,
        read: Callable[[], DeviceMemory],
        report: Callable[[DeviceMemory], None],
        interval: float = INTERVAL,
    ) -> None:
        self._read = read
        self._report = report
        self._interval = interval
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="revmux-memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            try:
                self._report(self._read())
            except RuntimeError:
                # A GPU that fails fails its batches too, and they say so; the next reading may go well.
                logger.exception("the device's memory cannot be read")
            if self._closed.wait(self._interval):
                return
