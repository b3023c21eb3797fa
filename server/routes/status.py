"""What the server is, and whether it may be sent work."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Request
from msgspec.structs import asdict
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
    facts = service.model.facts
    card = ModelCard(id=facts.name, object="model", created=facts.loaded_at, owned_by="revmux")
    return ModelList(object="list", data=[card])


@router.get("/info", responses=_DOCS)
async def info(request: Request) -> InfoResponse:
    """The model, its operating points, the limits that requests meet, and versions."""
    service, _ = authorized(request)
    facts, settings = service.model.facts, service.settings
    return InfoResponse(
        model=facts.name,
        base=facts.base,
        labels=facts.labels,
        problem_type=facts.problem_type,
        thresholds=facts.thresholds,
        tolerance=facts.tolerance,
        widths=facts.widths,
        points=[Point(**asdict(point)) for point in facts.points],
        quality=facts.quality,
        certified_agreement=facts.certified_agreement,
        certified_confidence=facts.certified_confidence,
        cascades=[
            CertifiedCascade(**asdict(cascade), realised_escalation_rate=service.metrics.escalation_rate(cascade.width))
            for cascade in facts.cascades
        ],
        device=facts.device,
        backend=settings.backend,
        dtype=facts.dtype,
        limits=Limits(
            max_tokens=facts.max_tokens,
            max_batch_tokens=facts.max_batch_tokens,
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
