"""A replica of Ray Serve writes the logs and sends the traces that its settings and environment ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_traces import SENT_SPAN, SENT_TRACE, collector

from tests.server.running import wait_until

pytest.importorskip("ray.serve", reason="needs the extra ray")
pytest.importorskip("opentelemetry.exporter", reason="needs the extra otel")

ROOT = Path(__file__).parents[2]
DRIVER = f"""
import sys, urllib.request
import ray
from ray import serve
from loadtest.servers import HOST, free_port
from server.ray_serve import application

started = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
port = free_port()
serve.start(http_options={{"host": HOST, "port": port}})
# No other point was measured to agree so often, which is a line in the log.
serve.run(application({{"bundle": sys.argv[1], "log_format": "json", "min_agreement": 0.99}}))
headers = {{"content-type": "application/json", "traceparent": "00-{SENT_TRACE}-{SENT_SPAN}-01"}}
request = urllib.request.Request(f"http://{{HOST}}:{{port}}/classify", b'{{"input": "a b"}}', headers)
urllib.request.urlopen(request, timeout=30).close()
print(started.address_info["session_dir"], flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(120)
def test_a_replica_logs_and_traces_as_the_server_alone_does(tiny_bundle_path: Path) -> None:
    with collector() as (endpoint, spans):
        environment = os.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            # As RAY_SERVE_THROUGHPUT_OPTIMIZED has it: Serve then takes `sys.stderr` for its own log.
            "RAY_SERVE_LOG_TO_STDERR": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, "-c", DRIVER, tiny_bundle_path]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as driver:
            assert driver.stdout is not None
            logs = Path(driver.stdout.readline().strip()) / "logs"
            wait_until(lambda: {span.name for span in spans} >= {"POST /classify", "batch"})
            driver.communicate()
    request, batch = (next(span for span in spans if span.name == name) for name in ("POST /classify", "batch"))
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (SENT_TRACE, SENT_SPAN)
    assert (batch.trace_id, batch.parent_span_id) == (request.trace_id, request.span_id)
    written = (path.read_text().splitlines() for path in logs.glob("worker-*.err"))
    lines = [json.loads(line) for lines in written for line in lines if line.startswith("{")]
    assert [line["level"] for line in lines if line["logger"] == "server.loading"] == ["warning"]
