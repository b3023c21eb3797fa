"""Small real models: random weights, but every code path of a trained bundle."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers import BertForSequenceClassification

from revmux_core.bundle import Bundle, load_bundle
from revmux_core.classifier import Adapters
from revmux_core.manifest import record_measurements
from revmux_core.multiplexing.reversible import ReversibleMultiplexer
from revmux_core.points import OperatingPoint
from tests.tiny import HIDDEN, LABELS, LAYERS, save_tiny_bundle, save_tokenizer, tiny_config


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
def tiny_bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)
