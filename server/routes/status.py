"""What the server is, whether it may be sent work, and what it measured."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from server import __version__
from server.errors import Unauthorized, Unavailable
from server.routes.common import authorized, error_docs, service_of
from server.schemas import (
    CertifiedCascade,
    ErrorResponse,
    HealthResponse,
    InfoResponse,
    Limits,
    ModelCard,
    ModelList,
    Point,
)
from server.service import State

router = APIRouter(tags=["status"])

_DOCS = error_docs((Unauthorized, Unavailable), ErrorResponse)


@router.get("/v1/models", responses=_DOCS)
async def models(request: Request) -> ModelList:
    """The loaded model, in OpenAI's list form."""
    service, _ = authorized(request)
    model = service.model
    card = ModelCard(id=model.manifest.name, object="model", created=model.loaded_at, owned_by="revmux")
    return ModelList(object="list", data=[card])


@router.get("/info", responses=_DOCS)
async def info(request: Request) -> InfoResponse:
    """The model, its operating points, the limits that requests meet, and versions."""
    service, _ = authorized(request)
    model, settings = service.model, service.settings
    points = [
        Point(
            name=point.name,
            width=point.width,
            prefill_layers=point.prefill,
            ideal_speedup=point.ideal_speedup(model.manifest.num_layers),
            measured_agreement=model.manifest.measured_agreement.get(point.name),
        )
        for point in reversed(model.menu.points)
    ]
    cascades = [
        CertifiedCascade(
            width=entry.width,
            points=list(entry.points),
            score=entry.score,
            threshold=entry.threshold,
            predicted_escalation_rate=entry.escalation_rate,
            realised_escalation_rate=service.metrics.escalation_rate(entry.width),
            ideal_speedup=entry.ideal_speedup,
        )
        for entry in model.certified
    ]
    calibration = model.manifest.calibration if cascades else None
    return InfoResponse(
        model=model.manifest.name,
        base=model.manifest.base.model_id,
        labels=model.manifest.labels,
        widths=model.widths,
        points=points,
        quality=model.quality,
        certified_agreement=None if calibration is None else calibration.target,
        certified_confidence=None if calibration is None else calibration.confidence,
        cascades=cascades,
        device=str(model.device),
        backend=settings.backend,
        dtype=model.precision,
        limits=Limits(
            max_tokens=model.tokenizer.max_tokens,
            max_batch_tokens=model.max_batch_tokens,
            **settings.model_dump(include=set(Limits.model_fields) - {"max_tokens", "max_batch_tokens"}),
        ),
        versions={"revmux-server": __version__, "torch": version("torch"), "transformers": version("transformers")},
    )


@router.get("/health/live", response_model=HealthResponse)
async def live() -> Response:
    """200 as long as the process answers at all."""
    return JSONResponse({"status": "alive"})


@router.get("/health", response_model=HealthResponse, responses={503: {"model": HealthResponse}})
@router.get("/health/ready", response_model=HealthResponse, responses={503: {"model": HealthResponse}})
async def ready(request: Request) -> Response:
    """200 only while the model is loaded, warm, and not draining."""
    state = service_of(request).state
    return JSONResponse({"status": state}, 200 if state is State.READY else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus text, or OpenMetrics where the `Accept` header asks for it."""
    body, content_type = service_of(request).metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
