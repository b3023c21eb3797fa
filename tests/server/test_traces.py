"""Spans as a collector gets them: a request's, continuing its client's, and the batch that answered it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.running import wait_until

SENT_TRACE, SENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP endpoint, and the spans that arrive there."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving(bundle: Path, workers: int, endpoint: str) -> Iterator[httpx.Client]:
    options = ("--bundle", str(bundle), "--port", "0", "--threads", "1", "--shadow-share", "0")
    command = [sys.executable, "-m", "server.cli", "serve", *options, "--http-workers", str(workers)]
    env = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            with httpx.Client(base_url=process.stdout.readline().split()[-1], timeout=30) as client:
                yield client
        finally:
            process.kill()


def attributes(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in span.attributes}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.skipif(sys.platform != "linux", reason=""))])
def test_a_request_and_its_batch_are_traced(tiny_bundle_path: Path, workers: int) -> None:
    pytest.importorskip("opentelemetry.sdk")
    with collector() as (endpoint, spans), serving(tiny_bundle_path, workers, endpoint) as client:
        # Many, because what is late by a part of a millisecond shows in some of them only.
        for sampled in ("00", *["01"] * 30):
            headers = {"traceparent": f"00-{SENT_TRACE}-{SENT_SPAN}-{sampled}"}
            assert client.post("/classify", json={"input": ["a", "b c"]}, headers=headers).status_code == 200
        wait_until(lambda: len(spans) == 60)
    requests, batches = ([span for span in spans if span.name == name] for name in ("POST /classify", "batch"))
    starts = {request.span_id: request.start_time_unix_nano for request in requests}
    assert all(
        starts[batch.parent_span_id] <= batch.start_time_unix_nano < batch.end_time_unix_nano for batch in batches
    )
    request = requests[0]
    batch = next(batch for batch in batches if batch.parent_span_id == request.span_id)
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (SENT_TRACE, SENT_SPAN)
    told = attributes(request)
    assert (told["http.route"], told["http.response.status_code"]) == ("/classify", 200)
    assert (told["revmux.items"], told["revmux.tokens"], told["revmux.quality"]) == (2, 7, "fast")
    assert told["revmux.inference_seconds"] > 0
    assert [link.span_id for link in batch.links] == [request.span_id]
    assert batch.trace_id == request.trace_id
    assert attributes(batch)["revmux.samples"] == 2
    assert attributes(batch)["revmux.points"] == ["n1-l4"]


def test_nothing_is_imported_unless_asked_for() -> None:
    code = """
import sys
import server.frontend, server.traces
server.traces.set_up_traces()
assert not server.traces.tracing()
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
