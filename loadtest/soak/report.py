"""The report of a soak and a burst: Markdown, JSON and a picture, and whether what was promised held."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from loadtest.machine import Machine
from loadtest.measure import percentile
from loadtest.soak.drive import CALM_FACTOR, CALM_PROBES, CONCURRENCY, EXACT_SHARE, Burst, Soak
from loadtest.soak.tally import WINDOW_SECONDS, Memory, Tally, read_memory

MAX_GROWTH = 1.05
"""Times the first quarter's median memory that the last quarter's may be: allocators hold some percent more or less."""
COLORS = {"answered": "#1f6feb", "refused": "#9aa5b1", "memory": "#2da44e"}


@dataclass(frozen=True, slots=True)
class Report:
    """`capacity` is in requests a second, `load` a share of it. `counted` is what the server counted of the soak by
    status; `queue` and `probe` are its queue's items and the seconds of a request right after it."""

    bundle: str
    info: Mapping[str, Any]
    machine: Machine
    capacity: float
    load: float
    seconds: float
    timeout_ms: float
    connections: int
    soak: Soak
    counted: dict[int, int]
    queue: float
    probe: float | None
    burst: Burst | None

    @property
    def memory(self) -> Memory | None:
        """None where the system does not tell."""
        return read_memory(self.soak.memory) if len(self.soak.memory) >= 4 else None

    def verdicts(self) -> dict[str, bool]:
        """Each promise, and whether it held."""
        tally, memory = self.soak.tally, self.memory
        found = _told(tally)
        found["what the client counts is what the server counts"] = tally.statuses() == self.counted
        found["p99 of admitted requests is within the deadline"] = (tally.quantile(0.99) or 0) <= self.timeout_ms / 1000
        if memory is not None:
            found["memory is flat"] = memory.last <= MAX_GROWTH * memory.first
        found["afterwards the queue is empty and a probe is answered"] = self.queue == 0 and self.probe is not None
        agreement, certified = tally.agreement, self.info["certified_agreement"]
        if certified is not None and agreement is not None:
            found[f"guaranteed answers agree at least to the certified {certified:.1%}"] = agreement >= certified
        if self.burst is not None:
            found |= {f"burst: {promise}": held for promise, held in _told(self.burst.tally).items()}
            found["burst: latency is back to normal"] = self.burst.calm is not None
        return found


def write(report: Report, out: Path) -> None:
    """Writes `soak.md`, `soak.json` and `soak.png`."""
    _plot(report, out / "soak.png")
    (out / "soak.md").write_text(_page(report))
    (out / "soak.json").write_text(json.dumps(_figures(report), indent=1) + "\n")


def _told(tally: Tally) -> dict[str, bool]:
    return {
        "every request was answered, refused with Retry-After or told that its time was up": not tally.other,
        "every exact answer is the plain model's": tally.equal == tally.exact,
    }


def _page(report: Report) -> str:
    info, memory = report.info, report.memory
    lines = [
        "# Soak and burst",
        "",
        f"`{Path(report.bundle).name}`, backend {info['backend']} in {info['dtype']}, on {report.machine.cpu}, "
        f"{report.machine.cores} cores that the load generator shares. Capacity, in a closed loop of {CONCURRENCY}: "
        f"{report.capacity:.0f} requests a second, of which {EXACT_SHARE:.0%} ask for exact answers. Every request has "
        f"{report.timeout_ms:.0f} ms; latencies count from when a request was due. At most {report.connections} are in "
        "flight.",
        "",
        "![Rates, latencies and memory over time](soak.png)",
        "",
        "| promise | held |",
        "| --- | --- |",
        *(f"| {promise} | {'yes' if held else '**no**'} |" for promise, held in report.verdicts().items()),
        "",
        f"## {report.load:.0%} of capacity for {report.seconds / 60:g} minutes",
        "",
        *_accounts(report.soak.tally, report.soak.cpu_share),
    ]
    if memory is not None:
        lines += [
            f"| memory, median of the first and last quarter | {_mib(memory.first)}, {_mib(memory.last)} |",
            f"| memory, trend | {60 * memory.slope / 2**20:+.2f} MiB a minute |",
            f"| memory, most | {_mib(memory.peak)} |",
        ]
    lines.append(f"| a probe right afterwards | {_ms(report.probe)} |")
    if report.burst is not None:
        burst = report.burst
        lines += [
            "",
            f"## {burst.rate / report.capacity:.0f} times capacity for a second",
            "",
            *_accounts(burst.tally, burst.cpu_share),
            f"| the generator had sent the last after | {burst.sent:.1f} s |",
            f"| all were told after | {burst.told:.1f} s |",
            f"| p99 of single requests before | {_ms(burst.usual)} |",
            f"| from when on {CALM_PROBES} in a row were within {CALM_FACTOR:g} times that | "
            f"{'-' if burst.calm is None else f'{burst.calm:.1f} s'} |",
        ]
    return "\n".join([*lines, ""])


def _accounts(tally: Tally, cpu_share: float) -> list[str]:
    agreement = "-" if tally.agreement is None else f"{tally.agreement:.2%} of {tally.guaranteed}"
    sent = max(tally.sent, 1)
    return [
        "| figure | |",
        "| --- | ---: |",
        f"| requests | {tally.sent} |",
        f"| answered | {tally.answered} ({tally.answered / sent:.1%}) |",
        f"| refused: 429 with Retry-After | {tally.refused} ({tally.refused / sent:.1%}) |",
        f"| expired: 504 | {tally.expired} ({tally.expired / sent:.2%}) |",
        f"| other | {', '.join(f'{count} {status}' for status, count in tally.other.items()) or 0} |",
        f"| p50 and p99 of admitted ones | {_ms(tally.quantile(0.5))}, {_ms(tally.quantile(0.99))} |",
        f"| exact answers that are the plain model's | {tally.equal} of {tally.exact} |",
        f"| guaranteed answers that are | {agreement} |",
        f"| answers by point | {', '.join(f'`{point}` {count}' for point, count in tally.points.most_common())} |",
        f"| the generator used | {cpu_share:.0%} of a core |",
    ]


def _figures(report: Report) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "bundle": Path(report.bundle).name,
        "backend": report.info["backend"],
        "dtype": report.info["dtype"],
        "capacity": report.capacity,
        "load": report.load,
        "seconds": report.seconds,
        "timeout_ms": report.timeout_ms,
        "verdicts": report.verdicts(),
        "soak": _counts(report.soak.tally),
        "probe_seconds": report.probe,
        "queue_items": report.queue,
        "rss_bytes": report.soak.memory,
    }
    if report.burst is not None:
        burst = report.burst
        times = {"sent": burst.sent, "told": burst.told, "usual_p99": burst.usual, "calm": burst.calm}
        figures["burst"] = {"rate": burst.rate, **times, **_counts(burst.tally)}
    return figures


def _counts(tally: Tally) -> dict[str, Any]:
    names = ("sent", "answered", "refused", "expired", "exact", "equal", "guaranteed", "agreeing")
    return {
        **{name: getattr(tally, name) for name in names},
        "other": dict(tally.other),
        "points": dict(tally.points),
        "p50_seconds": tally.quantile(0.5),
        "p99_seconds": tally.quantile(0.99),
    }


def _plot(report: Report, path: Path) -> None:
    """Three panels over time, every axis from zero: rates; p50 and p99 beside the deadline; memory."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    rates, latencies, memory = figure.subplots(1, 3)
    # The last one is short.
    windows = sorted(report.soak.tally.windows.items())[:-1]
    minutes = [number * WINDOW_SECONDS / 60 for number, _ in windows]
    sent = [window.sent / WINDOW_SECONDS for _, window in windows]
    rates.plot(minutes, sent, color=COLORS["refused"], label="sent")
    answered = [window.answered / WINDOW_SECONDS for _, window in windows]
    rates.plot(minutes, answered, color=COLORS["answered"], label="answered")
    rates.set_title("Requests a second")
    for share, style in ((0.5, "--"), (0.99, "-")):
        values = [1000 * (percentile(window.admitted, share) or math.nan) for _, window in windows]
        latencies.plot(minutes, values, style, color=COLORS["answered"], label=f"p{100 * share:g}")
    latencies.axhline(report.timeout_ms, color=COLORS["refused"], label="deadline")
    latencies.set_title("Latency of admitted requests, ms")
    samples = report.soak.memory
    memory.plot([m / 60 for m, _ in samples], [held / 2**20 for _, held in samples], color=COLORS["memory"])
    memory.set_title("Memory of the server, MiB")
    for axes in (rates, latencies, memory):
        axes.set_ylim(bottom=0)
        axes.set_xlabel("minutes")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (rates, latencies):
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def _mib(held: float) -> str:
    return f"{held / 2**20:.0f} MiB"
