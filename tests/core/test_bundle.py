"""Bundles load as they were saved, or are refused with one clear sentence."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from revmux_core.base_model import BaseModelError, find_base, sha256
from revmux_core.bundle import load_bundle
from revmux_core.manifest import BundleError, read_manifest, record_calibration, write_manifest
from server.cli import main
from tests.tiny import save_family_bundle

TEXTS = ["a good film", "not very good .", "bad film word7 word8", "word9", "the film is bad"]


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: truncate(folder / "bundle.json"), "truncated or not JSON"),
        (lambda folder: (folder / "bundle.json").write_text("[]"), "not a valid manifest"),
        (lambda folder: (folder / "bundle.json").unlink(), "not a bundle"),
        (lambda folder: edit_manifest(folder, name="\ud800"), "not JSON: .*surrogates"),
        (
            lambda folder: (folder / "bundle.json").write_text('{"training": ' + "[" * 100_000 + "]" * 100_000 + "}"),
            "bundle.json",
        ),
        (lambda folder: edit_manifest(folder, format_version=99), "upgrade revmux-server"),
        (lambda folder: edit_manifest(folder, labels=["a", "b", "c"]), "altered after it was saved"),
        (lambda folder: truncate(next(folder.glob("adapters/n2*"))), "^bundle tiny is damaged: adapters/n2"),
        (lambda folder: flip(next(folder.glob("adapters/n4*"))), "^bundle tiny is damaged: adapters/n4"),
        (
            lambda folder: (folder / "backbone/tokenizer.json").unlink(),
            "^bundle tiny is incomplete: backbone/tokenizer.json",
        ),
    ],
)
def test_damaged_bundles_are_refused(
    tiny_bundle_path: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_path, folder)
    damage(folder)
    with pytest.raises(BundleError, match=message) as error:
        load_bundle(folder)
    assert "\n" not in str(error.value)


def replaced(folder: Path, name: str, content: bytes) -> None:
    """Puts `content` in place of a bundle's file and makes the hashes fit, as whoever made the bundle would."""
    (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"files": manifest.files | {name: sha256(folder / name)}}))


def replaced_json(folder: Path, name: str, **changes: object) -> None:
    replaced(folder, name, json.dumps(json.loads((folder / name).read_bytes()) | changes).encode())


def without_bias(folder: Path) -> None:
    (path,) = folder.glob("adapters/n2*")
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if name.endswith("bias")))
    replaced(folder, str(path.relative_to(folder)), save(tensors))


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # From Python 3.13 on a link to itself is taken for no file.
        (lambda folder: linked(folder / "backbone/config.json", "config.json"), "cannot be read|is missing"),
        (lambda folder: linked(folder / "backbone/config.json", "/etc/hostname"), "outside its folder"),
        (lambda folder: replaced(folder, "backbone/tokenizer.json", b"{}"), "cannot be loaded"),
        (lambda folder: replaced_json(folder, "backbone/tokenizer_config.json", tokenizer_class=7), "cannot be loaded"),
        (lambda folder: replaced_json(folder, "backbone/config.json", dtype="mistral"), "cannot be loaded"),
        (lambda folder: replaced_json(folder, "backbone/config.json", num_attention_heads=None), "cannot be loaded"),
        (lambda folder: replaced_json(folder, "backbone/tokenizer_config.json", pad_token="[NEW]"), "makes the token"),
        (without_bias, "Missing key"),
        (lambda folder: piped(folder / "bundle.json"), "not a bundle"),
    ],
)
def test_malformed_bundles_whose_hashes_fit_are_refused(
    tiny_bundle_path: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    """Found by `python -m loadtest.fuzz.bundle`."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_path, folder)
    damage(folder)
    with pytest.raises(BundleError, match=message) as error:
        load_bundle(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("points", "message"),
    [(("n2-l3-u3",), "no adapters"), ((), "ascend"), (("n2-l4",), "below the top"), (("x",), "names no")],
)
def test_a_cascade_whose_points_cannot_run_is_refused(
    calibrated_path: Path, tmp_path: Path, points: tuple[str, ...], message: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(calibrated_path, folder)
    manifest = read_manifest(folder)
    (calibration,) = manifest.calibrations
    other = {"points": points, "score": "top-probability", "passed_on": None}
    cascade = calibration.cascades[0].model_copy(update=other)
    write_manifest(
        folder, manifest.model_copy(update={"calibrations": [calibration.model_copy(update={"cascades": [cascade]})]})
    )
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("family", "file", "changes"),
    [
        (None, "config.json", {"model_type": "unknown", "auto_map": {"AutoConfig": "code.Config"}}),
        # A type that Transformers knows, but not as a classifier of text.
        (None, "config.json", {"model_type": "vit", "auto_map": {"AutoModelForSequenceClassification": "code.Model"}}),
        # Transformers has no tokenizer of its own for this family.
        (
            "llama",
            "tokenizer_config.json",
            {"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["slow.T", "fast.T"]}},
        ),
    ],
)
def test_nobody_is_asked_whether_to_run_a_bundles_code(
    tiny_bundle_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str | None,
    file: str,
    changes: dict[str, object],
) -> None:
    folder = tmp_path / "bundle"
    if family is None:
        shutil.copytree(tiny_bundle_path, folder)
    else:
        save_family_bundle(folder, family)
    replaced_json(folder, f"backbone/{file}", **changes)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    with pytest.raises(BundleError, match="cannot be loaded"):
        load_bundle(folder)


@pytest.mark.parametrize("max_tokens", [0, 65])
def test_texts_that_are_longer_than_the_model_can_read_are_no_promise(
    tiny_bundle_path: Path, tmp_path: Path, max_tokens: int
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_path, folder)
    write_manifest(folder, read_manifest(folder).model_copy(update={"max_tokens": max_tokens}))
    with pytest.raises(BundleError, match="its model 1 to 64"):
        load_bundle(folder)


def test_other_base_weights_are_refused(tiny_bundle_path: Path, tiny_base_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base_path, tmp_path / "base")
    flip(tmp_path / "base" / "model.safetensors")
    with pytest.raises(BundleError, match="trained on other weights"):
        load_bundle(tiny_bundle_path, base=tmp_path / "base")
    with pytest.raises(BundleError, match=r"holds no model\.safetensors"):
        load_bundle(tiny_bundle_path, base=tmp_path)


def test_an_unknown_name_lists_the_built_in_bundles() -> None:
    with pytest.raises(BundleError, match="there is no bundle nope"):
        load_bundle("nope")


def test_classify_repeats_itself_and_agrees_with_plain_at_width_1(tiny_bundle_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    answers = bundle.classify(TEXTS)
    assert answers == load_bundle(tiny_bundle_path).classify(TEXTS)
    assert [answer.mux_width for answer in answers].count(4) == 4
    for text, answer in zip(TEXTS, bundle.classify(TEXTS, point=1), strict=True):
        assert answer.mux_width == 1
        assert answer.probs == pytest.approx(bundle.classify([text])[0].probs, abs=1e-5)
    assert bundle.classify([]) == []


def test_bfloat16_serves_from_the_same_code(tiny_bundle_path: Path) -> None:
    """What a CUDA device runs by default also runs here; answers stay close to float32."""
    half = load_bundle(tiny_bundle_path, dtype=torch.bfloat16).classify(TEXTS)
    full = load_bundle(tiny_bundle_path).classify(TEXTS)
    for low, high in zip(half, full, strict=True):
        assert low.probs == pytest.approx(high.probs, abs=0.15)


def test_the_base_is_found_in_the_hugging_face_cache(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--org--tiny"
    shutil.copytree(tiny_base_path, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert sha256(*find_base("org/tiny").weights) == sha256(tiny_base_path / "model.safetensors")
    with pytest.raises(BaseModelError, match="org/other is neither a local folder nor in the Hugging Face cache"):
        find_base("org/other")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """While this lasts the system lets no file grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [100, 2000])
def test_a_full_disk_leaves_the_bundle_as_it_was(calibrated_path: Path, tmp_path: Path, size: int) -> None:
    """It ends in the weights of a learnt score, or in the manifest."""
    path = tmp_path / "bundle"
    shutil.copytree(calibrated_path, path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    calibration = read_manifest(path).calibrations[0]
    calibration = calibration.model_copy(update={"files": {"n1-l2": "calibration/torch-float32/n1-l2.safetensors"}})
    with room_for(size), pytest.raises(Exception, match=r"File too large"):
        record_calibration(path, calibration, {"n1-l2": {"weight": torch.zeros(300)}})
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    load_bundle(path)


def test_a_full_disk_is_told_in_a_sentence(
    tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["revmux", "export", "--bundle", str(tiny_bundle_path), "--out", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", command)
    with room_for(5000), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("revmux: there is no room to write to")
