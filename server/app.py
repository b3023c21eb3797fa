"""The FastAPI application around a service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from revmux_core.bundle import Bundle
from server import __version__, errors
from server.middleware import LimitBody, Observe
from server.routes import classify, predict, status
from server.service import Service
from server.settings import Settings

DESCRIPTION = "Text classification that multiplexes several requests into one composite sequence."


def create_app(settings: Settings, load: Callable[[], Bundle]) -> FastAPI:
    """The application; its service is `app.state.service`.

    The bundle is loaded in the background when the application starts: `/health/live` answers at once, work is
    refused with 503 until the model is warm. Where loading fails, `service.failure` holds the reason; `server.run`
    then ends the process.
    """
    service = Service(settings, load)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPI(title="RevMUX Server", description=DESCRIPTION, version=__version__, lifespan=lifespan)
    app.state.service = service
    for router in (classify.router, predict.router, status.router):
        app.include_router(router)
    app.add_exception_handler(errors.ServiceError, errors.on_service_error)
    app.add_exception_handler(HTTPException, errors.on_http_exception)
    app.add_exception_handler(ClientDisconnect, errors.on_client_disconnect)
    app.add_middleware(LimitBody, max_bytes=settings.max_body_bytes)
    # Added last, so outermost.
    app.add_middleware(Observe, metrics=service.metrics)
    return app
