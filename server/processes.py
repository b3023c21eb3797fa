"""What the operating system says of a server's processes together, under the names that Prometheus has for one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import Metric, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

CPU = "process_cpu_seconds"
"""The one that a process takes along when it ends."""

SUMMED = (CPU, "process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds")


class ProcessTree(Collector):
    """Sums over this process's parent, the supervisor, and its children, whose live gauges are in the folder `shared`.

    CPU seconds hold those of the children that ended, so that they never fall. The start time and the limit of open
    files are the supervisor's.
    """

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        self._supervisor = os.getppid()

    def collect(self) -> Iterable[Metric]:
        whole = {metric.name: metric for metric in _measure(self._supervisor)}
        if CPU in whole:
            ended = CounterMetricFamily(CPU, whole[CPU].documentation, _seconds_of_ended(self._supervisor))
            _add(whole[CPU], ended)
        for pid in self._children():
            for metric in _measure(pid):
                if metric.name in SUMMED and metric.name in whole:
                    _add(whole[metric.name], metric)
        return whole.values()

    def _children(self) -> Iterator[int]:
        for path in self._shared.glob("gauge_livesum_*.db"):
            yield int(path.stem.rpartition("_")[2])


def _measure(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()


def _add(total: Metric, own: Metric) -> None:
    first, second = total.samples[0], own.samples[0]
    total.samples[0] = first._replace(value=first.value + second.value)


def _seconds_of_ended(pid: int) -> float:
    """CPU seconds of the children of `pid` that ended and were waited for; 0 where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # cutime and cstime, fields 16 and 17 of proc(5); the first after the name is field 3.
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
