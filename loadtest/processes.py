"""A process and all that it has started, from /proc."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """`started` is in the kernel's ticks since boot: it tells a process from a later one with the same number."""

    pid: int
    parent: int
    started: int

    def is_alive(self) -> bool:
        now = _read(self.pid)
        return now is not None and now.started == self.started


def tree(pid: int) -> list[Process]:
    """The process and its living descendants; empty where it is gone, or the system has no /proc."""
    everyone = [process for entry in _PROC.glob("[0-9]*") if (process := _read(int(entry.name))) is not None]
    found = [process for process in everyone if process.pid == pid]
    for ancestor in found:
        found += [process for process in everyone if process.parent == ancestor.pid]
    return found


def peak_rss_bytes(pid: int) -> int | None:
    """The sum of the most memory that each process of the tree has held: memory that they share counts for each, and
    their peaks may lie apart, so it is an upper bound of what the tree held. None where /proc does not tell."""
    peaks = [peak for process in tree(pid) if (peak := _status(process.pid, "VmHWM")) is not None]
    return sum(peaks) if peaks else None


def rss_bytes(pid: int) -> int | None:
    """The memory that the tree's processes hold now, each with what it shares; None where /proc does not tell."""
    held = [now for process in tree(pid) if (now := _status(process.pid, "VmRSS")) is not None]
    return sum(held) if held else None


def reset_peaks(pid: int) -> None:
    """Sets the peak that `peak_rss_bytes` reads to what each process of the tree holds now, where that can be done."""
    for process in tree(pid):
        with suppress(OSError):
            # See proc_pid_clear_refs(5).
            (_PROC / str(process.pid) / "clear_refs").write_text("5")


def cpu_seconds(pid: int) -> float | None:
    """Processor time of all threads in the tree that still run; None where /proc does not tell."""
    times = thread_seconds(pid)
    return sum(times.values()) if times else None


def thread_seconds(pid: int) -> dict[tuple[int, int], float]:
    """Processor time, to the nanosecond, of each thread in the tree that still runs, by the numbers of its process and
    its own, which are the same for a process's main thread. Empty where /proc does not tell."""
    times = {}
    for process in tree(pid):
        for thread in (_PROC / str(process.pid) / "task").glob("*/schedstat"):
            with suppress(OSError):
                times[process.pid, int(thread.parent.name)] = int(thread.read_text().split()[0]) / 1e9
    return times


def command_of(pid: int) -> list[str]:
    """What the process was started with; empty where it is gone, or the system has no /proc."""
    try:
        return (_PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _read(pid: int) -> Process | None:
    try:
        # The name before the last bracket may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie has ended and holds nothing.
    return None if fields[0] == "Z" else Process(pid, parent=int(fields[1]), started=int(fields[19]))


def _status(pid: int, field: str) -> int | None:
    """A field of `/proc/PID/status` that is in kB, in bytes."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else None
