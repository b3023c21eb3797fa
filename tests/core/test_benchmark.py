"""`revmux bench`: every combination of what may be repeated, with its speed and its memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from revmux_core.memory import working_bytes
from server.cli import app

needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")


@needs_proc
def test_a_run_is_charged_for_what_it_holds_and_no_more() -> None:
    megabytes = 2**18
    held = torch.ones(30 * megabytes)

    def hold() -> None:
        # In pieces that the allocator would rather keep than give back.
        pieces = [torch.ones(megabytes) for _ in range(40)]
        assert held.sum() + len(pieces) > 0

    cpu = torch.device("cpu")
    for _ in range(2):
        assert working_bytes(hold, cpu) == pytest.approx(40 * 2**20, rel=0.1)
    assert (working_bytes(lambda: None, cpu) or 0) < 2 * 2**20


def test_every_combination_of_a_shape_is_timed() -> None:
    command = "bench --shape minilm-l6 --length 4 --length 8 --classes 2 --classes 300 --batch-tokens 8"
    command += " --batch-tokens 32 --width 2 --rounds 1 --json"
    result = CliRunner().invoke(app, command.split(), catch_exceptions=False)
    report = json.loads(result.stdout)
    settings = [(row["classes"], row["mean_tokens"], row["batch_tokens"], row["width"]) for row in report["widths"]]
    assert settings == [
        (classes, length, batch, width)
        for classes in (2, 300)
        for length in (4, 8)
        for batch in (8, 32)
        for width in (1, 2)
    ]
    assert all(row["sequences_per_second"] > 0 for row in report["widths"])
    for row in report["widths"]:
        assert 0 < row["adapter_share"] < 1 if row["width"] == 2 else row["adapter_share"] == 0
    assert 0 < report["plain_share_of_matrix_rate"] < 1
