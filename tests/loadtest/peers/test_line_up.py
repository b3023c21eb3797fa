"""Peers are installed, prepared and started, or say why not. Without a network: in environments that exist already."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.peers.catalog import PEERS, ours
from loadtest.peers.compare import Plan, compare
from loadtest.peers.environments import Environment, PeerError, environment, version_of
from loadtest.peers.line_up import line_up
from loadtest.peers.peer import Peer
from revmux_core.export import export_plain

TEXTS = ["a good film", "not very good .", "bad film word7 word8", "word9", "the film is bad"] * 3


def peer(key: str) -> Peer:
    return next(peer for peer in PEERS if peer.key == key)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present environment is every peer's."""
    found = Environment(Path(sys.executable), {"transformers": "5.0", "infinity_emb": "0.1"})
    monkeypatch.setattr("loadtest.peers.line_up.environment", lambda *_: found)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def quiet(line: str) -> None:
    pass


def test_a_gpu_that_is_not_there_is_the_reason(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.peers.line_up.has_gpu", lambda: False)
    (only,) = line_up(peer("vllm"), out / "venv", out, out, out, quiet)
    assert only.problem == "needs a GPU"


def test_bfloat16_that_a_cpu_lacks_is_the_reason_and_openvino_runs_in_float32(
    out: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("catalog", "line_up"):
        monkeypatch.setattr(f"loadtest.peers.{module}.has_bfloat16", lambda: False)
    own = ours("sst2-minilm", None, [])
    for each in (own, replace(peer("openvino"), prepare=())):
        problems = {
            contender.setting.precision: contender.problem
            for contender in line_up(each, out / "venv", out, out, out, quiet)
        }
        assert problems.pop("bfloat16") == "needs a CPU with bfloat16"
        assert set(problems.values()) == {None}
    assert ("guaranteed", "float32, OpenVINO") in {(setting.name, setting.precision) for setting in own.settings}


def test_a_failed_installation_and_a_failed_conversion_are_reasons(
    out: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import os, sys; os.makedirs(sys.argv[1]); print('no such operator'); sys.exit(3)"
    converts = replace(peer("onnxruntime"), prepare=("{python}", "-c", script, "{work}"))
    reasons = [contender.problem for contender in line_up(converts, out / "venv", out, out, out, quiet)]
    assert reasons == ["no such operator"] * 3
    assert not (out / "onnxruntime").exists(), "half a conversion is not kept"
    converts = replace(peer("infinity-onnx"), prepare=converts.prepare)
    reasons = [contender.problem for contender in line_up(converts, out / "venv", out, out, out, quiet)]
    assert reasons == ["no such operator", None], "what needs no conversion is served all the same"

    def refuse(*_: object) -> Environment:
        raise PeerError("No matching distribution found")

    monkeypatch.setattr("loadtest.peers.line_up.environment", refuse)
    assert line_up(peer("litserve"), out / "venv", out, out, out, quiet)[0].problem == "No matching distribution found"


def test_a_ready_environment_is_used_as_it_is(out: Path) -> None:
    folder = out / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("#!/bin/sh\necho litserve==9.8\necho torch==1.0+cpu\n")
    (folder / "bin" / "python").chmod(0o755)
    (folder / "installed.txt").write_text(peer("litserve").requirements.read_text())
    found = environment(peer("litserve"), folder, out / "log")
    assert found.versions == {"litserve": "9.8", "torch": "1.0+cpu"}
    assert version_of(found, "LitServe") == "9.8"
    assert version_of(found, "ray") == "?"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("together", [False, True], ids=["one at a time", "together"])
def test_ours_and_a_peer_are_driven_in_turn(tiny_bundle_path: Path, out: Path, here: None, together: bool) -> None:
    model = out / "model"
    export_plain(tiny_bundle_path, model)
    own = ours(str(tiny_bundle_path), None, ["--log-level", "warning"])
    broken = replace(peer("fastapi").settings[0], command=("{python}", "-c", "print('no'); exit(3)"))
    peers = [
        replace(own, settings=own.settings[:1]),
        replace(peer("fastapi"), settings=[*(peer("fastapi").settings[1:] if together else []), broken]),
    ]
    lines: list[str] = []
    contenders = [c for each in peers for c in line_up(each, out / "venv", model, out, out, lines.append)]
    plan = Plan(4, 1 + together, 0.5, (4.0, 1e6), together)
    compare(contenders, TEXTS, [None] * len(TEXTS), plan, out / "logs", lines.append)
    *served, failed = contenders
    assert len(served) == 1 + together
    for contender in served:
        visit, *more = contender.visits
        assert contender.problem is None
        assert [(again.start_seconds, again.passed) for again in more] == [(visit.start_seconds, None)] * together
        assert together or visit.others_cpu_share == 0
        assert visit.passed is not None
        assert visit.passed.errors == visit.saturated.errors == visit.half.errors == {}
        assert visit.passed.agreement == 1
        assert visit.saturated.throughput > 0
        low, beyond = visit.rated
        assert low is not None
        assert low.errors == {}
        assert beyond is None
        assert visit.half_rate == pytest.approx(visit.saturated.throughput / 2)
        assert (visit.peak_rss_bytes or 0) > 2**20 or sys.platform != "linux"
    assert [contender.version for contender in served[1:]] == ["5.0"] * together
    assert (failed.visits, failed.problem) == ([], "no")
