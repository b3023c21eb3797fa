"""Makes a job's parts on a Ray cluster, by Ray Data and a pool of actors that hold the bundle.

Ray Data hands out chunks by their place in the input alone: workers read and write the files themselves, so all
machines must see both under one path. Its own checkpoints tell rows that are done by an id, but not which batches they
were in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from revmux_core.errors import RevmuxError
from revmux_core.jobs.job import Job, JobError, Run, Worker
from revmux_core.jobs.source import Chunk

MAX_BLOCKS = 10_000
"""Ray Data's driver holds every block; beyond that a block has several chunks."""


def connect(address: str, device: str) -> str:
    """Joins the cluster at `address` and returns the kind of device, cpu or cuda, that its workers take.

    Raises `JobError` where there is no cluster, no Ray, or no such device on the cluster.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise JobError(f"--device {device}: a cluster's workers take cpu or cuda, one each")
    try:
        import ray
    except ImportError as error:
        raise JobError("--ray needs Ray: pip install 'revmux-server[ray]'") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise JobError(f"there is no Ray cluster at {address}: {error}") from error
    found = _count("cuda")
    if device == "cuda" and not found:
        raise JobError("--device cuda: the cluster has no GPU")
    return device if device != "auto" else "cuda" if found else "cpu"


def make_parts(run: Run, workers: int | None) -> Iterator[int]:
    """Makes the missing parts with up to `workers` actors of a CPU core or a GPU each, and yields the rows of each.

    None takes as many as the cluster has now. What a worker that died was at is done again by another. Raises
    `JobError` for what a worker could not do.
    """
    if not run.missing:
        return
    import ray.data

    device = run.job.answering.device
    most = workers or max(_count(device), 1)
    ray.data.DataContext.get_current().enable_progress_bars = False
    chunks = ray.data.from_items(
        [asdict(chunk) for chunk in run.missing], override_num_blocks=min(len(run.missing), MAX_BLOCKS)
    )
    made = chunks.map_batches(
        _Actor,
        fn_constructor_args=(run.job,),
        batch_size=1,
        # Each has one chunk beside the one it is at: none waits for work, and few chunks wait behind a slow worker. One
        # worker is enough to go on with while a cluster has no more.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=most, max_size=most, max_tasks_in_flight_per_actor=2
        ),
        num_cpus=1,
        num_gpus=int(device == "cuda"),
    )
    for row in made.iter_rows():
        if row["error"]:
            raise JobError(row["error"])
        yield int(row["rows"])


def _count(device: str) -> int:
    """How many devices of a kind the cluster has now."""
    import ray

    return int(ray.cluster_resources().get("GPU" if device == "cuda" else "CPU", 0))


class _Actor:
    """A worker, as Ray Data calls it: with the fields of one chunk, each in an array of one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            # Not before, as Ray would wrap in errors of its own what cannot be loaded.
            self._worker = self._worker or Worker(self._job)
            self._worker.make(Chunk(**{name: int(values[0]) for name, values in batch.items()}))
        except RevmuxError as error:
            return {"rows": [0], "error": [str(error)]}
        return {"rows": batch["rows"], "error": [""]}
