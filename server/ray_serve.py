"""The server as a Ray Serve application: every replica is a whole one, and Serve's proxies spread requests over all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from server import __version__
from server.app import create_app
from server.inprocess import InProcess
from server.loading import bundle_reader
from server.logs import set_up_logs
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings, read_settings
from server.traces import set_up_traces


def application(settings: dict[str, Any]) -> Application:
    """The application with the server's `settings`, by their names; `deploy/ray/serve.yaml` has the rest of it.

    Raises `SettingsError` for a setting that is not valid.
    """
    read = read_settings(**settings)

    def build() -> FastAPI:
        # In the replica's process, which Ray starts.
        set_up_logs(read)
        set_up_traces()
        return replica(read)

    class Server:
        app: FastAPI

        def check_health(self) -> None:
            """Has Serve replace a replica whose device is lost."""
            failure = self.app.state.service.failure
            if failure is not None:
                raise failure

    return serve.deployment(serve.ingress(build)(Server)).bind()


def replica(settings: Settings) -> FastAPI:
    """One replica's application, whose start takes until its model is warm, so that Serve sends nothing before.

    That start raises what kept the model from loading.
    """
    backend = InProcess(settings, bundle_reader(settings))
    service = Service(settings, backend, Metrics(__version__))
    app = create_app(service)
    started = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with started(app):
            await backend.loaded()
            if service.failure is not None:
                raise service.failure
            yield

    app.router.lifespan_context = lifespan
    return app
