"""One model served, and another that takes its place while it answers: load beside, warm up, switch, unload."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor

from revmux_core.bundle import Bundle
from revmux_core.errors import RevmuxError
from server.garbage import clear, settle, unsettle
from server.loading import Loaded, load_model
from server.metrics import Metrics
from server.settings import Settings

logger = logging.getLogger(__name__)

LOWEST_PRIORITY = 19
"""As `nice` has it, for what loads beside a model that answers. At the usual one, with OpenVINO, which compiles on all
cores, requests waited 4 to 21 times as long meanwhile, and 2 to 7 times with this and a shorter warm-up
(`docs/performance/serving.md`)."""


class HotSwap:
    """Loads what `load` reads, and again whenever it is told to, beside the model that answers meanwhile.

    `switch` has a model asked from now on, and returns once nobody waits for the one before it; `lose` is called when
    the device is lost, and with it all models. Belongs to one event loop; both models are in memory from the second
    one's loading to the first one's last answer.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Bundle],
        metrics: Metrics,
        switch: Callable[[Loaded], Awaitable[None]],
        lose: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._load = load
        self._metrics = metrics
        self._switch = switch
        self._lose = lose
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()
        self._closing = False
        self.lost = False
        self._loaded: Loaded | None = None
        self._swapping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once the first model is asked; from then on others may take its place.

        Raises `RevmuxError` for a setting or a bundle that cannot be served.
        """
        settle()
        loaded = await asyncio.to_thread(load_model, self._settings, self._load, self._metrics)
        self._metrics.describe_model(loaded.facts)
        clear()
        await self._serve(loaded)
        self._swapping = asyncio.create_task(self._run())

    def reload(self) -> None:
        """Has the bundle read again, from any thread. What is asked while that is under way is done once, afterwards:
        the bundle may have changed since it was read."""
        self._loop.call_soon_threadsafe(self._wanted.set)

    async def close(self) -> None:
        """Ends the device thread, after a swap that is under way and the batches that run."""
        self._closing = True
        self._wanted.set()
        if self._swapping is not None:
            await self._swapping
        if self._loaded is not None:
            await self._loaded.close()
        unsettle()

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._closing:
                break
            outcome = "done" if await self._swap() else "failed"
            self._metrics.reloads.labels(outcome).inc()
            clear()

    async def _swap(self) -> bool:
        """Whether another model answers now."""
        before = self._loaded
        assert before is not None
        bundle, name = self._settings.bundle, before.facts.name
        logger.info("reading bundle %s again, while %s answers", bundle, name)
        # Of its own, as no thread gets a higher priority back; those that it starts have the same.
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="revmux-swap", initializer=_give_way)
        try:
            # In the same device thread: neither slows the other's batch, nor is that measured as its speed.
            loaded = await self._loop.run_in_executor(
                thread, load_model, self._settings, self._load, self._metrics, before.engine
            )
        except Exception as error:
            if not isinstance(error, RevmuxError):
                logger.exception("loading failed")
            logger.error("bundle %s cannot be served, so %s goes on answering: %s", bundle, name, error)
            return False
        finally:
            thread.shutdown(wait=False)
        await self._serve(loaded)
        await before.unload()
        # Only now, as what audits of the one before say would be taken for its own.
        self._metrics.describe_model(loaded.facts)
        logger.info("bundle %s answers as %s; the %s before it is unloaded", bundle, loaded.facts.name, name)
        return True

    async def _serve(self, loaded: Loaded) -> None:
        self._loaded = loaded
        loaded.batcher.lost.add_done_callback(self._on_lost)
        await self._switch(loaded)

    def _on_lost(self, _: Future[None]) -> None:
        self.lost = True
        self._lose()


def _give_way() -> None:
    """Has this thread run only where no other one wants to. Elsewhere than on Linux, priorities are of a process."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)
