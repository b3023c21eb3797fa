"""Everything that a client or an operator can be told went wrong, and the one place that words it for the wire."""

from __future__ import annotations

import json
from typing import ClassVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

DEVICE_RETRY = 5
"""Seconds of `Retry-After` once the device is lost: about a small model's load."""

TEI_PATHS = frozenset({"/predict"})
"""Paths whose errors take Text Embeddings Inference's form instead of OpenAI's."""


class ServiceError(Exception):
    """An answer other than 200. The message is one sentence in plain words that says what to change.

    `kind` is OpenAI's and vLLM's error type, `tei_kind` the closest of Text Embeddings Inference's.
    """

    status: ClassVar[int]
    kind: ClassVar[str]
    tei_kind: ClassVar[str] = "Validation"
    meaning: ClassVar[str]

    def __init__(self, message: str, *, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}


class InvalidRequest(ServiceError):
    status, kind = 400, "BadRequestError"
    meaning = "The body is malformed, or a field is invalid."


class EmptyInput(InvalidRequest):
    tei_kind = "Empty"


class Unauthorized(ServiceError):
    status, kind = 401, "AuthenticationError"
    meaning = "The API key is missing or wrong."

    def __init__(self) -> None:
        super().__init__("send a valid API key as `Authorization: Bearer KEY`", headers={"WWW-Authenticate": "Bearer"})


class UnknownModel(ServiceError):
    status, kind = 404, "NotFoundError"
    meaning = "No such model is loaded."


class RequestTimeout(ServiceError):
    status, kind = 408, "RequestTimeoutError"
    meaning = "The request did not arrive in time."

    def __init__(self, part: str, seconds: float) -> None:
        super().__init__(
            f"the request's {part} did not arrive within {seconds:g} s: send it faster, or in smaller requests",
            headers={"Connection": "close"},
        )


class HeadTooLarge(ServiceError):
    status, kind = 431, "RequestHeadersTooLargeError"
    meaning = "The request's headers are too large."

    def __init__(self, most: int) -> None:
        super().__init__(
            f"the request's headers are larger than {most} bytes: send fewer or shorter ones",
            headers={"Connection": "close"},
        )


class RequestTooLarge(ServiceError):
    status, kind = 413, "RequestTooLargeError"
    meaning = "The body is too large, or holds too many inputs."


class QueueFull(ServiceError):
    """Refused at the door; `seconds` is when to try again."""

    status, kind, tei_kind = 429, "TooManyRequestsError", "Overloaded"
    meaning = "The queue is full, or too long for an answer in time: try again after `Retry-After` seconds."

    def __init__(self, seconds: int, message: str | None = None) -> None:
        super().__init__(
            message or f"the queue is full: try again in {seconds} s, or send fewer requests at a time",
            headers={"Retry-After": str(seconds)},
        )
        self.seconds = seconds


class QueueTooLong(QueueFull):
    """Refused at the door, because what waits already would take longer than the request has."""

    def __init__(self, seconds: int) -> None:
        super().__init__(
            seconds,
            f"more is waiting than can be answered within this request's time: try again in {seconds} s, or allow a "
            "longer `timeout_ms`",
        )


class ClientDisconnected(ServiceError):
    """The client is gone: nobody reads this answer, but it is counted."""

    status, kind = 499, "ClientDisconnectedError"
    meaning = "The client closed the connection."

    def __init__(self) -> None:
        super().__init__("the client closed the connection")


class InferenceFailed(ServiceError):
    status, kind, tei_kind = 500, "InternalServerError", "Backend"
    meaning = "The model failed on one of the request's texts, tried by itself: not a finite answer, or out of memory."

    def __init__(self) -> None:
        super().__init__(
            "the model failed on a text of this request, also when it was tried by itself: its answer was NaN or "
            "infinity, or there was too little memory; send it shorter, or leave it out"
        )


class InternalError(ServiceError):
    status, kind, tei_kind = 500, "InternalServerError", "Backend"
    meaning = "The server failed on this request. This is a bug."

    def __init__(self, request_id: str) -> None:
        super().__init__(f"the server failed on this request: please report it with its request id {request_id}")


class Unavailable(ServiceError):
    status, kind, tei_kind = 503, "ServiceUnavailableError", "Unhealthy"
    meaning = (
        "The model is being loaded, or the server is shutting down or has too many connections: try again after "
        "`Retry-After` seconds."
    )

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message, headers={"Retry-After": str(seconds)})


class DeviceLost(Unavailable):
    """The device fails whatever it is given: the process that holds it has to end."""

    def __init__(self) -> None:
        super().__init__("the device failed and the model is loaded again: repeat the request", DEVICE_RETRY)


class TooManyConnections(Unavailable):
    def __init__(self) -> None:
        super().__init__("the server has too many connections: try again in 1 s, or keep fewer open", 1)
        self.headers["Connection"] = "close"


class DeadlineExceeded(ServiceError):
    status, kind, tei_kind = 504, "DeadlineExceededError", "Overloaded"
    meaning = "The request was not answered within its `timeout_ms`."

    def __init__(self, timeout_ms: float) -> None:
        super().__init__(
            f"the request was not answered within {timeout_ms:g} ms: raise `timeout_ms`, or try again later",
            param="timeout_ms",
        )


class UnknownPath(ServiceError):
    status, kind = 404, "NotFoundError"
    meaning = "There is no such path."


class WrongMethod(ServiceError):
    status, kind = 405, "MethodNotAllowedError"
    meaning = "The path does not know this method."


def answer(error: ServiceError, path: str) -> Response:
    """`error` as a response, in the error format that belongs to `path`."""
    if path in TEI_PATHS:
        body: dict[str, object] = {"error": error.message, "error_type": error.tei_kind}
    else:
        detail = {"message": error.message, "type": error.kind, "param": error.param, "code": error.status}
        body = {"error": detail}
    return Response(json.dumps(body).encode(), error.status, error.headers, "application/json")


async def on_service_error(request: Request, error: Exception) -> Response:
    """The application's exception handler for `ServiceError`."""
    assert isinstance(error, ServiceError)
    return answer(error, request.url.path)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """The same for the errors that the framework itself raises: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        message = f"use {headers.get('Allow', 'another method')} on this path: /docs lists what the server knows"
        return answer(WrongMethod(message, headers=headers), request.url.path)
    if error.status_code == 404:
        return answer(UnknownPath("there is no such path: /docs lists what the server knows"), request.url.path)
    return answer(InvalidRequest(str(error.detail), headers=headers), request.url.path)


async def on_client_disconnect(request: Request, error: Exception) -> Response:
    """The same for a client that leaves while it still sends its body."""
    assert isinstance(error, ClientDisconnect)
    return answer(ClientDisconnected(), request.url.path)
