"""A certificate, and a gated model."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from revmux_core.bundle import Bundle, load_bundle
from tests.server.running import Gate


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def gate_and_bundle(tiny_bundle_path: Path) -> tuple[Gate, Bundle]:
    """A bundle of the module's own, since the gate stays in front of its model."""
    bundle = load_bundle(tiny_bundle_path)
    return Gate(bundle), bundle
