"""The model in the process that also speaks HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from revmux_core.bundle import Bundle
from revmux_core.errors import RevmuxError
from server.loading import Loaded, load_model
from server.service import Model, Service
from server.settings import Settings
from server.tokenization import RequestTokenizer

logger = logging.getLogger(__name__)


class InProcess:
    """Loads the bundle that `load` reads in a thread, once, and serves it to one event loop."""

    def __init__(self, settings: Settings, load: Callable[[], Bundle]) -> None:
        self._settings = settings
        self._load = load
        self._loaded: Loaded | None = None
        self._loading: asyncio.Task[None] | None = None

    def start(self, service: Service) -> None:
        self._loading = asyncio.create_task(self._run(service))

    async def close(self) -> None:
        if self._loading is not None:
            await self._loading
        if self._loaded is not None:
            await self._loaded.close()

    async def _run(self, service: Service) -> None:
        try:
            loaded = await asyncio.to_thread(load_model, self._settings, self._load, service.metrics)
        except RevmuxError as error:
            service.failure = error
        except Exception as error:
            logger.exception("loading failed")
            service.failure = error
        else:
            self._loaded = loaded
            loaded.batcher.lost.add_done_callback(lambda _: self._lose(service))
            service.serve(Model(loaded.facts, RequestTokenizer(loaded.tokenizer), loaded.batcher))

    def _lose(self, service: Service) -> None:
        service.failure = RevmuxError("the device is lost, see the log: start the server again")
