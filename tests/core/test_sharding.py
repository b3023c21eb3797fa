"""A model on several devices answers as it does on one. Without GPUs the second device is the disk: accelerate's hooks
fetch what waits there for its turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from revmux_core.backbones import Backbone
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.errors import RevmuxError
from revmux_core.sharding import shard
from revmux_core.training.run import Recipe, TrainingError, train
from server.cli import app
from tests.core.test_families import EXAMPLES
from tests.tiny import FAMILIES, assert_same_answers, save_family


def held_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters() if not parameter.is_meta)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which accelerate takes enough for the embeddings, some layers, and one more to be fetched."""

    def spread(backbone: Backbone, reserved: int = 0) -> Backbone:
        return shard(backbone, reserved, {"cpu": reserved + 2 * held_bytes(backbone.model) // 3})

    monkeypatch.setattr("revmux_core.sharding.shard", spread)
    monkeypatch.setattr("revmux_core.training.run.shard", spread)


@pytest.fixture(params=["bert", *FAMILIES])
def path(request: Any, tiny_bundle_path: Path, family_bundle_paths: dict[str, Path]) -> Path:
    return tiny_bundle_path if request.param == "bert" else family_bundle_paths[request.param]


def layers_on_disk(bundle: Bundle) -> list[int]:
    backbone = bundle.classifier.backbone
    layers = backbone.layers(0, backbone.num_layers)
    return [i for i, layer in enumerate(layers) if any(parameter.is_meta for parameter in layer.parameters())]


@pytest.mark.usefixtures("little_memory")
def test_every_point_answers_as_on_one_device(path: Path) -> None:
    """Plain, and in composites of both widths, whose upper layers are those that wait on disk."""
    sharded, whole = load_bundle(path, sharded=True), load_bundle(path)
    apart = layers_on_disk(sharded)
    assert apart
    assert apart[-1] == whole.classifier.backbone.num_layers - 1
    assert 0 not in apart
    assert_same_answers(sharded, whole.classifier, whole.classifier.points)
    assert layers_on_disk(sharded) == apart, "what was fetched is put down again"


@pytest.mark.usefixtures("little_memory")
def test_an_escalated_sample_goes_on_from_its_states(calibrated_path: Path) -> None:
    texts = ["a good film", "not very good .", "bad film word7 word8", "word9", "the film is bad"]
    sharded = load_bundle(calibrated_path, sharded=True)
    assert layers_on_disk(sharded)
    found, expected = sharded.classify(texts), load_bundle(calibrated_path).classify(texts)
    assert any(answer.escalated for answer in expected)
    for own, answer in zip(found, expected, strict=True):
        assert own.probs == pytest.approx(answer.probs, abs=1e-5)
        assert own.escalated == answer.escalated


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_prompt_and_adapters_are_trained_on_a_sharded_model(family: str, tmp_path: Path) -> None:
    """As on one device: the gradient finds its way through what was fetched."""
    save_family(tmp_path / "model", family)
    data = tmp_path / "train.tsv"
    data.write_text("sentence\tlabel\n" + "".join(f"{e.text}\t{e.label}\n" for e in EXAMPLES))
    command = f"train --model {tmp_path / 'model'} --data {data} --labels bad,good --width 2 --prompt-tokens 2"
    command += " --task-epochs 0.5 --epochs 0.5 --precision fp32"
    for name, device in (("one", "cpu"), ("several", "sharded")):
        arguments = f"{command} --out {tmp_path / name} --device {device}".split()
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    texts = [example.text for example in EXAMPLES[:8]]
    one, several = (load_bundle(tmp_path / name).classify(texts, point=2) for name in ("one", "several"))
    for own, answer in zip(several, one, strict=True):
        assert own.probs == pytest.approx(answer.probs, abs=1e-3)


def test_what_cannot_be_sharded_is_refused(
    tiny_bundle_path: Path, family_bundle_paths: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RevmuxError, match="not with the backend openvino: use the backend torch"):
        load_bundle(tiny_bundle_path, backend="openvino", sharded=True)
    with pytest.raises(RevmuxError, match="too small for the model's embeddings"):
        shard(load_bundle(tiny_bundle_path).classifier.backbone, memory={"cpu": 1000})
    recipe = Recipe(str(family_bundle_paths["mistral"] / "base"), widths=(2,), delta_rank=2)
    with pytest.raises(TrainingError, match="which a sharded model keeps frozen"):
        train(recipe, EXAMPLES, tmp_path / "bundle", "tiny", sharded=True)
    result = CliRunner().invoke(app, f"hostile --bundle {tiny_bundle_path} --data x.txt --device sharded".split())
    assert isinstance(result.exception, RevmuxError)
