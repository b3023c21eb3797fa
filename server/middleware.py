"""Pure ASGI middleware: no task and no queue a request, and the client's disconnect reaches the routes."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import errors
from server.logs import REQUEST_ID, unquoted
from server.protocol import REFUSAL
from server.service import Service
from server.traces import name_request

logger = logging.getLogger(__name__)

_SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Observe:
    """Outermost: gives every request an id, counts its answer, and answers what no handler caught.

    Answers of a server that goes end their connections, so that clients take the next request to another one.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._metrics = service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        REQUEST_ID.set(request_id)
        status = 0
        counted = False

        def count() -> None:
            nonlocal counted
            if counted:
                return
            counted = True
            # The route's template, never the path that the client sent.
            path = getattr(scope.get("route"), "path", "unknown")
            answered = status or errors.ClientDisconnected.status
            self._metrics.observe_request(path, answered, time.perf_counter() - start)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if self._service.ending:
                    message["headers"].append((b"connection", b"close"))
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                # Before the write: a process that is killed right after it has counted what its client got.
                count()
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            quotable = logger.isEnabledFor(logging.DEBUG)
            logger.error("the request failed", exc_info=error if quotable else unquoted(error))
            # Of an answer that was begun, the rest is missing: the connection is closed.
            if not status:
                await errors.answer(errors.InternalError(request_id), scope["path"])(scope, receive, send_with_id)
        finally:
            count()


class LimitBody:
    """Refuses a body of more than `max_bytes`, by its announced length or while it streams in.

    And whatever the connection found to be out of bounds, see `server.protocol`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if REFUSAL in scope:
            await errors.answer(scope[REFUSAL], scope["path"])(scope, receive, send)
            return
        announced = _header(scope, b"content-length")
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            if announced is not None and announced.isdigit() and int(announced) > self._max_bytes:
                raise self._too_large()
            message = await receive()
            if REFUSAL in scope:
                raise scope[REFUSAL]
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    raise self._too_large()
            return message

        await self._app(scope, receive_bounded, send)

    def _too_large(self) -> errors.RequestTooLarge:
        # Closing saves reading the rest of the body just to reach the next request.
        return errors.RequestTooLarge(
            f"the body is larger than {self._max_bytes} bytes: send fewer or shorter texts a request",
            headers={"Connection": "close"},
        )


class SplitPorts:
    """Answers the paths of `routes` on `port` alone, and nothing else there."""

    def __init__(self, app: ASGIApp, port: int, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._port = port
        self._paths = {route.path for route in routes if isinstance(route, APIRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The port that the connection came in by; what the Host header says is the client's to choose.
        if scope["type"] == "http" and (scope["server"][1] == self._port) != (scope["path"] in self._paths):
            error = errors.UnknownPath("there is no such path on this port")
            await errors.answer(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Direct:
    """Innermost: calls the endpoints of `routes`, which read the request and write the answer themselves.

    It leaves out the framework's routing, parameters and validation, which together cost more than all of ours.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = {
            (method, route.path): route
            for route in routes
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        name_request(scope["method"], route.path)
        request = Request(scope, receive)
        try:
            response = await route.endpoint(request)
        except errors.ServiceError as error:
            if isinstance(error, errors.InferenceFailed):
                # The cause is logged once, with the batch.
                logger.error("the batch that held the request failed")
            response = errors.answer(error, route.path)
        except ClientDisconnect:
            response = errors.answer(errors.ClientDisconnected(), route.path)
        await response(scope, receive, send)


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _request_id(scope: Scope) -> str:
    sent = _header(scope, b"x-request-id")
    return sent.decode() if sent is not None and _SANE_ID.fullmatch(sent) else os.urandom(16).hex()
