"""A virtual environment a peer, from its pinned requirement file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from loadtest.peers.peer import Peer

INSTALL_SECONDS = 1800.0
PREPARE_SECONDS = 900.0

# No hub, and no counting of this measurement as somebody's use.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


class PeerError(RuntimeError):
    """A peer that cannot be installed or prepared here; the message is the reason, in one line."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a peer's interpreter and commands are, and the version of every package beside them."""

    python: Path
    versions: Mapping[str, str]

    @property
    def bin(self) -> Path:
        return self.python.parent


def present() -> Environment:
    """The environment that this runs in, for our own servers."""
    found = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return Environment(Path(sys.executable), found)


def environment(peer: Peer, folder: Path, log: Path) -> Environment:
    """The peer's environment in `folder`; pip is left alone where it was made from the present requirement file.

    Raises `PeerError` where pip fails; `log` has what it said.
    """
    python, done = folder / "bin" / "python", folder / "installed.txt"
    wanted = peer.requirements.read_text()
    if not done.is_file() or done.read_text() != wanted:
        if not python.exists():
            call([sys.executable, "-m", "venv", str(folder)], log, INSTALL_SECONDS)
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(peer.requirements)]
        call(pip, log, INSTALL_SECONDS)
        done.write_text(wanted)
    frozen = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    versions = dict(line.split("==", 1) for line in frozen.splitlines() if "==" in line)
    return Environment(python, versions)


def version_of(environment: Environment, package: str) -> str:
    """The installed version, whichever way its name is spelt; a question mark where it is not installed."""
    by_name = {_spelling(name): version for name, version in environment.versions.items()}
    return by_name.get(_spelling(package), "?")


def fill(command: list[str], places: Mapping[str, Path]) -> list[str]:
    """The command with its places filled in."""
    return [part.format_map(places) for part in command]


def variables(environment: Environment, own: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a peer's process: this process's, without its way of finding modules."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = f"{environment.bin}{os.pathsep}{inherited.get('PATH', '')}"
    return inherited | QUIET | {"PATH": path} | dict(own)


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def call(command: list[str], log: Path, seconds: float, variables: Mapping[str, str] | None = None) -> None:
    """Runs a command to its end, its output added to `log`. Raises `PeerError` with its last line where it fails."""
    with log.open("a+") as output:
        try:
            finished = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=variables, timeout=seconds)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(f"{Path(command[0]).name}: {error}") from error
    if finished.returncode:
        raise PeerError(last_line(log.read_text(errors="replace")) or f"{command[0]} exited with {finished.returncode}")


def last_line(text: str) -> str:
    """What usually says why: the last line that has anything in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _spelling(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
