"""A server of several processes over loopback: the answers of one, and what happens when one of them is killed."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.processes import tree
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.problems import ProblemType
from tests.server.running import free_port, running_server, server_process, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="front ends need Linux")

FRONT_ENDS = 2
MANY = 4096
DOCUMENTED = {200, 429, 503, 504}
TEXTS = [f"word{i} " * (1 + i % 7) for i in range(40)]


@dataclass
class Running:
    """A server and a client that takes a new connection for every request, so that any front end may answer."""

    process: subprocess.Popen[str]
    url: str
    client: httpx.Client

    def pids(self, module: str) -> list[int]:
        return [pid for pid in descendants(self.process.pid) if module in command_of(pid)]

    @property
    def engine(self) -> int:
        (pid,) = self.pids("server.engine_process")
        return pid

    @property
    def front_ends(self) -> list[int]:
        return self.pids("server.frontend")

    @property
    def ready(self) -> bool:
        """Whether every front end is: of many connections, some reach each."""
        return all(status(self.client, "/health/ready") == 200 for _ in range(8))

    def metric(self, name: str) -> float:
        """The value of `revmux_NAME`, or of `process_...`."""
        name = re.escape(name if name.startswith("process_") else f"revmux_{name}")
        found = re.search(rf"^{name} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


def descendants(pid: int) -> list[int]:
    return [process.pid for process in tree(pid) if process.pid != pid]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    return bool(command_of(pid))


def status(client: httpx.Client, path: str) -> int | None:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return None


@contextmanager
def running(bundle: Path, trusted: Path | None = None, **more: Any) -> Iterator[Running]:
    """A server with the options `more` beside those of all tests; `trusted` is its certificate, where it speaks TLS."""
    options = {"http_workers": FRONT_ENDS, "max_items_per_request": MANY, **more}
    limits = httpx.Limits(max_keepalive_connections=0)
    verify = True if trusted is None else ssl.create_default_context(cafile=trusted)
    with (
        server_process(bundle, **options) as (process, url),
        httpx.Client(base_url=url, timeout=30, limits=limits, verify=verify) as client,
    ):
        yield Running(process, url, client)


@pytest.fixture(scope="module")
def server(tiny_bundle_path: Path) -> Iterator[Running]:
    with running(tiny_bundle_path) as server:
        yield server


def exact(client: httpx.Client, text: str) -> httpx.Response:
    return client.post("/classify", json={"input": text, "quality": "exact"})


@dataclass
class Load:
    """Clients that ask for one text after another, each over a connection of its own."""

    url: str
    expected: dict[str, list[float]]
    statuses: list[int] = field(default_factory=list)
    broken: int = 0
    wrong: int = 0
    longest: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._drive, args=(number,)) for number in range(6)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def answered(self, more: int) -> Callable[[], bool]:
        due = self.statuses.count(200) + more
        return lambda: self.statuses.count(200) >= due

    def _drive(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self._stop.is_set():
                text = TEXTS[number % len(TEXTS)]
                number += 1
                began = time.monotonic()
                try:
                    response = exact(client, text)
                except httpx.TransportError:
                    self.broken += 1
                    self._stop.wait(0.05)
                    continue
                self.longest = max(self.longest, time.monotonic() - began)
                self.statuses.append(response.status_code)
                if response.status_code == 200:
                    probs = response.json()["data"][0]["probs"]
                    self.wrong += probs != pytest.approx(self.expected[text], abs=1e-4)
                else:
                    assert response.status_code != 503 or response.headers["retry-after"]
                    self._stop.wait(0.05)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle) -> dict[str, list[float]]:
    return {
        text: answer.probs for text, answer in zip(TEXTS, tiny_bundle.classify(TEXTS, quality="exact"), strict=True)
    }


def test_answers_and_errors_are_those_of_one_process(server: Running, tiny_bundle: Bundle) -> None:
    with running_server(lambda: tiny_bundle, width="max", max_items_per_request=MANY) as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        for path, body in (
            ("/classify", {"input": TEXTS[:8], "quality": "exact", "use_activation": False}),
            ("/classify", {"input": TEXTS[:8]}),
            ("/classify", {"input": {"text": "good", "text_pair": "very bad film"}}),
            ("/classify", {"input": "good " * 9000, "priority": 10**30, "max_width": 10**30}),
            ("/classify", {"input": "good " * 200, "truncate": False}),
            ("/classify", {"input": "a", "quality": "guaranteed"}),
            ("/classify", {"input": "a", "model": "gpt"}),
            ("/classify", {"input": ""}),
            ("/classify", {"input": ["good \u5b57", "\U0001f44d"], "quality": "exact"}),
            ("/classify", {"input": "\u200b"}),
            ("/predict", {"inputs": [["a"], ["b", "c"]], "raw_scores": True}),
        ):
            one, several = (c.post(path, json=body) for c in (client, server.client))
            assert several.status_code == one.status_code
            assert flat(several.json()) == pytest.approx(flat(one.json()), abs=1e-4)
            assert set(several.headers) == set(one.headers)
        assert server.client.get("/info").json() == client.get("/info").json()
        assert server.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        assert names(server.client) == names(client)


def flat(content: object) -> dict[str, object]:
    """Every leaf by its path, but what differs from request to request."""
    if isinstance(content, dict):
        items = [(key, value) for key, value in content.items() if key not in ("id", "created")]
    elif isinstance(content, list):
        items = list(enumerate(content))
    else:
        return {"": content}
    return {f"/{key}{path}": leaf for key, value in items for path, leaf in flat(value).items()}


def names(client: httpx.Client) -> set[str]:
    """Of all metrics but the times of their creation, which several processes do not have."""
    found = set(re.findall(r"^(\w+)", client.get("/metrics").text, re.MULTILINE))
    return {name for name in found if not name.endswith("_created")}


@pytest.mark.parametrize("module", ["server.frontend", "server.engine_process", "server.cli"])
def test_what_a_process_starts_as_is_imported_without_torch(module: str) -> None:
    """The engine and the command import it once the garbage collector is told to look away."""
    code = f"import {module}, sys; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_front_ends_hold_no_torch(server: Running) -> None:
    assert len(server.front_ends) == FRONT_ENDS
    for pid in server.front_ends:
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    assert "torch" in Path(f"/proc/{server.engine}/maps").read_text()


def test_metrics_are_the_whole_servers(server: Running) -> None:
    count = 'requests_total{path="/predict",status="200"}'
    before, items = server.metric(count), server.metric("batch_size_sum")
    for _ in range(24):
        assert server.client.post("/predict", json={"inputs": "a film"}).status_code == 200
    assert [server.metric(count) for _ in range(8)] == [before + 24] * 8
    assert server.metric("batch_size_sum") == items + 24
    assert server.metric("requests_in_progress") == server.metric("queue_items") == 0
    assert server.metric("process_resident_memory_bytes") > 3 * 2**25
    openmetrics = server.client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.text.endswith("# EOF\n")


def test_a_killed_front_end_costs_its_own_connections_only(server: Running, expected: dict[str, list[float]]) -> None:
    before = server.metric('requests_total{path="/classify",status="200"}')
    with Load(server.url, expected) as load:
        wait_until(load.answered(50))
        killed = server.front_ends[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(load.answered(50))
        wait_until(lambda: killed not in server.front_ends and len(server.front_ends) == FRONT_ENDS)
        wait_until(lambda: server.ready)
    assert set(load.statuses) <= DOCUMENTED
    assert load.broken <= 12
    assert (load.wrong, load.longest < 20) == (0, True)
    wait_until(lambda: server.metric("requests_in_progress") == server.metric("queue_items") == 0)
    # Those of the dead one count; what it held when it died was answered to nobody.
    assert server.metric('requests_total{path="/classify",status="200"}') >= before + load.statuses.count(200)


def test_a_killed_engine_is_told_at_once_and_comes_back(server: Running, expected: dict[str, list[float]]) -> None:
    batches, seconds = server.metric("batch_size_count"), server.metric("process_cpu_seconds_total")
    with Load(server.url, expected) as load:
        wait_until(load.answered(50))
        killed = server.engine
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: 503 in load.statuses, 5)
        assert status(server.client, "/health/ready") == 503
        assert status(server.client, "/health/live") == 200
        wait_until(lambda: server.ready, 60)
        wait_until(load.answered(50))
    assert set(load.statuses) <= DOCUMENTED
    assert (load.broken, load.wrong, load.longest < 20) == (0, 0, True)
    assert server.engine != killed
    assert server.metric("batch_size_count") > batches
    assert server.metric("process_cpu_seconds_total") > seconds > 0
    assert server.metric("requests_in_progress") == server.metric("queue_items") == 0


def test_an_engine_comes_back_on_the_device_that_it_had(
    tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no GPU to lose, one seems to have come: auto would take it, and fail."""
    come = tmp_path / "come"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nif os.path.exists({str(come)!r}):\n    import torch\n    torch.cuda.is_available = lambda: True\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with running(tiny_bundle_path, device="auto", http_workers=1) as server:
        before = server.client.get("/info").json()["device"]
        come.touch()
        os.kill(server.engine, signal.SIGKILL)
        wait_until(lambda: status(server.client, "/health/ready") == 503, 5)
        wait_until(lambda: server.ready, 30)
        assert server.client.get("/info").json()["device"] == before


def test_whoever_leaves_or_is_late_frees_its_place_in_the_engine(server: Running) -> None:
    body = {"input": ["good " * 60] * MANY}
    assert server.client.post("/classify", json={**body, "timeout_ms": 1000}).status_code == 504
    wait_until(lambda: server.metric("queue_items") == 0, 1)
    cancelled = server.metric("cancelled_requests_total")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/classify", json=body, timeout=1)
    wait_until(lambda: server.metric("cancelled_requests_total") == cancelled + 1)
    wait_until(lambda: server.metric("queue_items") == 0, 1)


def test_sigterm_answers_what_was_admitted_then_all_end(server: Running) -> None:
    pids = descendants(server.process.pid)
    body = {"input": ["good " * 60] * MANY}
    with ThreadPoolExecutor(2) as threads:
        admitted = [threads.submit(server.client.post, "/classify", json=body) for _ in range(2)]
        wait_until(lambda: server.metric("requests_in_progress") == 2 or any(work.done() for work in admitted))
        os.killpg(os.getpgid(server.front_ends[0]), signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: exact(server.client, "a").status_code == 503)
        # Front ends hear of it one after the other.
        wait_until(lambda: server.client.get("/health/ready").json() == {"status": "draining"})
        for work in admitted:
            assert work.result().status_code in (200, 429)
        assert any(work.result().status_code == 200 for work in admitted)
        assert server.process.wait(timeout=20) == 0
    wait_until(lambda: not any(map(alive, pids)), 1)


def test_every_front_end_has_both_ports_and_speaks_tls(tiny_bundle_path: Path, certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    port = free_port()
    options = {"metrics-port": port, "ssl-certfile": chain, "ssl-keyfile": key}
    with running(tiny_bundle_path, chain, **options) as server:
        for _ in range(16):
            assert exact(server.client, "a").status_code == 200
            assert status(server.client, "/metrics") == 404
        for _ in range(8):
            metrics = server.client.get(f"https://127.0.0.1:{port}/metrics").text
            assert 'revmux_requests_total{path="/classify",status="200"} 16.0' in metrics


def test_what_cannot_be_served_ends_the_server_with_its_message() -> None:
    command = [sys.executable, "-m", "server.cli", "serve", "--http-workers", "1", "--port", "0", "--bundle", "nowhere"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("revmux: there is no bundle nowhere")


@pytest.fixture(scope="module")
def words_path(task_bundle_paths: dict[ProblemType, Path]) -> Path:
    return task_bundle_paths["token_classification"]


@pytest.fixture(scope="module")
def words_server(words_path: Path) -> Iterator[Running]:
    """For the last two tests, as `server` has ended; the second of them kills it."""
    with running(words_path) as server:
        yield server


def test_words_and_their_places_survive_the_way_between_processes(words_server: Running, words_path: Path) -> None:
    text = "a  good film , not bad"
    (expected,) = load_bundle(words_path).classify([text], 1)
    wait_until(lambda: words_server.ready, 60)
    (item,) = words_server.client.post("/classify", json={"input": text, "quality": "exact"}).json()["data"]
    assert expected.entities is not None
    found = [(e["entity"], e["word"], e["start"], e["end"], e["index"]) for e in item["entities"]]
    assert found == [(e["entity"], e["word"], e["start"], e["end"], e["index"]) for e in expected.entities]


def test_no_process_outlives_a_killed_supervisor(words_server: Running) -> None:
    pids = descendants(words_server.process.pid)
    assert len(pids) == FRONT_ENDS + 1
    (folder,) = {command_of(pid).split()[-1] for pid in words_server.front_ends}
    words_server.process.kill()
    wait_until(lambda: not any(map(alive, pids)), 5)
    assert not Path(folder).exists()
