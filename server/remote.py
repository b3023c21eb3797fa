"""The model in another process: what a front end knows of it, and its requests on their way there and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from tokenizers import Tokenizer as RustTokenizer

from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint
from revmux_core.tokenization import TextTokenizer
from server.answers import Answer, Answers, Terms
from server.channel import Channel
from server.errors import InferenceFailed, QueueFull, QueueTooLong, RequestTooLarge, Unavailable
from server.messages import Answered, Failed, FrameError, Hello, Refused, Renewed, Sample, Submit, ToFrontEnd, Withdraw
from server.service import LOADING_RETRY, Model, Service
from server.tokenization import RequestTokenizer

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.1

HIGHEST_PRIORITY = 2**31
"""Priorities beyond it, on either side, are as good as it: a message holds no number without bounds, as JSON does."""


class RemotePending:
    """A request that the engine was sent. `answers` resolves to `Answers`, or to the error that either side set."""

    __slots__ = ("answers", "number")

    def __init__(self, number: int, answers: asyncio.Future[Answers]) -> None:
        self.number = number
        self.answers = answers

    def fail(self, error: Exception) -> None:
        if not self.answers.done():
            self.answers.set_exception(error)


class RemoteBatcher(Channel[ToFrontEnd]):
    """The engine's batcher of one model, as long as the connection to its process lasts.

    `hello` resolves when the model can be asked, `renewed` when another takes its place, `gone` with the connection.
    """

    def __init__(self) -> None:
        super().__init__(msgspec.msgpack.Decoder(ToFrontEnd))
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[Hello] = loop.create_future()
        self.renewed: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._waiting: dict[int, RemotePending] = {}
        self._points: dict[str, OperatingPoint] = {}
        self._submitted = 0

    def submit(self, samples: Sequence[Tokens], terms: Terms) -> RemotePending:
        """Sends a request to the engine, which may still refuse it: then the answers are `QueueFull`.

        Raises `Unavailable` where the engine is gone, `QueueFull` where it does not keep up with reading, and
        `RequestTooLarge` for more tokens than a message holds.
        """
        if self.transport is None:
            raise _engine_lost()
        if self.slow:
            raise QueueFull(1)
        self._submitted += 1
        if abs(terms.priority) > HIGHEST_PRIORITY:
            priority = min(max(terms.priority, -HIGHEST_PRIORITY), HIGHEST_PRIORITY)
            terms = msgspec.structs.replace(terms, priority=priority)
        message = Submit(
            number=self._submitted,
            samples=list(map(Sample.of, samples)),
            terms=terms,
        )
        try:
            self.send(message)
        except FrameError as error:
            raise RequestTooLarge("the request has too many tokens: send fewer texts at a time") from error
        pending = RemotePending(message.number, asyncio.get_running_loop().create_future())
        self._waiting[message.number] = pending
        return pending

    def withdraw(self, pending: RemotePending) -> None:
        """Tells the engine that nobody waits for this request any more, unless it has been answered."""
        if self._waiting.pop(pending.number, None) is not None:
            self.send(Withdraw(pending.number))

    def heard(self, message: ToFrontEnd) -> None:
        if isinstance(message, Hello):
            points = [OperatingPoint.parse(point.name) for point in message.facts.points]
            self._points = {point.name: point for point in points}
            self.hello.set_result(message)
            return
        if isinstance(message, Renewed):
            self.renewed.set_result(None)
            return
        # A request that was withdrawn while its answer was on the way is waited for no more.
        pending = self._waiting.pop(message.number, None)
        if pending is None or pending.answers.done():
            return
        if isinstance(message, Answered):
            items = [
                Answer(logits, probs, self._points[point], escalated)
                for logits, probs, point, escalated in message.items
            ]
            pending.answers.set_result(Answers(items, message.queue_seconds, message.inference_seconds))
        elif isinstance(message, Refused):
            pending.fail((QueueTooLong if message.too_long else QueueFull)(message.seconds))
        else:
            assert isinstance(message, Failed)
            pending.fail(InferenceFailed())

    def close(self) -> None:
        """Ends the connection: nothing will be asked over it any more."""
        if self.transport is not None:
            self.transport.close()

    def lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for pending in waiting.values():
            pending.fail(_engine_lost())
        if not self.hello.done():
            self.hello.cancel()
        self.gone.set_result(None)


class Remote:
    """Connects to the engine that listens at `path`, and again for the model that comes after its first one, and to the
    engine that comes after it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connecting: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def start(self, service: Service) -> None:
        self._connecting = asyncio.create_task(self._run(service))

    async def close(self) -> None:
        if self._connecting is not None:
            tasks = {self._connecting, *self._leaving}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _run(self, service: Service) -> None:
        try:
            await self._serve(service)
        except Exception as error:
            logger.exception("the engine cannot be used")
            service.failure = error

    async def _serve(self, service: Service) -> None:
        while True:
            try:
                _, batcher = await asyncio.get_running_loop().create_unix_connection(RemoteBatcher, str(self._path))
            except OSError:
                logger.exception("the engine cannot be reached")
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            await asyncio.wait([batcher.hello])
            if not batcher.hello.cancelled():
                # Not on the event loop, which has the server's health to tell meanwhile.
                tokenizer = await asyncio.to_thread(_tokenizer_of, batcher.hello.result())
                model = Model(batcher.hello.result().facts, RequestTokenizer(tokenizer), batcher)
                batcher.gone.add_done_callback(partial(_lose, service, model))
                before = service.serve(model)
                if before is not None:
                    leaving = asyncio.create_task(_leave(before))
                    self._leaving.add(leaving)
                    leaving.add_done_callback(self._leaving.discard)
            await asyncio.wait([batcher.gone, batcher.renewed], return_when=asyncio.FIRST_COMPLETED)


async def _leave(model: Model) -> None:
    """Ends the connection to a model that was replaced, after its last answer."""
    await model.answered()
    assert isinstance(model.batcher, RemoteBatcher)
    model.batcher.close()


def _lose(service: Service, model: Model, gone: asyncio.Future[None]) -> None:
    service.lose(model)


def _tokenizer_of(hello: Hello) -> TextTokenizer:
    rust, facts = RustTokenizer.from_str(hello.tokenizer), hello.facts
    return TextTokenizer(rust, hello.segmented, facts.max_tokens, facts.problem.by_word, hello.unknown_id)


def _engine_lost() -> Unavailable:
    return Unavailable("the process that held the model ended and is started again: repeat the request", LOADING_RETRY)
