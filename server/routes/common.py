"""What the wire formats share: the service, the answer's headers, and how errors are documented."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.answers import Answers
from server.errors import ServiceError
from server.service import Service

WORK_ERRORS: tuple[type[ServiceError], ...] = (
    errors.InvalidRequest,
    errors.Unauthorized,
    errors.RequestTimeout,
    errors.RequestTooLarge,
    errors.QueueFull,
    errors.HeadTooLarge,
    errors.InferenceFailed,
    errors.Unavailable,
    errors.DeadlineExceeded,
)
"""How a request for work can end without its answer."""


_ENCODER = msgspec.json.Encoder()


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)


def authorized(request: Request) -> tuple[Service, str]:
    """The service and the tenant who asks. Raises `Unauthorized` where the request lacks a valid key."""
    service = service_of(request)
    return service, service.authorize(request.headers)


async def admissible(request: Request, service: Service) -> bytes:
    """The body of a request for work. Raises `Unavailable` while no work is taken, but only once the body is whole: a
    connection that ends before would fail the client that still sends, which then may not read why."""
    body = await request.body()
    service.require_ready()
    return body


def json_response(content: object, answers: Answers) -> Response:
    """A 200 with `content`, and the times of `answers` as headers."""
    headers = {
        "x-queue-time-ms": f"{1000 * answers.queue_seconds:.2f}",
        "x-inference-time-ms": f"{1000 * answers.inference_seconds:.2f}",
    }
    return Response(_ENCODER.encode(content), headers=headers, media_type="application/json")


def error_docs(kinds: tuple[type[ServiceError], ...], model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` of a route that can end with `kinds`."""
    return {kind.status: {"model": model, "description": kind.meaning} for kind in kinds}


def body_docs(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's request body of a route that parses its raw body as `model`."""
    content = {"application/json": {"schema": model.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}
