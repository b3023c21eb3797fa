"""What stands between the routes and the batcher: the model's life cycle, and a request's way from texts to answers."""

from __future__ import annotations

import asyncio
import enum
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from starlette.types import Receive

from revmux_core.bundle import Bundle
from revmux_core.cascade import Quality
from revmux_core.errors import RevmuxError
from revmux_core.manifest import CascadeEntry, Manifest
from revmux_core.tokenization import Text
from server import __version__
from server.adaptive import AdaptiveMenu, CostModel, ladder
from server.admission import QueueLimits
from server.batcher import Answers, Batcher, Pending, Terms
from server.engine import CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS, Engine
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
from server.guard import Audit, Guards
from server.metrics import Metrics
from server.planner import PLAIN_ONLY, Menu, served_cascades, served_points
from server.settings import Settings, SettingsError
from server.tokenization import RequestTokenizer

logger = logging.getLogger(__name__)

TYPICAL_LENGTH = 32
"""Tokens of the samples that the speeds of the ladder's rungs are compared at."""

PATIENCE_BATCHES = 0.5
"""How long a queue may be before more is multiplexed, in full plain batches: what waits then shares the next batch."""

LOADING_RETRY, DRAINING_RETRY = 5, 1
"""Seconds of `Retry-After`: while loading, about a small model's load; while draining, another replica answers now."""


class State(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Work:
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


@dataclass(frozen=True, slots=True)
class Result:
    """A request's answers and the tokens that they took."""

    answers: Answers
    tokens: int


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that exists once the bundle is loaded and warm."""

    manifest: Manifest
    menu: Menu
    quality: Quality
    max_batch_tokens: int
    engine: Engine
    tokenizer: RequestTokenizer
    batcher: Batcher
    device: torch.device
    precision: str
    loaded_at: int

    @property
    def widths(self) -> list[int]:
        return sorted({point.width for point in self.menu.points})

    @property
    def certified(self) -> list[CascadeEntry]:
        """The calibrated cascades that are served."""
        served = {cascade.width for cascade in self.menu.cascades}
        return [entry for entry in self.manifest.cascades if entry.width in served]


class Service:
    """One loaded model behind one event loop. `load` reads the bundle; it runs in a thread, once."""

    def __init__(self, settings: Settings, load: Callable[[], Bundle]) -> None:
        self.settings = settings
        self.metrics = Metrics(__version__)
        self.failure: BaseException | None = None
        self._load = load
        self._loading: asyncio.Task[None] | None = None
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
    def model(self) -> Model:
        """The loaded model. Raises `Unavailable` before it is there."""
        if self._model is None:
            raise Unavailable("the model is still loading: try again shortly", LOADING_RETRY)
        return self._model

    def start(self) -> None:
        """Begins to load and warm up in the background."""
        self._loading = asyncio.create_task(self._start_model())

    def drain(self) -> None:
        """From now on refuses new work, while admitted requests are still answered."""
        self._draining = True

    async def close(self) -> None:
        """Ends the threads, after the batches that run."""
        self._draining = True
        if self._loading is not None:
            await self._loading
        if self._model is not None:
            await self._model.batcher.close()
            self._model.tokenizer.close()
            self._model.engine.close()

    def authorize(self, header: str | None) -> str:
        """The tenant that an `Authorization` header speaks for: the number of its key, or "" on an open server.

        Raises `Unauthorized` where a key is needed and this is none of them.
        """
        keys = self.settings.api_keys
        if not keys:
            return ""
        sent = (header or "").removeprefix("Bearer ").encode()
        # Every key is compared, so that the time taken tells nothing about any.
        matches = [hmac.compare_digest(sent, key.get_secret_value().encode()) for key in keys]
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
        if name is not None and name != self.model.manifest.name:
            raise UnknownModel(
                f"the loaded model is {self.model.manifest.name}: name it, or leave `model` out", param="model"
            )

    async def classify(self, work: Work, receive: Receive) -> Result:
        """Admits, tokenizes, queues and awaits one request, whose client's disconnect is read from `receive`.

        Raises a `ServiceError` for every way in which this can end without answers.
        """
        model = self.require_ready()
        if work.quality == "guaranteed" and not model.menu.cascades:
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
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._answer(model, work, receive)
        except TimeoutError:
            self.metrics.expired.inc()
            raise DeadlineExceeded(timeout_ms) from None
        except QueueFull:
            self.metrics.shed.inc()
            raise
        except ClientDisconnected:
            self.metrics.cancelled.inc()
            raise
        finally:
            self._admitted -= 1

    async def _answer(self, model: Model, work: Work, receive: Receive) -> Result:
        samples = await model.tokenizer.tokenize(work.texts, work.max_tokens, work.truncate)
        quality = work.quality or model.quality
        max_width = model.widths[-1] if work.max_width is None else work.max_width
        if quality == "exact":
            max_width = PLAIN_ONLY
        terms = Terms(max_width, work.priority, quality == "guaranteed", work.tenant)
        pending = model.batcher.submit(samples, terms)
        watcher = asyncio.create_task(_fail_on_disconnect(receive, pending))
        try:
            answers = await pending.answers
        finally:
            watcher.cancel()
            model.batcher.withdraw(pending)
        self.metrics.queue_duration.observe(answers.queue_seconds)
        return Result(answers, sum(map(len, samples)))

    async def _start_model(self) -> None:
        try:
            self._model = await asyncio.to_thread(self._build_model)
        except RevmuxError as error:
            self.failure = error
        except Exception as error:
            logger.exception("loading failed")
            self.failure = error

    def _report(self, audit: Audit) -> None:
        self.metrics.observe_audit(audit)
        if audit.changed and audit.guard.suspended:
            logger.warning(
                "the cascade of width %d is suspended: audits say that it no longer agrees with the plain model as "
                "often as it was certified to; the texts are not those it was calibrated on",
                audit.width,
            )
        elif audit.changed:
            logger.warning("the cascade of width %d answers again: audits agree often enough", audit.width)

    def _build_model(self) -> Model:
        settings = self.settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        bundle = self._load()
        manifest, classifier = bundle.manifest, bundle.classifier
        parameter = next(classifier.parameters())
        device = parameter.device
        layers = classifier.backbone.num_layers
        chosen = settings.choose_points(classifier.points, layers, manifest.measured_agreement)
        menu = Menu(served_points(chosen, layers), served_cascades(settings.choose_cascades(bundle.cascades())))
        if settings.quality == "guaranteed" and not menu.cascades:
            raise SettingsError("quality", f"no calibrated cascade of bundle {manifest.name} is served")
        quality = settings.quality
        if quality == "auto":
            quality = "guaranteed" if menu.cascades else "fast"
        if (
            len(menu.points) == 1
            and len(classifier.points) > 1
            and isinstance(settings.width, str)
            and not settings.point
        ):
            logger.warning(
                "serving the plain path only: no other point of bundle %s was measured to agree with it on %.0f%% "
                "(measure with `revmux card`, calibrate, or choose --min-agreement, --width or --point)",
                manifest.name,
                100 * settings.min_agreement,
            )
        default = CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS
        max_batch_tokens = settings.max_batch_tokens or default
        engine = Engine(bundle, menu.points, device)
        timings = engine.warm_up(max_batch_tokens)
        adaptive = AdaptiveMenu.fixed(menu)
        if settings.width == "auto" and settings.point is None:
            speedups = {entry.width: entry.ideal_speedup for entry in manifest.cascades}
            length = min(TYPICAL_LENGTH, bundle.tokenizer.max_tokens)
            rungs = ladder(menu, speedups, CostModel.fit(timings), max_batch_tokens, length)
            adaptive = AdaptiveMenu(rungs, PATIENCE_BATCHES * max_batch_tokens * rungs[0].seconds_per_token)
        target = None if manifest.calibration is None else manifest.calibration.target
        guards = Guards(target, settings.shadow_share, self._report)
        share = settings.tenant_share if len(settings.api_keys) > 1 else 1.0
        limits = QueueLimits(settings.max_queue_items, settings.max_queue_tokens, share)
        batcher = Batcher(engine, menu, adaptive, max_batch_tokens, limits, self.metrics, guards, settings.mux_scope)
        model = Model(
            manifest=manifest,
            menu=menu,
            quality=quality,
            max_batch_tokens=max_batch_tokens,
            engine=engine,
            tokenizer=RequestTokenizer(bundle.tokenizer),
            batcher=batcher,
            device=device,
            precision=classifier.executor.precision,
            loaded_at=int(time.time()),
        )
        self.metrics.watch(lambda: self._admitted, lambda: batcher.load)
        self.metrics.predict_escalations({entry.width: entry.escalation_rate for entry in model.certified})
        self.metrics.describe_model(manifest.name, manifest.base.model_id, ",".join(map(str, model.widths)))
        return model


async def _fail_on_disconnect(receive: Receive, pending: Pending) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    pending.fail(ClientDisconnected())
