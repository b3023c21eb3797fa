"""What one of our own servers counts of itself, from its `/metrics`."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter

from loadtest.servers import HOST

_REQUESTS = re.compile(r'revmux_requests_total\{path="(.*)",status="(\d+)"\}')


def read_metrics(port: int, timeout: float = 10) -> dict[str, float]:
    """The value of every series, by its name and labels as they stand there. Raises `OSError` where none come within
    `timeout` seconds."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=timeout) as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def requests_by_status(metrics: dict[str, float]) -> dict[str, Counter[int]]:
    """Answered requests by path and HTTP status; paths that it does not know are one, `unknown`."""
    found: dict[str, Counter[int]] = {}
    for series, value in metrics.items():
        if match := _REQUESTS.fullmatch(series):
            found.setdefault(match[1], Counter())[int(match[2])] += int(value)
    return found
