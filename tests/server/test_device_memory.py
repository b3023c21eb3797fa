"""Readings of a GPU's memory, from its driver to the metrics."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from revmux_core.bundle import load_bundle
from server.device_memory import DeviceMemory, MemoryWatch
from server.metrics import Metrics
from tests.server.running import running_server, wait_until


def test_a_reading_that_fails_is_followed_by_others() -> None:
    metrics = Metrics("test")
    readings = iter([DeviceMemory(80, 10, 5, 4), None, DeviceMemory(80, 30, 20, 18)])

    def read() -> DeviceMemory:
        memory = next(readings, DeviceMemory(80, 40, 30, 2))
        if memory is None:
            raise RuntimeError("the driver does not answer")
        return memory

    def exported() -> dict[str, float]:
        lines = metrics.render("")[0].decode().splitlines()
        return {line.split("{")[0]: float(line.split()[-1]) for line in lines if 'device="cuda:0"' in line}

    watch = MemoryWatch(read, partial(metrics.observe_device_memory, "cuda:0"), interval=0.01)
    expected = {"total": 80, "used": 40, "reserved": 30, "allocated": 2}
    wait_until(lambda: exported() == {f"revmux_device_memory_{kind}_bytes": size for kind, size in expected.items()}, 5)
    watch.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_server_on_a_gpu_exports_its_memory(tiny_bundle_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path, device="cuda")
    with running_server(lambda: bundle, device="cuda") as (client, _):
        wait_until(lambda: 'revmux_device_memory_total_bytes{device="cuda:0"}' in client.get("/metrics").text)
