"""What stands between the routes and the model: its life cycle, and a request's way from texts to answers."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from starlette.requests import Request

from revmux_core.cascade import Quality
from revmux_core.plan import Tokens
from revmux_core.tokenization import Text
from server.answers import Answers, Batching, Terms
from server.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    RequestTooLarge,
    Unauthorized,
    Unavailable,
    UnknownModel,
)
from server.facts import Facts
from server.metrics import Metrics
from server.planner import PLAIN_ONLY
from server.settings import Settings
from server.tokenization import RequestTokenizer
from server.traces import current_trace, describe_request, tracing
from server.watch import Watch

LOADING_RETRY, DRAINING_RETRY = 5, 1
"""Seconds of `Retry-After`: while loading, about a small model's load; while draining, another replica answers now."""


class State(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Work(msgspec.Struct, frozen=True):
    """What a request asks for.

    `quality` None: the server's default; `max_width` None: as wide as served; `max_tokens` None: the model's limit.
    """

    texts: Sequence[Text]
    truncate: bool
    tenant: str
    quality: Quality | None = None
    max_width: int | None = None
    max_tokens: int | None = None
    priority: int = 0
    timeout_ms: float | None = None


@dataclass(slots=True, eq=False)
class Model:
    """A model that can be asked, and how many requests it was asked and has not answered: `admitted`."""

    facts: Facts
    tokenizer: RequestTokenizer
    batcher: Batching[Any]
    admitted: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """One of the admitted requests is over."""
        self.admitted -= 1
        if not self.admitted:
            self._idle.set()

    async def answered(self) -> None:
        """Returns once no admitted request is left."""
        while self.admitted:
            self._idle.clear()
            await self._idle.wait()


class Result(msgspec.Struct, frozen=True):
    """A request's answers, text by text the tokens that they took and how many of those stand for what the vocabulary
    lacks, and what gave them."""

    answers: Answers
    samples: Sequence[Tokens]
    unknown: Sequence[int]
    facts: Facts


class Backend(Protocol):
    """Where the model comes from. It tells its service of a model that can be asked, and of one that is gone."""

    def start(self, service: Service) -> None:
        """Begins to get the model ready, in the background."""

    async def close(self) -> None:
        """Ends what `start` began, after the batches that run."""


class Service:
    """One model behind one event loop. Where another takes its place, a request stays with the one it began with."""

    def __init__(self, settings: Settings, backend: Backend, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.failure: BaseException | None = None
        self._backend = backend
        self._model: Model | None = None
        self._draining = False
        self._admitted = 0

    @property
    def state(self) -> State:
        if self.failure is not None:
            return State.FAILED
        if self._draining:
            return State.DRAINING
        return State.LOADING if self._model is None else State.READY

    @property
    def idle(self) -> bool:
        """Whether every admitted request has its answer."""
        return self._admitted == 0

    @property
    def ending(self) -> bool:
        """Whether the server goes: it drains, or cannot be used any more."""
        return self._draining or self.failure is not None

    @property
    def model(self) -> Model:
        """The loaded model. Raises `Unavailable` while there is none."""
        if self._model is None:
            raise Unavailable("the model is still loading: try again shortly", LOADING_RETRY)
        return self._model

    def start(self) -> None:
        """Has the backend begin."""
        self._backend.start(self)

    def serve(self, model: Model) -> Model | None:
        """From now on `model` answers. Returns the one before it, which still has to answer what it was asked."""
        before, self._model = self._model, model
        return before

    def lose(self, model: Model) -> None:
        """`model` is gone; another one may come, or already answers."""
        model.tokenizer.close()
        if self._model is model:
            self._model = None

    def drain(self) -> None:
        """From now on refuses new work, while admitted requests are still answered."""
        self._draining = True

    async def close(self) -> None:
        """Ends the threads, after the batches that run."""
        self._draining = True
        await self._backend.close()
        if self._model is not None:
            self.lose(self._model)

    def authorize(self, headers: Mapping[str, str]) -> str:
        """The tenant that the `Authorization` header speaks for: the number of its key, or "" on an open server.

        Raises `Unauthorized` where a key is needed and this is none of them.
        """
        keys = self.settings.api_keys
        if not keys:
            return ""
        # As the client sent it: the framework reads headers as Latin-1.
        header = headers.get("authorization", "")
        sent = hashlib.sha256(header.removeprefix("Bearer ").encode("latin-1")).digest()
        # Every key is compared, so that the time taken tells nothing about any.
        matches = [hmac.compare_digest(sent, key) for key in keys]
        if not any(matches):
            raise Unauthorized
        return str(matches.index(True))

    def require_ready(self) -> Model:
        """The model, for new work. Raises `Unavailable` while there is none, or none any more."""
        if self._draining:
            raise Unavailable("the server is shutting down: send the request to another one", DRAINING_RETRY)
        return self.model

    def require_model(self, name: str | None) -> None:
        """Raises `UnknownModel` where a request names another model than the loaded one."""
        if name is not None and name != self.model.facts.name:
            raise UnknownModel(
                f"the loaded model is {self.model.facts.name}: name it, or leave `model` out", param="model"
            )

    async def classify(self, work: Work, request: Request) -> Result:
        """Admits, tokenizes, queues and awaits what `request` asks for, until its client leaves.

        Raises a `ServiceError` for every way in which this can end without answers.
        """
        model = self.require_ready()
        if work.quality == "guaranteed" and not model.facts.cascades:
            raise InvalidRequest(
                "this server has no certified cascade (the bundle is not calibrated, or --point or --width leaves its "
                "cascades out): ask for `quality` exact (plain inference) or fast",
                param="quality",
            )
        most = self.settings.max_items_per_request
        if len(work.texts) > most:
            raise RequestTooLarge(f"the request has {len(work.texts)} inputs, more than {most}: send fewer at a time")
        timeout_ms = self.settings.default_timeout_ms if work.timeout_ms is None else work.timeout_ms
        self._admitted += 1
        model.admitted += 1
        self.metrics.in_progress.inc()
        try:
            return await self._answer(model, work, timeout_ms, request)
        except DeadlineExceeded:
            self.metrics.expired.inc()
            raise
        except QueueFull:
            self.metrics.shed.inc()
            raise
        except ClientDisconnected:
            self.metrics.cancelled.inc()
            raise
        finally:
            self._admitted -= 1
            model.release()
            self.metrics.in_progress.dec()

    async def _answer(self, model: Model, work: Work, timeout_ms: float, request: Request) -> Result:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        if model.tokenizer.is_quick(work.texts):
            samples = model.tokenizer.tokenize(work.texts, work.max_tokens, work.truncate)
        else:
            try:
                async with asyncio.timeout_at(deadline):
                    samples = await model.tokenizer.tokenize_large(work.texts, work.max_tokens, work.truncate)
            except TimeoutError:
                raise DeadlineExceeded(timeout_ms) from None
        quality = work.quality or model.facts.quality
        widest = model.facts.widths[-1]
        max_width = widest if work.max_width is None else min(work.max_width, widest)
        if quality == "exact":
            max_width = PLAIN_ONLY
        if tracing():
            describe_request(items=len(samples), tokens=sum(map(len, samples)), quality=quality)
        left, trace = deadline - loop.time(), current_trace()
        terms = Terms(max_width, work.priority, quality == "guaranteed", work.tenant, left, trace)
        pending = model.batcher.submit(samples, terms)
        watch = Watch(pending, request, deadline, timeout_ms)
        try:
            answers = await pending.answers
        finally:
            watch.stop()
            model.batcher.withdraw(pending)
            # An error that `answers` came to holds this frame: with the future in it that is a cycle around the whole
            # request, 70 objects, until garbage is collected.
            del pending, watch
        self.metrics.queue_duration.observe(answers.queue_seconds)
        describe_request(queue_seconds=answers.queue_seconds, inference_seconds=answers.inference_seconds)
        unknown = list(map(model.tokenizer.unknown, samples))
        self.metrics.unknown_tokens.inc(sum(unknown))
        return Result(answers, samples, unknown, model.facts)
