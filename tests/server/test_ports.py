"""Metrics on a port of their own."""

from __future__ import annotations

import socket

import httpx
import pytest
from conftest import free_port, running_server, wait_until

from revmux_core.bundle import Bundle
from server.settings import SettingsError, read_settings
from server.web import listen_all


def test_metrics_have_a_port_of_their_own(tiny_bundle: Bundle) -> None:
    port = free_port()
    with running_server(lambda: tiny_bundle, metrics_port=port, api_keys="key") as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        main, own = str(client.base_url), f"http://127.0.0.1:{port}"
        key = {"authorization": "Bearer key"}
        for hidden in (
            # A Host header takes nobody to the other port.
            httpx.get(f"{main}/metrics", headers={"host": f"127.0.0.1:{port}"}),
            httpx.get(f"{own}/health/live", headers={"host": client.base_url.netloc.decode()}),
            httpx.post(f"{own}/classify", json={"input": "a"}, headers=key),
        ):
            assert (hidden.status_code, hidden.json()["error"]["type"]) == (404, "NotFoundError")
        assert client.post("/classify", json={"input": "a"}, headers=key).status_code == 200
        assert 'revmux_requests_total{path="/classify",status="200"} 1.0' in httpx.get(f"{own}/metrics").text


def test_a_taken_metrics_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=r"REVMUX_METRICS_PORT.*in use"):
            listen_all(read_settings(port=0, metrics_port=port))
    with pytest.raises(SettingsError, match=r"REVMUX_METRICS_PORT.*is --port too"):
        read_settings(port=8000, metrics_port=8000)
