"""Small real models: random weights, but every code path of a trained bundle."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is imported, and for the processes that tests start as well. A second thread gains nothing on tiny
# models, and where another process has its core, every operation waits for it: a test took fifty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from transformers import BertForSequenceClassification

from revmux_core.bundle import Bundle, load_bundle
from revmux_core.calibration import calibrate
from revmux_core.classifier import Adapters, MuxClassifier, make_adapters
from revmux_core.manifest import record_calibration, record_measurements
from revmux_core.multiplexing import EARLY_EXIT, make_multiplexer
from revmux_core.multiplexing.reversible import ReversibleMultiplexer
from revmux_core.points import OperatingPoint
from revmux_core.problems import ProblemType
from tests.tiny import (
    FAMILIES,
    HIDDEN,
    LABELS,
    LAYERS,
    PROBLEMS,
    random_samples,
    save_family_bundle,
    save_task_bundle,
    save_tiny_bundle,
    save_tokenizer,
    tiny_config,
)

# The same examples every time, and no verdict on a busy machine's speed. Here, as tests that have settings of their own
# take the rest of them from what is loaded when they are imported.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session")
def tiny_base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a random BERT classifier of 4 layers, d = 32, three labels, and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    # Weights wide enough that different texts get clearly different answers.
    config = tiny_config(
        initializer_range=0.4,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle_path(tiny_base_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle around `tiny_base_path` with untrained adapters of widths 2 and 4."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(1)
    adapters = {
        OperatingPoint.mux(width, 2, LAYERS): Adapters(ReversibleMultiplexer(width, HIDDEN)) for width in (2, 4)
    }
    save_tiny_bundle(folder, tiny_base_path, adapters)
    # As if measured: what was not is served only when it is asked for.
    record_measurements(folder, {"points": [{"point": point.name, "agreement": 0.97} for point in adapters]})
    return folder


@pytest.fixture(scope="session")
def family_bundle_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same for the families beside the encoders, by their names in `FAMILIES`."""
    paths = {family: tmp_path_factory.mktemp(family) / "bundle" for family in FAMILIES}
    for family, path in paths.items():
        save_family_bundle(path, family)
    return paths


@pytest.fixture(scope="session")
def task_bundle_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[ProblemType, Path]:
    """Bundles of the task types beside single labels, see `save_task_bundle`."""
    paths = {kind: tmp_path_factory.mktemp(kind) for kind in PROBLEMS if kind != "single_label_classification"}
    for kind, path in paths.items():
        save_task_bundle(path, kind)
    return paths


@pytest.fixture(scope="session")
def calibrated_task_paths(
    task_bundle_paths: dict[ProblemType, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[ProblemType, Path]:
    """The same, calibrated at widths 1 and 2. Whole answers of untrained adapters are rarely right."""
    paths = {}
    for kind, path in task_bundle_paths.items():
        paths[kind] = tmp_path_factory.mktemp("calibrated") / kind
        shutil.copytree(path, paths[kind])
        bundle = load_bundle(paths[kind])
        found = calibrate(bundle, random_samples(bundle, 300)[1], 0.6, 0.9, [1, 2], "words")
        record_calibration(paths[kind], found.calibration, {p.name: s.state_dict() for p, s in found.learnt.items()})
    return paths


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)


@pytest.fixture(scope="session")
def entangled_bundle(tiny_bundle: Bundle) -> Bundle:
    """The tiny model with one composite, of width 2, whose weights are wide enough that partners decide labels."""
    torch.manual_seed(0)
    backbone = tiny_bundle.classifier.backbone
    point = OperatingPoint.mux(2, 1, LAYERS)
    adapters = make_adapters(backbone, point, make_multiplexer("vanilla-adapter", 2, HIDDEN), 0)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return replace(tiny_bundle, classifier=MuxClassifier(backbone, {point: adapters}))


@pytest.fixture(scope="session")
def uncalibrated_path(tiny_bundle: Bundle, tiny_base_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with an early exit beside its widths."""
    torch.manual_seed(2)
    classifier = tiny_bundle.classifier
    early = OperatingPoint(1, 2, ())
    exit_adapters = make_adapters(classifier.backbone, early, make_multiplexer(EARLY_EXIT, 1, HIDDEN), 0)
    adapters = {point: classifier.adapters_of(point) for point in classifier.points if point != classifier.plain}
    path = tmp_path_factory.mktemp("uncalibrated")
    save_tiny_bundle(path, tiny_base_path, adapters | {early: exit_adapters})
    return path


@pytest.fixture(scope="session")
def calibrated_path(uncalibrated_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, calibrated at widths 1 and 2. Untrained adapters are often wrong, so what they promise is little."""
    path = tmp_path_factory.mktemp("calibrated") / "bundle"
    shutil.copytree(uncalibrated_path, path)
    bundle = load_bundle(path)
    found = calibrate(bundle, random_samples(bundle, 400)[1], 0.8, 0.9, [1, 2], "words")
    record_calibration(path, found.calibration, {p.name: s.state_dict() for p, s in found.learnt.items()})
    return path
