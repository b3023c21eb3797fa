"""A part of the measurement: one curve's points, with the command that measured them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PARTS = ("length", "batch", "width", "classes", "connections", "inputs", "start")
ENGINE_PARTS, SERVED_PARTS = PARTS[:4], PARTS[4:6]


@dataclass(frozen=True, slots=True)
class Part:
    """`rows` are JSON: `x` is what grows (a number, or a point's name), `series` whose curve it is, the rest figures.

    Of the engine: `sequences_per_second`, `tokens_per_second` and `working_bytes`, the memory that a run takes beyond
    what the process holds. Of a server: `texts_per_second`, `p50_seconds`, `p99_seconds`, `peak_rss_bytes`, `requests`,
    `errors` (counts by status), `rounds` (the texts a second of each) and `generator_limits` (what the load generator
    was short of). Of `start`, where `series` names the options and `x` is not there: `start_seconds`, `idle_cores`
    (processor time a second), `peak_rss_bytes` and `rounds` (the seconds of each). A figure is None where the system
    does not tell.
    """

    command: str
    machine: dict[str, Any]
    rows: list[dict[str, Any]]
