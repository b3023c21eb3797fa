"""The FastAPI application around a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server import __version__, errors
from server.middleware import Direct, LimitBody, Observe, SplitPorts
from server.routes import classify, operator, predict, status
from server.service import Service
from server.traces import tracing

DESCRIPTION = "Text classification that multiplexes several requests into one composite sequence."


def create_app(service: Service) -> FastAPI:
    """The application around `service`, which is its `state.service`.

    The backend begins when the application starts: `/health/live` answers at once, work is refused with 503 until a
    model is warm. Where that fails, `service.failure` holds the reason; `server.run` then ends the process.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPI(
        title="RevMUX Server",
        description=DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        # Spans of requests alone, and only where `server.traces` set them up: its logs quote what exceptions say, and
        # Prometheus has the metrics.
        telemetry={
            "tracing": tracing(),
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.state.service = service
    for router in (classify.router, predict.router, status.router, operator.router):
        app.include_router(router)
    app.add_exception_handler(errors.ServiceError, errors.on_service_error)
    app.add_exception_handler(HTTPException, errors.on_http_exception)
    app.add_exception_handler(ClientDisconnect, errors.on_client_disconnect)
    work = [*classify.router.routes, *predict.router.routes]
    service.metrics.expect_failures([route.path for route in work if isinstance(route, APIRoute)])
    app.add_middleware(Direct, routes=work)
    app.add_middleware(LimitBody, max_bytes=service.settings.max_body_bytes)
    if service.settings.metrics_port is not None:
        app.add_middleware(SplitPorts, port=service.settings.metrics_port, routes=operator.router.routes)
    # Added last, so outermost.
    app.add_middleware(Observe, service=service)
    return app
