"""From settings to a model that is loaded, warm and behind its batcher; for the process that holds it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from revmux_core.backends import SHARDED
from revmux_core.backends.select import choose_dtype
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.cascade import Quality
from revmux_core.manifest import CascadeEntry
from revmux_core.points import OperatingPoint
from revmux_core.tokenization import TextTokenizer
from server.adaptive import AdaptiveMenu, CostModel, ladders
from server.admission import QueueLimits
from server.batcher import Batcher
from server.device_memory import MemoryWatch
from server.engine import CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS, Engine, resolve_device
from server.facts import Facts, ServedCascade, ServedPoint
from server.guard import Audit, Guards
from server.metrics import Metrics
from server.planner import Menu, served_cascades, served_points
from server.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

TYPICAL_LENGTH = 32
"""Tokens of the samples that the speeds of the ladder's rungs are compared at."""

PATIENCE_BATCHES = 0.2
"""How long what waits may take before more is multiplexed, in full plain batches: it shares the next batch. At 0.5 a
server with 16 in flight answered 0.81 to 0.89 times as many requests, with 8 in flight 0.91 to 0.96
(`docs/performance/serving.md`)."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can be asked."""

    facts: Facts
    tokenizer: TextTokenizer
    batcher: Batcher
    engine: Engine
    memory: MemoryWatch | None
    """Of a GPU."""

    async def unload(self) -> None:
        """Leaves the device thread to the model that took this one's place, after the batches that run."""
        if self.memory is not None:
            self.memory.close()
        await self.batcher.close()

    async def close(self) -> None:
        """Ends the device thread, after the batches that run."""
        await self.unload()
        self.engine.close()


def bundle_reader(settings: Settings) -> Callable[[], Bundle]:
    """What reads the bundle that `settings` name, for the device and in the precision that they name.

    Raises `RevmuxError` for a device, a backend or a precision that is not to be had here.
    """
    device = resolve_device(settings)
    dtype = choose_dtype(settings.dtype, settings.backend, device)
    sharded = settings.device == SHARDED
    return partial(load_bundle, settings.bundle, settings.base, device, dtype, settings.backend, sharded)


def load_model(
    settings: Settings, load: Callable[[], Bundle], metrics: Metrics, beside: Engine | None = None
) -> Loaded:
    """Loads what `load` reads and warms it up, in the threads of the engine `beside` where one answers meanwhile. It
    takes seconds.

    Raises `RevmuxError` for a setting or a bundle that cannot be served.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    bundle = load()
    manifest, classifier = bundle.manifest, bundle.classifier
    device = next(classifier.parameters()).device
    layers = classifier.backbone.num_layers
    chosen = settings.choose_points(classifier.points, layers, manifest.measured_agreement)
    menu = Menu(
        served_points(chosen, layers),
        served_cascades(settings.choose_cascades(bundle.cascades())),
        costs={entry.width: 1 / entry.ideal_speedup for entry in manifest.cascades},
        passed={entry.width: entry.expected_on for entry in manifest.cascades},
    )
    classifier.executor.limit(menu.points)
    quality = _default_quality(settings, menu, manifest.name)
    if len(menu.points) == 1 and len(classifier.points) > 1 and isinstance(settings.width, str) and not settings.point:
        logger.warning(
            "serving the plain path only: no other point of bundle %s was measured to agree with it on %.0f%% "
            "(measure with `revmux card`, calibrate, or choose --min-agreement, --width or --point)",
            manifest.name,
            100 * settings.min_agreement,
        )
    default = CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS
    max_batch_tokens = settings.max_batch_tokens or default
    follows_load = settings.width == "auto" and settings.point is None
    # Where the menu follows the load a text alone is answered plainly, else at the cheapest point without partners.
    alone = menu.plain if follows_load else next(point for point in menu.points if point.width == 1)
    classifier.executor.prepare(alone)
    engine = Engine(bundle, menu.points, device, beside)
    timings = engine.warm_up(max_batch_tokens)
    length = min(TYPICAL_LENGTH, bundle.tokenizer.max_tokens)
    costs = CostModel.fit(timings)
    if classifier.executor.backend == "openvino":
        # In PyTorch a later step costs far less than a batch's start: 0.91 times as many requests with this.
        menu = replace(menu, step_tokens=costs.start_tokens(menu.plain))
    guaranteed, fast = ladders(menu, costs, max_batch_tokens, length)
    adaptive = AdaptiveMenu.fixed(menu)
    if follows_load:
        patience = PATIENCE_BATCHES * fast[0].seconds(max_batch_tokens)
        adaptive = AdaptiveMenu(guaranteed, fast, max_batch_tokens, patience)
    target = None if manifest.calibration is None else manifest.calibration.target
    guards = Guards(target, settings.shadow_share, _reporter(metrics))
    share = settings.tenant_share if len(settings.api_keys) > 1 else 1.0
    limits = QueueLimits(settings.max_queue_items, settings.max_queue_tokens, share)
    speed = max_batch_tokens / min(rungs[-1].seconds(max_batch_tokens) for rungs in (guaranteed, fast))
    batcher = Batcher(engine, menu, adaptive, max_batch_tokens, limits, metrics, guards, speed, settings.mux_scope)
    facts = _describe(bundle, menu, quality, max_batch_tokens)
    memory = None
    if device.type == "cuda":
        memory = MemoryWatch(engine.memory, partial(metrics.observe_device_memory, facts.device))
    return Loaded(facts, bundle.tokenizer, batcher, engine, memory)


def _default_quality(settings: Settings, menu: Menu, name: str) -> Quality:
    if settings.quality == "guaranteed" and not menu.cascades:
        raise SettingsError("quality", f"no calibrated cascade of bundle {name} is served")
    if settings.quality != "auto":
        return settings.quality
    return "guaranteed" if menu.cascades else "fast"


def _describe(bundle: Bundle, menu: Menu, quality: Quality, max_batch_tokens: int) -> Facts:
    manifest, backbone = bundle.manifest, bundle.classifier.backbone
    served = {cascade.width for cascade in menu.cascades}
    certified = [entry for entry in manifest.cascades if entry.width in served]
    calibration = manifest.calibration if certified else None

    def describe_point(point: OperatingPoint) -> ServedPoint:
        agreement = manifest.measured_agreement.get(point.name)
        ideal = point.ideal_speedup(backbone.num_layers, bundle.classifier.executor.last_layer)
        return ServedPoint(point.name, point.width, point.prefill, ideal, agreement)

    def describe_cascade(entry: CascadeEntry) -> ServedCascade:
        return ServedCascade(
            width=entry.width,
            points=list(entry.points),
            score=entry.score,
            thresholds=list(entry.thresholds),
            predicted_escalation_rate=entry.escalation_rate,
            ideal_speedup=entry.ideal_speedup,
        )

    return Facts(
        name=manifest.name,
        base=manifest.base.model_id,
        labels=manifest.labels,
        problem_type=manifest.problem_type,
        thresholds=manifest.thresholds,
        tolerance=manifest.tolerance,
        widths=sorted({point.width for point in menu.points}),
        points=[describe_point(point) for point in reversed(menu.points)],
        cascades=[describe_cascade(entry) for entry in certified],
        certified_agreement=None if calibration is None else calibration.target,
        certified_confidence=None if calibration is None else calibration.confidence,
        quality=quality,
        device=str(next(bundle.classifier.parameters()).device),
        dtype=bundle.classifier.executor.precision,
        max_tokens=bundle.tokenizer.max_tokens,
        max_batch_tokens=max_batch_tokens,
        loaded_at=int(time.time()),
    )


def _reporter(metrics: Metrics) -> Callable[[Audit], None]:
    def report(audit: Audit) -> None:
        metrics.observe_audit(audit)
        if audit.changed and audit.guard.suspended:
            logger.warning(
                "the cascade of width %d is suspended: audits say that it no longer agrees with the plain model as "
                "often as it was certified to; the texts are not those it was calibrated on",
                audit.width,
            )
        elif audit.changed:
            logger.warning("the cascade of width %d answers again: audits agree often enough", audit.width)

    return report
