"""Logs: one JSON object a line, the request's id where a line is about one, and never a client's text."""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from revmux_core.bundle import Bundle
from server.logs import REQUEST_ID, JsonFormatter, TextFormatter
from server.tokenization import RequestTokenizer
from tests.server.running import Gate, running_server, wait_until

TEXT = "xyzzy"


@contextmanager
def logged(formatter: logging.Formatter) -> Iterator[io.StringIO]:
    """What is logged meanwhile, at the default level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    # The client's own, in the same process.
    handler.addFilter(lambda record: not record.name.startswith("httpx"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_object_with_utc_time_and_exception() -> None:
    logger = logging.getLogger("server.test")
    with logged(JsonFormatter()) as stream:
        try:
            raise ValueError("no\nluck")
        except ValueError:
            logger.exception("failed %d\ntimes", 2)
        REQUEST_ID.set("r-1")
        logger.info("fine")
        REQUEST_ID.set(None)
    failed, fine = lines(stream)
    assert (failed["level"], failed["logger"], failed["message"]) == ("error", "server.test", "failed 2\ntimes")
    assert failed["exception"].endswith("ValueError: no\nluck")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(failed["time"])).total_seconds()) < 60
    assert "request_id" not in failed
    assert (fine["request_id"], "exception" in fine) == ("r-1", False)


def test_no_text_is_logged_whatever_goes_wrong(
    gate_and_bundle: tuple[Gate, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, bundle = gate_and_bundle

    def fail(self: RequestTokenizer, texts: object, *_: object) -> None:
        try:
            raise KeyError(texts)
        except KeyError as error:
            raise ValueError(f"cannot read {texts}") from error

    with logged(JsonFormatter()) as stream, running_server(lambda: bundle, api_keys="key") as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)

        def post(path: str, body: object, name: str, key: str = "key") -> int:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"x-request-id": name, "authorization": f"Bearer {key}"}
            return client.post(path, content=content, headers=headers).status_code

        for body in (
            f'{{"input": "{TEXT}'.encode(),
            f'{{"input": "{TEXT}", "timeout_ms": NaN}}'.encode(),
            {"input": [TEXT, 7]},
            {"input": "a", "quality": TEXT},
            {"input": f"{TEXT} " * 200, "truncate": False},
        ):
            assert post("/classify", body, "bad") == 400
        assert post("/classify", {"input": f"{TEXT} " * 200}, "cut") == 200
        assert post("/classify", {"input": "a", "model": TEXT}, "model") == 404
        assert post("/classify", {"input": "a"}, "key", key=TEXT) == 401
        assert post(f"/{TEXT}?{TEXT}", b"", "path") == 404
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(f"{TEXT} /{TEXT} HTTP/9\r\n\r\n".encode())
            assert connection.recv(1000)
        with ThreadPoolExecutor(1) as threads, gate.held():
            running = threads.submit(post, "/classify", {"input": TEXT}, "running")
            assert gate.reached.wait(10)
            assert post("/classify", {"input": TEXT, "timeout_ms": 50}, "expired") == 504
        assert running.result() == 200
        with gate.failing():
            assert post("/classify", {"input": TEXT}, "batch") == 500
        with monkeypatch.context() as patch:
            patch.setattr(RequestTokenizer, "tokenize", fail)
            assert post("/predict", {"inputs": TEXT}, "bug") == 500
    assert TEXT not in stream.getvalue()
    by_request = {line["request_id"]: line for line in lines(stream) if "request_id" in line}
    assert set(by_request) == {"batch", "bug"}
    assert "Unquoted: builtins.ValueError" in by_request["bug"]["exception"]
    assert "in fail" in by_request["bug"]["exception"]
    # The batch's own line belongs to all of its requests, however many there are.
    (cause,) = (line for line in lines(stream) if "the device failed" in line.get("exception", ""))
    assert "request_id" not in cause


def test_text_lines_end_with_the_request() -> None:
    with logged(TextFormatter()) as stream:
        REQUEST_ID.set("r-2")
        logging.getLogger("server.test").warning("slow")
        REQUEST_ID.set(None)
    assert stream.getvalue().endswith(" WARNING server.test: slow [request r-2]\n")
