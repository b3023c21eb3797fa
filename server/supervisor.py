"""Starts an engine and front ends as processes of their own, restarts what dies, and stops them in order."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from contextlib import ExitStack, suppress
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from revmux_core.errors import RevmuxError
from server.child import DRAIN, END, ENGINE, RELOAD, handover
from server.logs import set_up_logs
from server.ports import allow_connections, listen_all, tls_context, url_of
from server.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a process that died is started again; they double with every death that follows at once."""

STABLE_SECONDS = 10.0
"""A process that lived for so long did not die of how it was started."""

STOP_SECONDS = 5.0
"""What a process gets for ending once nothing is left to do, before it is killed."""


class Worker:
    """A process of a kind, and those that come after it."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], files: tuple[int, ...] = ()) -> None:
        self.name = name
        self.ready = False
        self.idle = asyncio.Event()
        """Set once it was told to drain and has nothing left to answer, or has ended."""
        self.process: Process | None = None
        self._command = command
        self._env = env
        self._files = files

    async def start(self, first: bytes) -> Process:
        """Starts the process in a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone; `first`
        is what it reads first."""
        self.ready = False
        self.process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, env=self._env, pass_fds=self._files, start_new_session=True
        )
        self.tell(first)
        return self.process

    def tell(self, message: bytes) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.write(message)

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()


class Supervisor:
    """Keeps one engine and `settings.http_workers` front ends alive until a signal, or until the engine reports that
    it cannot be. `folder` holds what they share."""

    def __init__(self, settings: Settings, url: str, folder: Path, engine_listener: socket.socket) -> None:
        env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": _python_path()}
        # Without -P, a folder named server where the command is run would be taken for this package.
        python = [sys.executable, "-P", "-m"]
        descriptor = engine_listener.fileno()
        command = [*python, "server.engine_process", str(folder), str(descriptor)]
        self._engine = Worker("the engine", command, env, (descriptor,))
        # Front ends share the cores by being several; threads of each would only get in each other's way.
        env = {**env, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._front_ends = [
            Worker(f"front end {number + 1}", [*python, "server.frontend", str(folder)], env)
            for number in range(settings.http_workers)
        ]
        self._settings = settings
        self._url = url
        self._folder = folder
        self._announced = False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Returns once a signal was obeyed. Raises `RevmuxError` where the engine reports one."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        # An engine that is not ready yet does so once it is.
        loop.add_signal_handler(signal.SIGHUP, self._engine.tell, RELOAD)
        engine = asyncio.create_task(self._keep(self._engine))
        front_ends = [asyncio.create_task(self._keep(worker)) for worker in self._front_ends]
        try:
            await self._over
            await self._drain()
            await asyncio.wait(front_ends, timeout=STOP_SECONDS)
            if self._engine.ready:
                self._engine.tell(END)
                await asyncio.wait([engine], timeout=STOP_SECONDS)
        finally:
            for worker in self._workers:
                worker.kill()
            await asyncio.wait([engine, *front_ends])

    async def _drain(self) -> None:
        """Lets the front ends end together once all are idle, or when the time for that is over."""
        for worker in self._front_ends:
            worker.tell(DRAIN)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout):
                for worker in self._front_ends:
                    await worker.idle.wait()
        for worker in self._front_ends:
            worker.tell(END)

    @property
    def _workers(self) -> list[Worker]:
        return [self._engine, *self._front_ends]

    async def _keep(self, worker: Worker) -> None:
        """Starts the process, and again when it dies, until all is over."""
        pause = SHORTEST_PAUSE
        while not self._over.done():
            began = time.monotonic()
            try:
                ending = await self._run(worker)
            except OSError as error:
                ending = f"cannot be started ({error})"
            if self._over.done():
                break
            pause = SHORTEST_PAUSE if time.monotonic() - began > STABLE_SECONDS else min(2 * pause, LONGEST_PAUSE)
            logger.error("%s %s: starting it again", worker.name, ending)
            await asyncio.wait([self._over], timeout=pause)
        worker.idle.set()

    async def _run(self, worker: Worker) -> str:
        """Starts the process and listens to it until it ends; says how it did."""
        process = await worker.start(handover(self._settings))
        if self._over.done():
            worker.kill()
        assert process.stdout is not None
        async for line in process.stdout:
            self._heard(worker, json.loads(line))
        status = await process.wait()
        mark_process_dead(process.pid, str(self._folder))
        return f"(process {process.pid}) " + (f"was killed by signal {-status}" if status < 0 else f"ended: {status}")

    def _heard(self, worker: Worker, news: dict[str, object]) -> None:
        if "failed" in news:
            # What nobody could foresee, such as memory that a dead engine still held, may pass where it once went well.
            if not self._over.done() and (news["foreseeable"] or not self._announced):
                kind = RevmuxError if news["foreseeable"] else RuntimeError
                self._over.set_exception(kind(str(news["failed"])))
            return
        if "idle" in news:
            worker.idle.set()
            return
        worker.ready = True
        if worker is self._engine and self._settings.device == "auto":
            # An engine whose GPU is lost would come back on the CPU, slow and without its calibration, and nobody told.
            self._settings = self._settings.model_copy(update={"device": news["device"]})
        if not self._announced and all(worker.ready for worker in self._workers):
            self._announced = True
            print(f"Serving {news['ready']} on {self._url}", flush=True)

    def _signalled(self, number: signal.Signals) -> None:
        if not self._over.done():
            self._over.set_result(None)
            return
        for worker in self._workers:
            worker.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def supervise(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns. SIGHUP has the engine read the bundle again.

    The port opens at once and the bundle is loaded behind it, so that liveness can be told from readiness.

    Raises `RevmuxError` for a setting or a bundle that cannot be served.
    """
    set_up_logs(settings)
    if sys.platform != "linux":
        raise SettingsError("http_workers", "needs Linux, which spreads connections over processes: use 0 here")
    allow_connections()
    # Alone at first: another server's port must be an error, not be shared with it.
    with ExitStack() as alone:
        listeners = [alone.enter_context(listener) for listener in listen_all(settings)]
        url = url_of(listeners[0], tls_context(settings) is not None)
        addresses = [(listener.family, listener.getsockname()) for listener in listeners]
    with (
        ExitStack() as reservations,
        tempfile.TemporaryDirectory(prefix="revmux-", ignore_cleanup_errors=True) as folder,
        socket.socket(socket.AF_UNIX) as engine_listener,
    ):
        for family, address in addresses:
            # Never listens: it keeps the port ours while no front end does.
            reservation = reservations.enter_context(socket.socket(family))
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reservation.bind(address)
        # Outlives engines: a front end that connects while there is none waits for the next.
        engine_listener.bind(f"{folder}/{ENGINE}")
        engine_listener.listen(4 * settings.http_workers)
        host, port = addresses[0][1][:2]
        resolved = settings.model_copy(update={"host": host, "port": port})
        asyncio.run(_supervise(resolved, url, Path(folder), engine_listener))


async def _supervise(settings: Settings, url: str, folder: Path, engine_listener: socket.socket) -> None:
    await Supervisor(settings, url, folder, engine_listener).run()


def _python_path() -> str:
    """Where this process finds modules, for those that it starts."""
    return os.pathsep.join(os.path.abspath(place) for place in sys.path)
