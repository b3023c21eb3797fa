"""The model in the process that also speaks HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from revmux_core.bundle import Bundle
from revmux_core.errors import RevmuxError
from server.loading import Loaded
from server.service import Model, Service
from server.settings import Settings
from server.swap import HotSwap
from server.tokenization import RequestTokenizer

logger = logging.getLogger(__name__)


class InProcess:
    """Loads the bundle that `load` reads in a thread, again when it is told to, and serves it to one event loop."""

    def __init__(self, settings: Settings, load: Callable[[], Bundle]) -> None:
        self._settings = settings
        self._load = load
        self._swap: HotSwap | None = None
        self._loading: asyncio.Task[None] | None = None

    def start(self, service: Service) -> None:
        async def switch(loaded: Loaded) -> None:
            before = service.serve(Model(loaded.facts, RequestTokenizer(loaded.tokenizer), loaded.batcher))
            if before is not None:
                await before.answered()
                service.lose(before)

        def lose() -> None:
            service.failure = RevmuxError("the device is lost, see the log: start the server again")

        self._swap = HotSwap(self._settings, self._load, service.metrics, switch, lose)
        self._loading = asyncio.create_task(self._run(service, self._swap))

    def reload(self) -> None:
        """Has another model take the place of the one that answers, see `HotSwap.reload`."""
        if self._swap is not None:
            self._swap.reload()

    async def loaded(self) -> None:
        """Returns once the first loading is over, well or not: the service has a model or the failure."""
        if self._loading is not None:
            await self._loading

    async def close(self) -> None:
        swap, self._swap = self._swap, None
        await self.loaded()
        if swap is not None:
            await swap.close()

    async def _run(self, service: Service, swap: HotSwap) -> None:
        try:
            await swap.start()
        except RevmuxError as error:
            service.failure = error
        except Exception as error:
            logger.exception("loading failed")
            service.failure = error
