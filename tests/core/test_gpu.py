"""What a GPU runs stays there, and is not waited for: told without one, see `tests.core.pretended_gpu`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import T5PreTrainedModel

from revmux_core.backends import BackendName
from revmux_core.problems import ProblemType

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="PyTorch pads no sequences without values on the left"
)


def answer_on_a_pretended_gpu(backend: BackendName, folders: Sequence[Path]) -> None:
    command = [sys.executable, "-m", "tests.core.pretended_gpu", backend, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pytorch(task_bundle_paths: dict[ProblemType, Path], family_bundle_paths: dict[str, Path]) -> None:
    # Before Transformers 5.15 a T5's masks are made with a copy that is waited for, and it has no fused attention.
    families = [path for name, path in family_bundle_paths.items() if name != "t5" or T5PreTrainedModel._supports_sdpa]
    answer_on_a_pretended_gpu("torch", [*task_bundle_paths.values(), *families])


def test_inductor(task_bundle_paths: dict[ProblemType, Path]) -> None:
    answer_on_a_pretended_gpu(
        "inductor", [task_bundle_paths["multi_label_classification"], task_bundle_paths["token_classification"]]
    )
