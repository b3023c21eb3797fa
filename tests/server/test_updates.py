"""Hot-swaps, drains and rolling restarts under load: every request is counted, and none may fail."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import BertForSequenceClassification

from revmux_core.bundle import Bundle, load_bundle
from revmux_core.classifier import Adapters, MuxClassifier
from revmux_core.manifest import record_measurements
from revmux_core.multiplexing.reversible import ReversibleMultiplexer
from revmux_core.points import OperatingPoint
from revmux_core.problems import make_problem
from server.loading import Loaded
from server.metrics import Metrics
from server.settings import read_settings
from server.swap import LOWEST_PRIORITY, HotSwap
from tests.server.running import server_process, wait_until
from tests.tiny import HIDDEN, LABELS, LAYERS, WORDS, save_tiny_bundle, save_tokenizer, tiny_config

CLIENTS = 6
MANY = 4096
TEXTS = [f"{WORDS[i]} is a good film " * (1 + i % 4) for i in range(20)] + ["very bad " * 1200]
"""The last one is tokenized in a thread."""
BATCH = 3
BOTH_WAYS = [0, pytest.param(2, marks=pytest.mark.skipif(sys.platform != "linux", reason="front ends need Linux"))]
"""Front ends: without and with."""


@dataclass(frozen=True)
class Version:
    """A bundle's folder, and what it answers to `TEXTS`."""

    path: Path
    expected: dict[str, list[float]]


@pytest.fixture(scope="module")
def versions(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Version]:
    """The tiny bundle and one with other weights, words, labels and widths, by their names."""
    folder = tmp_path_factory.mktemp("next")
    save_next(folder)
    found = {}
    for name, path in (("tiny", tiny_bundle_path), ("next", folder)):
        answers = load_bundle(path).classify(TEXTS, quality="exact")
        found[name] = Version(path, {text: answer.probs for text, answer in zip(TEXTS, answers, strict=True)})
    return found


def save_next(folder: Path) -> None:
    torch.manual_seed(3)
    BertForSequenceClassification(tiny_config(initializer_range=0.4, num_labels=2)).save_pretrained(folder / "base")
    save_tokenizer(folder / "base", words=WORDS[::-1])
    adapters = {OperatingPoint.mux(2, 2, LAYERS): Adapters(ReversibleMultiplexer(2, HIDDEN))}
    problem = make_problem("single_label_classification", ["no", "yes"])
    save_tiny_bundle(folder, folder / "base", adapters, problem, name="next")
    record_measurements(folder, {"points": [{"point": point.name, "agreement": 0.97} for point in adapters]})


@dataclass(frozen=True)
class Asked:
    """One request: when it began, which client sent it, its status (None: no answer) and the model that answered."""

    began: float
    client: int
    status: int | None
    model: str | None = None


class Load:
    """Clients that each ask again once they are answered, after a `pause` in seconds, until they are refused or this
    ends.

    `send` is how: a POST of a body, by default over one connection a client.
    """

    def __init__(
        self,
        versions: dict[str, Version],
        url: str = "",
        send: Callable[[httpx.Client, dict[str, Any]], httpx.Response] | None = None,
        pause: float = 0.0,
    ) -> None:
        self.asked: list[Asked] = []
        self.wrong: list[object] = []
        self._versions = versions
        self._url = url
        self._pause = pause
        self._send = send or (lambda client, body: client.post("/classify", json=body))
        self._stop = threading.Event()

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._drive, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        due = len(self.asked) + more
        wait_until(lambda: len(self.asked) >= due)

    @property
    def failed(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.status != 200]

    def of(self, client: int) -> list[Asked]:
        return [asked for asked in self.asked if asked.client == client]

    def models(self, since: float = 0.0) -> set[str | None]:
        """Who answered the requests that began after `since`."""
        return {asked.model for asked in self.asked if asked.began > since}

    def _drive(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            for position in itertools.count(number):
                texts = [TEXTS[(position + item) % len(TEXTS)] for item in range(BATCH)]
                began = time.monotonic()
                try:
                    response = self._send(client, {"input": texts, "quality": "exact", "priority": -1})
                except httpx.TransportError:
                    self.asked.append(Asked(began, number, None))
                    return
                if response.status_code != 200:
                    self.asked.append(Asked(began, number, response.status_code))
                    return
                content = response.json()
                self.asked.append(Asked(began, number, 200, content["model"]))
                expected = self._versions[content["model"]].expected
                for text, answer in zip(texts, content["data"], strict=True):
                    if answer["probs"] != pytest.approx(expected[text], abs=1e-4):
                        self.wrong.append((content["model"], text, answer))
                if self._stop.wait(self._pause):
                    return


@dataclass(frozen=True)
class Link:
    """The folder that a server was given: a symbolic link, turned over in one step."""

    path: Path

    def turn_to(self, target: Path) -> None:
        new = self.path.with_suffix(".new")
        new.symlink_to(target)
        new.replace(self.path)


@pytest.fixture
def link(tmp_path: Path, versions: dict[str, Version]) -> Link:
    link = Link(tmp_path / "current")
    link.turn_to(versions["tiny"].path)
    return link


def metric(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^revmux_{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def reloads(client: httpx.Client, outcome: str) -> float:
    return metric(client, f'bundle_reloads_total{{outcome="{outcome}"}}')


@dataclass(frozen=True)
class Linked:
    """A server that serves what `link` leads to."""

    process: subprocess.Popen[str]
    url: str
    link: Link
    front_ends: int


@pytest.fixture(scope="module", params=BOTH_WAYS)
def linked(
    request: pytest.FixtureRequest, versions: dict[str, Version], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Linked]:
    """Of the tiny bundle, with room for one request of `MANY` texts behind all others; for the tests that swap it, and
    last the one that ends it."""
    link = Link(tmp_path_factory.mktemp("linked") / "current")
    link.turn_to(versions["tiny"].path)
    flags = {"max_items_per_request": MANY, "max_queue_items": 4 * MANY, "max_queue_tokens": 10**6}
    with server_process(link.path, http_workers=request.param, **flags) as (process, url):
        yield Linked(process, url, link, request.param)


def test_a_hot_swap_under_load_fails_no_request(versions: dict[str, Version], linked: Linked) -> None:
    process, url, link = linked.process, linked.url, linked.link
    with (
        httpx.Client(base_url=url) as client,
        ThreadPoolExecutor(1) as threads,
        Load(versions, url) as load,
    ):
        load.wait_for(100)
        assert load.models() == {"tiny"}
        link.turn_to(versions["next"].path)
        # Behind all others in the queue: the switch finds most of it waiting.
        long = threads.submit(httpx.post, f"{url}/classify", json={"input": ["good " * 60] * 1024}, timeout=60)
        wait_until(lambda: metric(client, "queue_items") > 512)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: reloads(client, "done") == 1, 60)
        assert {item["label"] for item in long.result().json()["data"]} <= set(LABELS)
        assert (long.result().json()["model"], len(long.result().json()["data"])) == ("tiny", 1024)
        switched = time.monotonic()
        load.wait_for(100)
        assert load.models(since=switched) == {"next"}
        info = client.get("/info").json()
        assert (info["model"], info["labels"], info["widths"]) == ("next", ["no", "yes"], [1, 2])
        assert client.get("/v1/models").json()["data"][0]["id"] == "next"
        assert client.post("/classify", json={"input": "a", "model": "tiny"}).status_code == 404
        assert client.post("/classify", json={"input": "a", "model": "next"}).status_code == 200
        # And back; what is asked meanwhile is done once, afterwards.
        link.turn_to(versions["tiny"].path)
        process.send_signal(signal.SIGHUP)
        # Signals that come close together are one to a process that is kept waiting: time for this one's swap to begin.
        load.wait_for(20)
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            load.wait_for(1)
        wait_until(lambda: reloads(client, "done") == 3, 60)
        load.wait_for(20)
        assert client.get("/info").json()["model"] == "tiny"
        assert reloads(client, "failed") == 0
        assert metric(client, "queue_items") <= CLIENTS * BATCH
    assert (load.failed, load.wrong) == ([], [])
    for number in range(CLIENTS):
        names = [name for name, _ in itertools.groupby(load.of(number), key=lambda asked: asked.model)]
        assert names == ["tiny", "next", "tiny"]
    print(f"{len(load.asked)} requests in three swaps, {linked.front_ends} front ends: none failed")


@pytest.mark.parametrize("front_ends", BOTH_WAYS)
def test_what_cannot_be_served_leaves_the_model_in_place(
    versions: dict[str, Version],
    link: Link,
    front_ends: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    corrupted, other_base = tmp_path / "corrupted", tmp_path / "other-base"
    shutil.copytree(versions["tiny"].path, corrupted)
    save_next(other_base)
    for file in (*corrupted.glob("adapters/n4*.safetensors"), other_base / "base" / "model.safetensors"):
        file.write_bytes(file.read_bytes()[:-4] + b"\0\1\2\3")
    with (
        server_process(link.path, http_workers=front_ends, width=4) as (process, url),
        httpx.Client(base_url=url) as client,
        Load(versions, url) as load,
    ):
        for failures, (target, reason) in enumerate(
            (
                (corrupted, "is damaged: adapters/n4-l2-u2.3.safetensors does not match its SHA-256"),
                (other_base, "was trained on other weights than those in"),
                (tmp_path / "nowhere", "there is no bundle"),
                (versions["next"].path, "the bundle has no width 4: choose auto, max or one of 1, 2"),
            ),
            start=1,
        ):
            link.turn_to(target)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda due=failures: reloads(client, "failed") == due, 60)
            last = capfd.readouterr().err.splitlines()[-1]
            assert re.search(rf"{link.path} cannot be served, so tiny goes on answering: .*{reason}", last), last
            load.wait_for(20)
        link.turn_to(versions["tiny"].path)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: reloads(client, "done") == 1, 60)
        load.wait_for(20)
    assert (load.failed, load.wrong, load.models()) == ([], [], {"tiny"})


async def test_a_model_loads_beside_the_one_that_answers_and_that_is_gone_from_memory(tiny_bundle_path: Path) -> None:
    models: list[weakref.ref[MuxClassifier]] = []
    priorities: list[int] = []
    metrics = Metrics("test")

    def load() -> Bundle:
        priorities.append(os.getpriority(os.PRIO_PROCESS, 0))
        bundle = load_bundle(tiny_bundle_path)
        models.append(weakref.ref(bundle.classifier))
        return bundle

    async def switch(loaded: Loaded) -> None:
        pass

    swap = HotSwap(read_settings(), load, metrics, switch, lambda: None)
    await swap.start()
    try:
        assert gc.get_freeze_count()
        swap.reload()
        done = b'revmux_bundle_reloads_total{outcome="done"} 1.0'
        await asyncio.to_thread(wait_until, lambda: done in metrics.render("")[0] and models[0]() is None)
        assert models[1]() is not None
        assert gc.get_freeze_count()
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert priorities == [own, LOWEST_PRIORITY if sys.platform == "linux" else own]
    finally:
        await swap.close()
    assert not gc.get_freeze_count()


def test_sigterm_under_load_answers_all_that_was_admitted(versions: dict[str, Version], linked: Linked) -> None:
    process, url = linked.process, linked.url
    with (
        httpx.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor(1) as threads,
        Load(versions, url) as load,
    ):
        load.wait_for(50)
        # Behind all others in the queue, so that it keeps the server until each of them was refused once.
        long = threads.submit(client.post, "/classify", json={"input": ["good " * 60] * MANY})
        with httpx.Client(base_url=url) as observer:
            wait_until(lambda: metric(observer, "queue_items") > MANY / 2 or long.done())
        process.send_signal(signal.SIGTERM)
        load.join()
        assert long.result().status_code == 200
        assert process.wait(timeout=20) == 0
    assert [asked.status for asked in load.failed] == [503] * CLIENTS
    assert load.wrong == []
    print(f"{len(load.asked) - CLIENTS + 1} requests answered, {CLIENTS} refused, none lost")


class Balancer:
    """Sends each request to one of `urls` in turn, and on to the next where one does not answer: that one is left out
    for as long as it says, or a second where nobody is there to say it."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self.resent: Counter[str] = Counter()
        self._turns = itertools.count()
        self._out: dict[str, float] = {}

    def send(self, client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
        for _ in range(100):
            url = self.urls[next(self._turns) % len(self.urls)]
            if time.monotonic() < self._out.get(url, 0):
                continue
            try:
                response = client.post(f"{url}/classify", json=body)
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                reason, pause = type(error).__name__, 1
            else:
                if response.status_code != 503:
                    return response
                reason, pause = "503", int(response.headers["retry-after"])
            self.resent[reason] += 1
            self._out[url] = time.monotonic() + pause
        raise AssertionError("no server answers")


def test_a_rolling_restart_fails_no_request(versions: dict[str, Version]) -> None:
    def start(name: str) -> tuple[subprocess.Popen[str], str]:
        return servers.enter_context(server_process(versions[name].path))

    with ExitStack() as servers, ThreadPoolExecutor(2) as threads:
        # Both at once, as most of a start is the reading of libraries in one thread.
        running = list(threads.map(start, ["tiny"] * 2))
        balancer = Balancer([url for _, url in running])
        with Load(versions, send=balancer.send, pause=0.2) as load:
            load.wait_for(20)
            for number, (process, _) in enumerate(running):
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=20) == 0
                load.wait_for(20)
                _, balancer.urls[number] = start("next")
                load.wait_for(20)
            restarted = time.monotonic()
            load.wait_for(20)
        assert load.models() == {"tiny", "next"}
        assert load.models(since=restarted) == {"next"}
    assert (load.failed, load.wrong) == ([], [])
    assert balancer.resent.total() >= 2
    print(f"{len(load.asked)} requests over a rolling restart, sent again {dict(balancer.resent)}: none failed")
