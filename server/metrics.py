"""Prometheus metrics. Base units, and label values from closed sets: no client can add a time series."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder

from revmux_core.cascade import Cascade
from revmux_core.plan import MuxPlan
from revmux_core.points import OperatingPoint
from server.admission import Load
from server.guard import Audit

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_POWERS = tuple(2.0**n for n in range(15))


class Metrics:
    """One application's metrics, in a registry of its own."""

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
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
            "revmux_batch_tokens", "Tokens of a batch without padding.", buckets=_POWERS, registry=registry
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
            "Inputs that a certified cascade escalated to the plain path, by its mux width.",
            ["mux_width"],
            registry=registry,
        )
        self.predicted_escalation_rate = Gauge(
            "revmux_predicted_escalation_rate",
            "Share of inputs that calibration predicted to be escalated, by mux width.",
            ["mux_width"],
            registry=registry,
        )
        labels = ["mux_width", "quality"]
        self.shadow_answers = Counter(
            "revmux_shadow_answers",
            "Answers that were audited: given by the plain path and compared.",
            [*labels, "agreed"],
            registry=registry,
        )
        self.shadow_agreement = Gauge(
            "revmux_shadow_agreement", "Share of recent audits that agreed.", labels, registry=registry
        )
        self.shadow_agreement_low = Gauge(
            "revmux_shadow_agreement_low", "Lower end of its 95% interval.", labels, registry=registry
        )
        self.shadow_agreement_high = Gauge(
            "revmux_shadow_agreement_high", "Upper end of its 95% interval.", labels, registry=registry
        )
        self.suspended = Gauge(
            "revmux_cascade_suspended",
            "1 while audits say that a certified cascade does not keep its target, and it does not answer.",
            ["mux_width"],
            registry=registry,
        )
        self.shed = Counter("revmux_shed_requests", "Requests refused because the queue was full.", registry=registry)
        self.expired = Counter("revmux_expired_requests", "Requests past their deadline.", registry=registry)
        self.cancelled = Counter("revmux_cancelled_requests", "Requests whose client had gone.", registry=registry)
        Info("revmux_build", "The running server.", registry=registry).info({"version": version})
        self._model = Info("revmux_model", "The loaded model.", registry=registry)

    def describe_model(self, name: str, base: str, widths: str) -> None:
        self._model.info({"model": name, "base": base, "widths": widths})

    def watch(self, in_progress: Callable[[], int], queued: Callable[[], Load]) -> None:
        """Has the gauges read what is admitted, and what of it waits for the device, whenever they are read."""
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "revmux_requests_in_progress": ("Admitted requests without an answer yet.", in_progress),
            "revmux_queue_items": ("Samples that wait for the device.", lambda: queued().items),
            "revmux_queue_tokens": ("Tokens that wait for the device.", lambda: queued().tokens),
        }
        for name, (help_text, read) in gauges.items():
            Gauge(name, help_text, registry=self.registry).set_function(read)

    def observe_batch(self, plan: MuxPlan, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Counts a computed batch: `tokens` real ones in `padded_tokens` positions."""
        self.inference_duration.observe(seconds)
        self.batch_size.observe(plan.samples)
        self.batch_tokens.observe(tokens)
        self.batch_padding.observe(1 - tokens / padded_tokens)
        self.batch_composites.observe(plan.composites)

    def observe_answer(self, point: OperatingPoint, cascade: Cascade | None, escalated: bool) -> None:
        """Counts an input that was answered at `point`, by a certified cascade where there is one."""
        self.inputs.labels(point.width, point.name).inc()
        if cascade is not None:
            self.guaranteed.labels(cascade.width).inc()
            if escalated:
                self.escalations.labels(cascade.width).inc()

    def observe_audit(self, audit: Audit) -> None:
        """Counts an audit, and exports what its guard makes of all of this width and quality."""
        labels = audit.width, audit.quality
        low, high = audit.guard.interval
        self.shadow_answers.labels(*labels, str(audit.agreed).lower()).inc()
        self.shadow_agreement.labels(*labels).set(audit.guard.agreement)
        self.shadow_agreement_low.labels(*labels).set(low)
        self.shadow_agreement_high.labels(*labels).set(high)
        if audit.quality == "guaranteed":
            self.suspended.labels(audit.width).set(audit.guard.suspended)

    def escalation_rate(self, width: int) -> float | None:
        """Share of guaranteed inputs of this cascade that were escalated since the start; None before the first."""
        labels = {"mux_width": str(width)}
        answered = self.registry.get_sample_value("revmux_guaranteed_inputs_total", labels)
        escalated = self.registry.get_sample_value("revmux_escalations_total", labels)
        return escalated / answered if answered and escalated is not None else None

    def predict_escalations(self, rates: Mapping[int, float]) -> None:
        """Exports the rates that calibration predicted, by mux width; counters of these widths start at 0."""
        for width, rate in rates.items():
            self.predicted_escalation_rate.labels(width).set(rate)
            self.suspended.labels(width).set(0)
            self.guaranteed.labels(width)
            self.escalations.labels(width)

    def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type: OpenMetrics where `accept` asks for it, else Prometheus text."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
