"""Schemathesis over the whole OpenAPI document of a running server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from loadtest.servers import HOST

# Its check for server errors takes only these; 504 is what a `timeout_ms` of 1 asks for.
_CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", "504"]
"""
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def run_schemathesis(port: int, examples: int, seed: int, log: Path) -> bool:
    """Whether `CHECKS` hold for up to `examples` generated requests an operation, valid and invalid, beside those that
    cover each keyword of the schema. What it did and found is in `log`."""
    config = log.absolute().with_suffix(".toml")
    config.write_text(_CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    command += [f"http://{HOST}:{port}/openapi.json", "--mode", "all", "--phases", "examples,coverage,fuzzing"]
    command += ["--checks", ",".join(CHECKS)]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--request-timeout", "30"]
    command += ["--continue-on-failure", "--generation-database", "none", "--no-color"]
    with log.open("w") as output:
        # It leaves a folder where it is run.
        ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, check=False)
    return ended.returncode == 0
