"""`python -m loadtest.cluster`: Ray Serve on this machine under load, while replicas come, go, die and are replaced.

Runs in an environment that has Ray beside the server (the extra `ray`).
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
import yaml
from ray import serve

from loadtest.client import Client
from loadtest.measure import Run, summarize
from loadtest.metrics import read_metrics, requests_by_status
from loadtest.processes import tree
from loadtest.servers import HOST, free_port, running
from loadtest.wire import CLASSIFY
from loadtest.workload import read_samples, shuffled

CONFIG = Path(__file__).parents[1] / "deploy/ray/serve.yaml"
APPLICATION, DEPLOYMENT = "revmux", "Server"
WARM_UP_SECONDS = 3.0
# A replica starts beside load that leaves it little: on one core, replacing two took more than 180 s.
TIMEOUT_SECONDS = 400.0
POLL_SECONDS = 0.2
# Logical cores, more than there are: an update starts a new replica before an old one stops.
LOGICAL_CORES = 4
HEAD = "| what | s | requests/s | p50, ms | p99, ms | requests | failed |", "| --- |" + 5 * " ---: |" + " --- |"


class Part(StrEnum):
    """What can be shown by itself."""

    AUTOSCALING = "autoscaling"
    THROUGHPUT = "throughput"
    DEATH = "death"
    UPDATE = "update"


class Cluster:
    """Serve with the application of `deploy/ray/serve.yaml`, on a Ray cluster that is this process's own."""

    def __init__(self, bundle: str, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        self._config["http_options"] = {"host": HOST, "port": self.port}
        self._app = self._config["applications"][0]
        self._app["args"]["bundle"] = bundle
        self._deployed: dict[str, Any] | None = None
        ray.init(num_cpus=LOGICAL_CORES, include_dashboard=False, logging_level="error", log_to_driver=False)

    def deploy(self, replicas: int, autoscaling: dict[str, Any] | None = None, **settings: Any) -> None:
        """Returns once that many replicas with these settings are all there is.

        Without `autoscaling`, which goes before what the file has of it, their number stays.
        """
        before = set(self.processes())
        changed = settings.items() - self._app["args"].items()
        self._app["args"] |= settings
        config = copy.deepcopy(self._config)
        deployment = config["applications"][0]["deployments"][0]
        if autoscaling is None:
            del deployment["autoscaling_config"]
            deployment["num_replicas"] = replicas
        else:
            deployment["autoscaling_config"] |= autoscaling
        if config != self._deployed:
            self._run(config)
            self._deployed = config
        self.await_running(replicas, before if changed else set())

    def await_running(self, replicas: int, gone: set[int]) -> None:
        """Waits until `replicas` run, and none of the processes `gone` does. Raises `TimeoutError` after a while."""

        def are_running() -> bool:
            # Serve says for a while that one runs which has died.
            if self._states() != {"RUNNING": replicas}:
                return False
            processes = self.processes()
            return len(processes) == replicas and not gone.intersection(processes)

        _await(are_running)

    def await_start(self) -> None:
        """Waits until one replica is to be joined by another. Raises `TimeoutError` after a while."""
        _await(lambda: self._states() != {"RUNNING": 1})

    def await_two_answering(self) -> None:
        """Waits until each of two replicas has answered a text. Raises `TimeoutError` after a while."""
        most = 0

        def fewer_than_before() -> bool:
            nonlocal most
            # Of the replica that happens to be asked; with one alone they never become fewer.
            answered = self._answered()
            most = max(most, answered)
            return 0 < answered < most

        _await(fewer_than_before)

    def processes(self) -> list[int]:
        """The processes of the replicas."""
        return [process.pid for process in tree(os.getpid()) if _name(process.pid).startswith("ray::ServeReplica")]

    def _run(self, config: dict[str, Any]) -> None:
        path = self._folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        address = ray.get_runtime_context().gcs_address
        command = [Path(sys.executable).with_name("serve"), "run", "--non-blocking", "--address", address, path]
        with (self._folder / "deploy.log").open("a") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)

    def _states(self) -> dict[Any, int]:
        application = serve.status().applications.get(APPLICATION)
        # None before the cluster has imported it.
        deployment = None if application is None else application.deployments.get(DEPLOYMENT)
        return {} if deployment is None else dict(deployment.replica_states)

    def _answered(self) -> int:
        counts = requests_by_status(read_metrics(self.port, TIMEOUT_SECONDS))
        return counts.get(CLASSIFY.path, Counter()).total()


class Load:
    """Runs of requests of one text each, and `lines`, a table of them that is printed as it grows."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self.lines = list(HEAD)

    def last(self, what: str, port: int, in_flight: int, seconds: float) -> None:
        """For so many seconds, after others that do not count."""
        self._report(what, asyncio.run(self._last(port, in_flight, seconds)))

    def during(self, what: str, port: int, in_flight: int, event: Callable[[], None]) -> None:
        """For as long as `event` takes; every request counts. Raises what it does."""
        self._report(what, asyncio.run(self._during(port, in_flight, event)))

    async def _last(self, port: int, in_flight: int, seconds: float) -> Run:
        async with Client(port, self._texts) as client:
            await client.closed_loop(shuffled(len(self._texts), 0), in_flight, WARM_UP_SECONDS)
            return await client.closed_loop(shuffled(len(self._texts), 1), in_flight, seconds)

    async def _during(self, port: int, in_flight: int, event: Callable[[], None]) -> Run:
        over = threading.Event()
        order = itertools.takewhile(lambda _: not over.is_set(), shuffled(len(self._texts), 2))

        def happen() -> None:
            try:
                event()
            finally:
                over.set()

        async with Client(port, self._texts) as client:
            run, _ = await asyncio.gather(
                client.closed_loop(order, in_flight, 2 * TIMEOUT_SECONDS), asyncio.to_thread(happen)
            )
            return run

    def _report(self, what: str, run: Run) -> None:
        figures = summarize(run, [None] * len(self._texts), {})
        failed = ", ".join(f"{count} x {status}" for status, count in figures.errors.items()) or "none"
        p50, p99 = (1000 * (seconds or 0) for seconds in (figures.p50_seconds, figures.p99_seconds))
        cells = what, f"{run.seconds:.1f}", f"{figures.throughput:.1f}", f"{p50:.0f}", f"{p99:.0f}", figures.requests
        self.lines.append(f"| {' | '.join(map(str, cells))} | {failed} |")
        typer.echo(self.lines[-1])


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"what was waited for did not come in {TIMEOUT_SECONDS:.0f} s: {serve.status()}")
        time.sleep(POLL_SECONDS)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _amid(event: Callable[[], None]) -> None:
    """Has load run before `event`, and after it."""
    time.sleep(WARM_UP_SECONDS)
    event()
    time.sleep(WARM_UP_SECONDS)


def main(
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the report and the log.")],
    bundle: Annotated[str, typer.Option(help="A built-in bundle's name, or a bundle folder.")] = "sst2-minilm",
    in_flight: Annotated[int, typer.Option(min=1, help="Requests in flight, of one sentence each.")] = 64,
    seconds: Annotated[float, typer.Option(help="Of each run that measures throughput.")] = 20.0,
    scale_delay: Annotated[float, typer.Option(help="Seconds that autoscaling waits, up and down.")] = 10.0,
    part: Annotated[list[Part] | None, typer.Option(help="What to show; may be repeated. All, by default.")] = None,
) -> None:
    """Load adds a replica and its end removes it; one and two beside `revmux serve`; one dies; both are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(bundle, out)
    load = Load([sample.text for sample in read_samples(data)])
    parts = part or list(Part)

    if Part.AUTOSCALING in parts:
        limits = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": in_flight}
        cluster.deploy(1, limits | {"upscale_delay_s": scale_delay, "downscale_delay_s": scale_delay})
        much, little = 2 * in_flight, max(1, in_flight // 8)
        load.during("1 replica, until another is started", cluster.port, much, cluster.await_start)
        load.during("until that has answered", cluster.port, much, cluster.await_two_answering)
        load.during("2 replicas", cluster.port, much, partial(time.sleep, seconds))
        back = partial(cluster.await_running, 1, set())
        load.during("an eighth in flight, until 1 replica is left", cluster.port, little, back)
        load.during("1 replica", cluster.port, little, partial(time.sleep, seconds))
    if Part.THROUGHPUT in parts:
        cluster.deploy(1)
        alone = [sys.executable, "-m", "server.cli", "serve", "--bundle", bundle, "--threads", "1"]
        with running(alone, out / "alone.log") as server:
            for what, port in 2 * (("`revmux serve`", server.port), ("1 replica", cluster.port)):
                load.last(what, port, in_flight, seconds)
        cluster.deploy(2)
        load.last("2 replicas", cluster.port, in_flight, seconds)
    if Part.DEATH in parts:
        cluster.deploy(2)
        first = cluster.processes()[0]

        def kill() -> None:
            os.kill(first, signal.SIGKILL)
            cluster.await_running(2, {first})

        load.during("one of two is killed", cluster.port, in_flight, partial(_amid, kill))
    if Part.UPDATE in parts:
        cluster.deploy(2)
        # A change of any setting is a new version.
        update = partial(cluster.deploy, 2, shadow_share=0.02)
        load.during("both are replaced", cluster.port, in_flight, partial(_amid, update))
    (out / "cluster.md").write_text("\n".join(load.lines) + "\n")
    serve.shutdown()


if __name__ == "__main__":
    typer.run(main)
