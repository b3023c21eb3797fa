"""Overload, deadlines, clients that leave, failing batches, start and stop."""

from __future__ import annotations

import gc
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from revmux_core.bundle import Bundle
from revmux_core.manifest import BundleError
from server.errors import DeadlineExceeded
from server.inprocess import InProcess
from server.metrics import Metrics
from server.ports import listen
from server.run import serve
from server.service import Service
from server.settings import SettingsError, read_settings
from server.web import DrainingServer
from tests.server.running import Gate, running_server, wait_until

SERVE_SLOWLY = """
import sys, time
import server.loading
import server.run
from server.settings import read_settings

load = server.loading.load_bundle

def load_slow(*arguments):
    bundle = load(*arguments)
    # What the test sends takes a while: one text of two words, between two special tokens. Nothing of the warm-up does.
    bundle.classifier.register_forward_pre_hook(lambda module, inputs: time.sleep(tuple(inputs[0].ids.shape) == (1, 4)))
    return bundle

server.loading.load_bundle = load_slow
server.run.serve(read_settings(bundle=sys.argv[1], port=0))
"""


@pytest.fixture(scope="module")
def small_queue(gate_and_bundle: tuple[Gate, Bundle]) -> Iterator[tuple[httpx.Client, Service, Gate]]:
    gate, bundle = gate_and_bundle
    with running_server(lambda: bundle, max_queue_items=4, max_items_per_request=4) as (client, service):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client, service, gate


def waiting_items(service: Service) -> int:
    return service.model.batcher.load.items


def test_overload_is_refused_with_a_time_to_return(small_queue: tuple[httpx.Client, Service, Gate]) -> None:
    client, service, gate = small_queue
    with ThreadPoolExecutor(4) as threads, gate.held():
        running = threads.submit(client.post, "/classify", json={"input": "a film"})
        assert gate.reached.wait(10)
        waiting = threads.submit(client.post, "/classify", json={"input": ["a", "b", "c", "d"]})
        wait_until(lambda: waiting_items(service) == 4)
        for path, body in (("/classify", {"input": "a"}), ("/predict", {"inputs": "a"})):
            refused = client.post(path, json=body)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert running.result().status_code == waiting.result().status_code == 200
    assert "revmux_shed_requests_total 2.0" in client.get("/metrics").text


def test_a_deadline_is_answered_while_the_device_is_busy(small_queue: tuple[httpx.Client, Service, Gate]) -> None:
    client, service, gate = small_queue
    with ThreadPoolExecutor(4) as threads, gate.held():
        running = threads.submit(client.post, "/classify", json={"input": "a film"})
        assert gate.reached.wait(10)
        expired = client.post("/classify", json={"input": ["a", "b"], "timeout_ms": 50})
        assert expired.status_code == 504
        assert waiting_items(service) == 0
    assert running.result().status_code == 200


def test_an_expired_request_leaves_nothing_for_the_garbage_collector(
    small_queue: tuple[httpx.Client, Service, Gate],
) -> None:
    client, _, gate = small_queue
    gc.collect()
    gc.disable()
    try:
        with ThreadPoolExecutor(4) as threads, gate.held():
            running = threads.submit(client.post, "/classify", json={"input": "a film"})
            assert gate.reached.wait(10)
            assert client.post("/classify", json={"input": "a", "timeout_ms": 50}).status_code == 504
        assert running.result().status_code == 200
        wait_until(lambda: not any(type(each) is DeadlineExceeded for each in gc.get_objects()))
    finally:
        gc.enable()


def test_a_client_that_leaves_frees_its_place(small_queue: tuple[httpx.Client, Service, Gate]) -> None:
    client, service, gate = small_queue
    with ThreadPoolExecutor(4) as threads, gate.held():
        running = threads.submit(client.post, "/classify", json={"input": "a film"})
        assert gate.reached.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(client.base_url.join("/classify"), json={"input": ["a", "b", "c", "d"]}, timeout=0.3)
        wait_until(lambda: waiting_items(service) == 0)
    assert running.result().status_code == 200
    assert "revmux_cancelled_requests_total 1.0" in client.get("/metrics").text


def test_a_failing_batch_is_a_500_and_the_next_one_is_fine(small_queue: tuple[httpx.Client, Service, Gate]) -> None:
    client, _, gate = small_queue
    with gate.failing():
        failed = client.post("/classify", json={"input": "a film"})
        assert failed.status_code == 500
        assert failed.json()["error"]["type"] == "InternalServerError"
        assert "Traceback" not in failed.text
        assert client.post("/predict", json={"inputs": "a film"}).json()["error_type"] == "Backend"
    assert client.post("/classify", json={"input": "a film"}).status_code == 200


def test_while_loading_the_server_is_alive_but_not_ready(tiny_bundle: Bundle) -> None:
    loaded = threading.Event()

    def load() -> Bundle:
        loaded.wait(30)
        return tiny_bundle

    with running_server(load) as (client, _):
        assert client.get("/health/live").status_code == 200
        for path in ("/health", "/health/ready"):
            assert (client.get(path).status_code, client.get(path).json()) == (503, {"status": "loading"})
        refused = client.post("/classify", json={"input": "a"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert client.get("/info").status_code == 503
        loaded.set()
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/classify", json={"input": "a"}).status_code == 200


@contextmanager
def slow_server_process(bundle: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = [sys.executable, "-c", SERVE_SLOWLY, str(bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with httpx.Client(base_url=url, timeout=30) as client:
                yield process, client
        finally:
            process.kill()


def post_slowly(url: httpx.URL, body: bytes) -> bytes:
    """The answer's beginning to a body that is too large for the buffers between; fails where that cannot be sent."""
    with socket.socket() as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sender.connect((url.host, url.port))
        head = b"POST /classify HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % len(body)
        sender.sendall(head + body)
        return sender.recv(1024)


def test_sigterm_answers_what_was_admitted_then_exits_0(tiny_bundle_path: Path) -> None:
    with slow_server_process(tiny_bundle_path) as (process, client), ThreadPoolExecutor(1) as threads:
        admitted = threads.submit(client.post, "/classify", json={"input": "a film"})
        wait_until(lambda: "revmux_requests_in_progress 1.0" in client.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/health/ready").json() == {"status": "draining"})
        refused = client.post("/classify", json={"input": "a"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert post_slowly(client.base_url, b" " * 2**20).startswith(b"HTTP/1.1 503")
        assert client.get("/health/live").status_code == 200
        assert admitted.result().status_code == 200
        # Or they would send what comes next to a server that goes.
        assert refused.headers["connection"] == admitted.result().headers["connection"] == "close"
        assert process.wait(timeout=20) == 0


def test_an_idle_server_sleeps_until_it_is_told_to_drain(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.web.IDLE_TICK", 30)
    ready, looks = threading.Event(), []

    class Watched(DrainingServer):
        async def on_tick(self, counter: int) -> bool:
            looks.append(counter)
            return await super().on_tick(counter)

    settings = read_settings(port=0)
    server = Watched(Service(settings, InProcess(settings, lambda: tiny_bundle), Metrics("test")), ready.set)
    thread = threading.Thread(target=server.run, args=([listen(settings)],))
    thread.start()
    assert ready.wait(30)
    looks.clear()
    time.sleep(0.5)
    assert not looks
    server.drain()
    thread.join(15)
    assert not thread.is_alive()


def test_a_second_signal_is_not_caught(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda sig, handler: None)
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    settings = read_settings()
    service = Service(settings, InProcess(settings, lambda: tiny_bundle), Metrics("test"))
    server = DrainingServer(service, lambda: None)
    server.handle_exit(signal.SIGTERM, None)
    assert not raised
    server.handle_exit(signal.SIGTERM, None)
    assert raised == [signal.SIGTERM]


def test_what_cannot_be_served_ends_the_server(tiny_bundle_path: Path) -> None:
    with pytest.raises(SettingsError, match="the bundle has no width 3: choose auto, max or one of 1, 2, 4"):
        serve(read_settings(bundle=str(tiny_bundle_path), port=0, width=3))
    with pytest.raises(BundleError, match="no bundle nowhere"):
        serve(read_settings(bundle="nowhere", port=0))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is raised on Linux")
def test_idle_connections_keep_nobody_out(tiny_bundle_path: Path) -> None:
    """More of them than the soft limit of open files that the server is started with."""
    serve = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--bundle", str(tiny_bundle_path)]
    command = ["sh", "-c", 'ulimit -Sn 128; exec "$@"', "sh", *serve]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ExitStack() as idle:
        idle.callback(process.kill)
        assert process.stdout is not None
        url = httpx.URL(process.stdout.readline().split()[-1])
        for _ in range(200):
            idle.enter_context(socket.create_connection((url.host, url.port)))
        assert httpx.post(url.join("/classify"), json={"input": "a film"}, timeout=10).status_code == 200
