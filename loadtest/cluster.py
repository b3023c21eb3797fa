"""`python -m loadtest.cluster`: Ray Serve on this machine under load, while replicas are added, killed and replaced.

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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
import yaml
from ray import serve

from loadtest.client import Client
from loadtest.measure import Run, summarize
from loadtest.processes import tree
from loadtest.servers import HOST, free_port
from loadtest.workload import read_samples, shuffled

CONFIG = Path(__file__).parents[1] / "deploy/ray/serve.yaml"
APPLICATION, DEPLOYMENT = "revmux", "Server"
WARM_UP_SECONDS = 3.0
DEPLOY_TIMEOUT_SECONDS = 180.0
# Logical cores, more than there are: an update starts a new replica before an old one stops.
LOGICAL_CORES = 4


class Cluster:
    """Serve with the application of `deploy/ray/serve.yaml`, on a Ray cluster that is this process's own."""

    def __init__(self, bundle: str, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        self._config["http_options"] = {"host": HOST, "port": self.port}
        self._app = self._config["applications"][0]
        self._app["args"]["bundle"] = bundle
        ray.init(num_cpus=LOGICAL_CORES, include_dashboard=False, logging_level="error", log_to_driver=False)

    def deploy(self, replicas: int, **settings: Any) -> None:
        """Returns once that many replicas with these settings are all there is."""
        before = set(self.processes())
        changed = settings.items() - self._app["args"].items()
        self._app["args"] |= settings
        config = copy.deepcopy(self._config)
        deployment = config["applications"][0]["deployments"][0]
        del deployment["autoscaling_config"]
        deployment["num_replicas"] = replicas
        path = self._folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        address = ray.get_runtime_context().gcs_address
        command = [Path(sys.executable).with_name("serve"), "run", "--non-blocking", "--address", address, path]
        with (self._folder / "deploy.log").open("a") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
        self.await_running(replicas, before if changed else set())

    def await_running(self, replicas: int, gone: set[int]) -> None:
        """Waits until `replicas` run, and none of the processes `gone` does. Raises `TimeoutError` after a while."""
        deadline = time.monotonic() + DEPLOY_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            status = serve.status()
            application = status.applications.get(APPLICATION)
            # None before the cluster has imported it.
            deployment = application and application.deployments.get(DEPLOYMENT)
            states = deployment and deployment.replica_states
            if states == {"RUNNING": replicas} and not gone.intersection(self.processes()):
                return
            time.sleep(0.2)
        raise TimeoutError(f"{replicas} replicas did not run after {DEPLOY_TIMEOUT_SECONDS:.0f} s: {status}")

    def processes(self) -> list[int]:
        """The processes of the replicas."""
        return [process.pid for process in tree(os.getpid()) if _name(process.pid).startswith("ray::ServeReplica")]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def _load(cluster: Cluster, texts: list[str], in_flight: int, seconds: float) -> Run:
    async with Client(cluster.port, texts) as client:
        await client.closed_loop(shuffled(len(texts), 0), in_flight, WARM_UP_SECONDS)
        return await client.closed_loop(shuffled(len(texts), 1), in_flight, seconds)


async def _load_during(cluster: Cluster, texts: list[str], in_flight: int, event: Callable[[], None]) -> Run:
    """Load from before `event` until it has come and gone."""
    over = threading.Event()
    order = itertools.takewhile(lambda _: not over.is_set(), shuffled(len(texts), 2))

    def happen() -> None:
        time.sleep(WARM_UP_SECONDS)
        try:
            event()
            time.sleep(WARM_UP_SECONDS)
        finally:
            over.set()

    async with Client(cluster.port, texts) as client:
        running = client.closed_loop(order, in_flight, DEPLOY_TIMEOUT_SECONDS)
        run, _ = await asyncio.gather(running, asyncio.to_thread(happen))
        return run


def _line(what: str, run: Run, texts: int) -> str:
    figures = summarize(run, [None] * texts, {})
    failed = ", ".join(f"{count} x {status}" for status, count in figures.errors.items()) or "none"
    p50, p99 = (1000 * (seconds or 0) for seconds in (figures.p50_seconds, figures.p99_seconds))
    return f"| {what} | {figures.throughput:.1f} | {p50:.0f} | {p99:.0f} | {figures.requests} | {failed} |"


def main(
    data: Annotated[Path, typer.Option(help="Sentences to send: .tsv, .csv or .txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the report and the log.")],
    bundle: Annotated[str, typer.Option(help="A built-in bundle's name, or a bundle folder.")] = "sst2-minilm",
    in_flight: Annotated[int, typer.Option(min=1, help="Requests in flight, of one sentence each.")] = 64,
    seconds: Annotated[float, typer.Option(help="Of each run that measures throughput.")] = 20.0,
) -> None:
    """One replica and two, then of two one is killed, and then both are replaced, all under load."""
    out.mkdir(parents=True, exist_ok=True)
    texts = [sample.text for sample in read_samples(data)]
    cluster = Cluster(bundle, out)
    lines = [
        "| what | requests/s | p50, ms | p99, ms | requests | failed |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]

    def report(what: str, run: Run) -> None:
        lines.append(_line(what, run, len(texts)))
        typer.echo(lines[-1])

    def kill() -> None:
        first = cluster.processes()[0]
        os.kill(first, signal.SIGKILL)
        cluster.await_running(2, {first})

    for replicas in (1, 2):
        cluster.deploy(replicas)
        report(
            "1 replica" if replicas == 1 else f"{replicas} replicas",
            asyncio.run(_load(cluster, texts, in_flight, seconds)),
        )
    report("one of two is killed", asyncio.run(_load_during(cluster, texts, in_flight, kill)))
    # A change of any setting is a new version.
    update = partial(cluster.deploy, 2, shadow_share=0.02)
    report("both are replaced", asyncio.run(_load_during(cluster, texts, in_flight, update)))
    (out / "cluster.md").write_text("\n".join(lines) + "\n")
    serve.shutdown()


if __name__ == "__main__":
    typer.run(main)
