"""What is for operators alone, and can have a port of its own."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.routes.common import service_of

router = APIRouter(tags=["operator"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus text, or OpenMetrics where the `Accept` header asks for it."""
    body, content_type = service_of(request).metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
