"""OpenTelemetry traces: FastAPI makes a request's span; here it is told more, and a batch gets one. Off by default.

The standard OTEL_* variables alone configure them. Nothing is imported, and nothing done, unless one of `ENDPOINTS` is
set.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

PREFIX = "revmux."
"""Of the names of attributes that no convention names."""


class _Traces:
    """What is done where traces are on."""

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._propagator = TraceContextTextMapPropagator()
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
        self._tracer = provider.get_tracer("server")

    def describe(self, attributes: dict[str, Any]) -> None:
        self._api.get_current_span().set_attributes({PREFIX + name: value for name, value in attributes.items()})

    def name(self, method: str, route: str) -> None:
        span = self._api.get_current_span()
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)

    def current(self) -> str | None:
        if not self._api.get_current_span().get_span_context().trace_flags.sampled:
            return None
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier["traceparent"]

    def record_batch(self, parents: Sequence[str], seconds: float, attributes: dict[str, Any], failed: bool) -> None:
        end = time.time_ns()
        contexts = [self._propagator.extract({"traceparent": parent}) for parent in parents]
        links = [self._api.Link(self._api.get_current_span(context).get_span_context()) for context in contexts]
        span = self._tracer.start_span(
            "batch",
            # So that it is sampled where a request is, and stands in the trace of one that came alone.
            context=contexts[0],
            links=links,
            start_time=end - round(1e9 * seconds),
            attributes={PREFIX + name: value for name, value in attributes.items()},
        )
        if failed:
            span.set_status(self._api.StatusCode.ERROR)
        span.end(end)


_traces: _Traces | None = None


def set_up_traces() -> None:
    """Has this process export its spans, where the environment says where to."""
    global _traces
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        _traces = _Traces()
    except ImportError:
        logger.warning("nothing is traced, as %s asks for: install the extra, revmux-server[otel]", ENDPOINTS[0])


def tracing() -> bool:
    """Whether spans are made at all."""
    return _traces is not None


def name_request(method: str, route: str) -> None:
    """Names the current request's span, as FastAPI does where it does the routing."""
    if _traces is not None:
        _traces.name(method, route)


def describe_request(**attributes: Any) -> None:
    """Adds `attributes` to the span of the request in whose context this is called."""
    if _traces is not None:
        _traces.describe(attributes)


def current_trace() -> str | None:
    """What a batch is linked to, as a `traceparent` header has it; None where the request is not traced."""
    return None if _traces is None else _traces.current()


def record_batch(parents: Sequence[str | None], seconds: float, failed: bool, **attributes: Any) -> None:
    """Records a batch that took `seconds` and ended just now, and links it to those of its requests that are traced,
    its `parents`, see `current_trace`; one without any is not recorded."""
    traced = [parent for parent in parents if parent is not None]
    if _traces is not None and traced:
        _traces.record_batch(traced, seconds, attributes, failed)
