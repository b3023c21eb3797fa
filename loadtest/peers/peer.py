"""What a peer is: its environment, and the settings that are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.wire import Wire

HERE = Path(__file__).parent
APPS = HERE / "apps"

# In every command: {python} and {bin} of the peer's environment, {model} the exported folder, {apps} the applications,
# {work} the peer's own folder for converted models, {texts} sentences to calibrate int8 with.
Command = Sequence[str]

# A precision that a CPU without it refuses, or runs in float32 and does not say so.
BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of serving; `about` is what was chosen and where from. `--host` and `--port` are added to `command`."""

    name: str
    precision: str
    about: str
    command: Command
    wire: Wire
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """`key` names its environment and its requirement file; `package` is the one whose version the table shows.

    `prepare` converts the model once, before anything is timed, as one would before deploying.
    """

    key: str
    title: str
    package: str
    settings: Sequence[Setting]
    prepare: Command = ()
    needs_gpu: bool = False

    @property
    def requirements(self) -> Path:
        return HERE / f"{self.key}.txt"
