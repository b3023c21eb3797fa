"""TLS, and metrics on a port of their own."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from revmux_core.bundle import Bundle
from server.ports import listen_all, tls_context
from server.settings import SettingsError, read_settings
from tests.server.running import free_port, running_server, wait_until


def test_tls_is_spoken_with_the_certificate(tiny_bundle: Bundle, certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    with running_server(lambda: tiny_bundle, ssl_certfile=chain, ssl_keyfile=key) as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert client.base_url.scheme == "https"
        assert client.post("/classify", json={"input": "a"}).status_code == 200
        assert client.get("/health/live", headers={"x-large": "a" * 70_000}).status_code == 431
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as plain:
            plain.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP")


def test_a_certificate_that_does_not_do_is_named(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    chain, key = certificate
    both, encrypted = tmp_path / "both.pem", tmp_path / "encrypted.pem"
    both.write_bytes(chain.read_bytes() + key.read_bytes())
    command = ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", str(key), "-out", str(encrypted)]
    subprocess.run(command, check=True, capture_output=True)
    assert tls_context(read_settings()) is None
    context = tls_context(read_settings(ssl_certfile=both))
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    for flags, field, words in (
        ({"ssl_keyfile": key}, "ssl-certfile", "is missing"),
        ({"ssl_certfile": tmp_path / "none.pem"}, "ssl-certfile", "none.pem cannot be read: No such file"),
        ({"ssl_certfile": chain, "ssl_keyfile": tmp_path}, "ssl-keyfile", "cannot be read: Is a directory"),
        ({"ssl_certfile": chain}, "ssl-certfile", "is no PEM certificate with its private key"),
        ({"ssl_certfile": chain, "ssl_keyfile": encrypted}, "ssl-keyfile", "is encrypted"),
    ):
        with pytest.raises(SettingsError, match=f"--{field} .*{words}"):
            tls_context(read_settings(**flags))


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
