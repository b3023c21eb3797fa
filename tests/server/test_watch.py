"""What watches a waiting request, without a server around it."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref

from starlette.requests import Request
from starlette.types import Message

from server.answers import Answers
from server.watch import Watch


class Waiting:
    """A request that waits."""

    def __init__(self) -> None:
        self.answers: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        raise AssertionError("it has time, and its client is there")


async def test_a_request_that_was_watched_leaves_nothing_for_the_garbage_collector() -> None:
    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    waiting = Waiting()
    gone = weakref.ref(waiting)
    watch = Watch(waiting, Request({"type": "http"}, receive), math.inf, math.inf)
    await asyncio.sleep(0.01)
    gc.disable()
    try:
        watch.stop()
        del watch, waiting
        # The task's last turn.
        await asyncio.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()
