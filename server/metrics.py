"""Prometheus metrics. Base units, and label values from closed sets: no client can add a time series."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from revmux_core.cascade import Cascade
from revmux_core.points import OperatingPoint
from server.admission import Load
from server.device_memory import DeviceMemory
from server.facts import Facts
from server.guard import Audit
from server.processes import ProcessTree

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_POWERS = tuple(2.0**n for n in range(15))


# Of a gauge that one process sets, in a server of several; and of one that all of them have a part in.
_LATEST: Final = "livemostrecent"
_SUM: Final = "livesum"


class Metrics:
    """One process's part of a server's metrics; what is rendered is the whole server's.

    With `shared`, a folder, several processes are one server: each keeps its part in a file there, where a restart
    finds it again. The folder must be in PROMETHEUS_MULTIPROC_DIR before this module is imported. Gauges of processes
    that ended do not count, once the supervisor has removed their files.
    """

    def __init__(self, version: str, shared: Path | None = None) -> None:
        registry = CollectorRegistry()
        if shared is None:
            self._whole = registry
            ProcessCollector(registry=registry)
        else:
            self._whole = CollectorRegistry()
            MultiProcessCollector(self._whole, str(shared))
            self._whole.register(ProcessTree(shared))
        self.requests = Counter(
            "revmux_requests", "Requests by path and HTTP status.", ["path", "status"], registry=registry
        )
        self.request_duration = Histogram(
            "revmux_request_duration_seconds",
            "Time from a request's headers to its whole answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_duration = Histogram(
            "revmux_queue_duration_seconds",
            "Time that an answered request waited for the device.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inference_duration = Histogram(
            "revmux_inference_duration_seconds", "Compute time of a batch.", buckets=_SECONDS, registry=registry
        )
        self.inputs = Counter(
            "revmux_inputs",
            "Classified inputs, by the mux width and operating point that they ran at.",
            ["mux_width", "point"],
            registry=registry,
        )
        self.batch_size = Histogram("revmux_batch_size", "Samples of a batch.", buckets=_POWERS, registry=registry)
        self.batch_tokens = Histogram(
            "revmux_batch_tokens",
            "Tokens of a batch without padding, once for every step of a cascade.",
            buckets=_POWERS,
            registry=registry,
        )
        self.unknown_tokens = Counter(
            "revmux_unknown_tokens",
            "Tokens of answered inputs that the model's vocabulary lacks: other languages and scripts, emoji.",
            registry=registry,
        )
        self.padded_tokens = Counter(
            "revmux_padded_tokens", "Positions that were computed, padding among them.", registry=registry
        )
        self.batch_padding = Histogram(
            "revmux_batch_padding_ratio",
            "Share of a batch's positions that are padding.",
            buckets=(0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75),
            registry=registry,
        )
        self.batch_composites = Histogram(
            "revmux_batch_composites", "Composites of a batch.", buckets=(0.0, *_POWERS), registry=registry
        )
        self.guaranteed = Counter(
            "revmux_guaranteed_inputs",
            "Inputs that a certified cascade answered, escalated ones among them, by its mux width.",
            ["mux_width"],
            registry=registry,
        )
        self.escalations = Counter(
            "revmux_escalations",
            "Inputs that a certified cascade escalated to the plain path from its last step, by its mux width.",
            ["mux_width"],
            registry=registry,
        )
        self.shortened = Counter(
            "revmux_shortened_inputs",
            "Inputs that went there from an earlier step, as too few were left for the others to pay.",
            ["mux_width"],
            registry=registry,
        )
        self.predicted_escalation_rate = Gauge(
            "revmux_predicted_escalation_rate",
            "Share of inputs that calibration predicted to be escalated, by mux width.",
            ["mux_width"],
            registry=registry,
            multiprocess_mode=_LATEST,
        )
        self.certified_agreement = Gauge(
            "revmux_certified_agreement",
            "Share of answers that a certified cascade promises to be the plain model's, by its mux width.",
            ["mux_width"],
            registry=registry,
            multiprocess_mode=_LATEST,
        )
        labels = ["mux_width", "quality"]
        self.shadow_answers = Counter(
            "revmux_shadow_answers",
            "Answers that were audited: given by the plain path and compared.",
            [*labels, "agreed"],
            registry=registry,
        )
        self.shadow_agreement, self.shadow_agreement_low, self.shadow_agreement_high = (
            Gauge(name, help_text, labels, registry=registry, multiprocess_mode=_LATEST)
            for name, help_text in (
                ("revmux_shadow_agreement", "Share of recent audits that agreed."),
                ("revmux_shadow_agreement_low", "Lower end of its 95% interval."),
                ("revmux_shadow_agreement_high", "Upper end of its 95% interval."),
            )
        )
        self.suspended = Gauge(
            "revmux_cascade_suspended",
            "1 while audits say that a certified cascade does not keep its target, and it does not answer.",
            ["mux_width"],
            registry=registry,
            multiprocess_mode=_LATEST,
        )
        self.retried = Counter(
            "revmux_retried_inputs",
            "Inputs that were computed again: their batch failed, or they or their partners were NaN or infinite.",
            registry=registry,
        )
        self.shed = Counter("revmux_shed_requests", "Requests refused because the queue was full.", registry=registry)
        self.expired = Counter("revmux_expired_requests", "Requests past their deadline.", registry=registry)
        self.cancelled = Counter("revmux_cancelled_requests", "Requests whose client had gone.", registry=registry)
        self.in_progress, self.queue_items, self.queue_tokens = (
            Gauge(name, help_text, registry=registry, multiprocess_mode=_SUM)
            for name, help_text in (
                ("revmux_requests_in_progress", "Admitted requests without an answer yet."),
                ("revmux_queue_items", "Samples that wait for the device."),
                ("revmux_queue_tokens", "Tokens that wait for the device."),
            )
        )
        self._device_memory = {
            kind: Gauge(
                f"revmux_device_memory_{kind}_bytes",
                help_text,
                ["device"],
                registry=registry,
                multiprocess_mode=_LATEST,
            )
            for kind, help_text in (
                ("total", "Memory of the GPU."),
                ("used", "What of it is used, by whomever."),
                ("reserved", "What of it PyTorch holds for this server."),
                ("allocated", "What of that tensors fill."),
            )
        }
        # Not of the type Info, which several processes cannot share; its text is the same.
        build = Gauge(
            "revmux_build_info", "The running server.", ["version"], registry=registry, multiprocess_mode=_LATEST
        )
        build.labels(version).set(1)
        self.reloads = Counter(
            "revmux_bundle_reloads",
            "Times that the bundle was read again while a model answered, by outcome: failed leaves that one in place.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("done", "failed"):
            self.reloads.labels(outcome)
        self._model = Gauge(
            "revmux_model_info",
            "1 for the loaded model, 0 for those before it.",
            ["model", "base", "widths"],
            registry=registry,
            multiprocess_mode=_LATEST,
        )

        self._of_requests = cache(
            lambda path, status: (self.requests.labels(path, status), self.request_duration.labels(path))
        )
        self._facts: Facts | None = None
        self._audited: set[tuple[int, str]] = set()

    def describe_model(self, facts: Facts) -> None:
        """Exports what is served from now on, with the agreement that calibration certified and the escalation rates
        that it predicted; counters go on, and those of its cascades start at 0. What gauges say of a model before it
        becomes NaN: no process of several can take back a time series."""
        if self._facts is not None:
            self._model.labels(*_labels(self._facts)).set(0)
            for cascade in self._facts.cascades:
                for gauge in (self.certified_agreement, self.predicted_escalation_rate, self.suspended):
                    gauge.labels(cascade.width).set(math.nan)
        for labels in self._audited:
            for gauge in (self.shadow_agreement, self.shadow_agreement_low, self.shadow_agreement_high):
                gauge.labels(*labels).set(math.nan)
        self._facts = facts
        self._audited.clear()
        self._model.labels(*_labels(facts)).set(1)
        for cascade in facts.cascades:
            assert facts.certified_agreement is not None
            self.certified_agreement.labels(cascade.width).set(facts.certified_agreement)
            self.predicted_escalation_rate.labels(cascade.width).set(cascade.predicted_escalation_rate)
            self.suspended.labels(cascade.width).set(0)
            self.guaranteed.labels(cascade.width)
            self.escalations.labels(cascade.width)
            self.shortened.labels(cascade.width)

    def expect_failures(self, paths: Iterable[str]) -> None:
        """Has the failed requests of `paths` start at 0: Prometheus sees no increase where a counter appears with 1."""
        for path in paths:
            self.requests.labels(path, 500)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request of the route `path`, answered with `status`."""
        # Looked up once: `labels` makes strings of them all and takes a lock.
        requests, duration = self._of_requests(path, status)
        requests.inc()
        duration.observe(seconds)

    def observe_queue(self, load: Load) -> None:
        """Exports what waits for the device now."""
        self.queue_items.set(load.items)
        self.queue_tokens.set(load.tokens)

    def observe_batch(self, samples: int, composites: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Counts a computed batch: `tokens` real ones in `padded_tokens` positions, once for every step."""
        self.inference_duration.observe(seconds)
        self.batch_size.observe(samples)
        self.batch_tokens.observe(tokens)
        self.padded_tokens.inc(padded_tokens)
        self.batch_padding.observe(1 - tokens / padded_tokens)
        self.batch_composites.observe(composites)

    def observe_answers(
        self, point: OperatingPoint, cascade: Cascade | None, escalated: bool, shortened: bool, count: int
    ) -> None:
        """Counts inputs that were answered at `point`, by a certified cascade where there is one, all steps of which
        passed on those that were escalated, unless it was `shortened`."""
        self.inputs.labels(point.width, point.name).inc(count)
        if cascade is not None:
            self.guaranteed.labels(cascade.width).inc(count)
            if escalated:
                (self.shortened if shortened else self.escalations).labels(cascade.width).inc(count)

    def observe_audit(self, audit: Audit) -> None:
        """Counts an audit, and exports what its guard makes of all of this width and quality."""
        labels = audit.width, audit.quality
        low, high = audit.guard.interval
        self._audited.add(labels)
        self.shadow_answers.labels(*labels, str(audit.agreed).lower()).inc()
        self.shadow_agreement.labels(*labels).set(audit.guard.agreement)
        self.shadow_agreement_low.labels(*labels).set(low)
        self.shadow_agreement_high.labels(*labels).set(high)
        if audit.quality == "guaranteed":
            self.suspended.labels(audit.width).set(audit.guard.suspended)

    def escalation_rate(self, width: int) -> float | None:
        """Share of guaranteed inputs that all steps of this cascade passed on, since the start; None before there are
        any."""
        labels = {"mux_width": str(width)}
        answered = self._whole.get_sample_value("revmux_guaranteed_inputs_total", labels)
        escalated = self._whole.get_sample_value("revmux_escalations_total", labels)
        return escalated / answered if answered and escalated is not None else None

    def observe_device_memory(self, device: str, memory: DeviceMemory) -> None:
        """Exports a reading of the memory of the GPU named `device`."""
        for kind, gauge in self._device_memory.items():
            gauge.labels(device).set(getattr(memory, kind))

    def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type: OpenMetrics where `accept` asks for it, else Prometheus text."""
        encode, content_type = choose_encoder(accept)
        return encode(self._whole), content_type


def _labels(facts: Facts) -> tuple[str, str, str]:
    return facts.name, facts.base, ",".join(map(str, facts.widths))
