"""What a GPU runs stays there, and is not waited for: told without one, see `tests.core.pretended_gpu`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from revmux_core.backends import BackendName
from revmux_core.problems import ProblemType


def answer_on_a_pretended_gpu(backend: BackendName, folders: Sequence[Path]) -> None:
    command = [sys.executable, "-m", "tests.core.pretended_gpu", backend, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pytorch(task_bundle_paths: dict[ProblemType, Path], family_bundle_paths: dict[str, Path]) -> None:
    answer_on_a_pretended_gpu("torch", [*task_bundle_paths.values(), *family_bundle_paths.values()])


def test_inductor(task_bundle_paths: dict[ProblemType, Path]) -> None:
    answer_on_a_pretended_gpu(
        "inductor", [task_bundle_paths["multi_label_classification"], task_bundle_paths["token_classification"]]
    )
