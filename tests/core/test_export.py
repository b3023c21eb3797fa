"""What is exported is the plain model, for whoever loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from revmux_core.bundle import load_bundle
from revmux_core.export import ExportError, export_plain
from revmux_core.offline import BATCH_TOKENS, run_all

TEXTS = ["a good film", "not very good .", "a waste of two hours, and then it falls over"]


def test_an_exported_model_has_the_plain_logits_and_labels(tmp_path: Path) -> None:
    bundle = load_bundle("sst2-minilm")
    export_plain("sst2-minilm", tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert [model.config.id2label[i] for i in range(2)] == bundle.manifest.labels
    assert tokenizer.model_max_length == bundle.manifest.max_tokens
    samples = bundle.tokenizer([(text, None) for text in TEXTS])
    plain, _ = run_all(bundle.classifier, samples, bundle.classifier.plain, bundle.tokenizer.pad_id, BATCH_TOKENS)
    for text, sample, logits in zip(TEXTS, samples, plain, strict=True):
        encoded = tokenizer(text, return_tensors="pt")
        assert encoded["input_ids"][0].tolist() == list(sample.ids), "neither padded nor cut"
        with torch.inference_mode():
            torch.testing.assert_close(model(**encoded).logits[0], logits, atol=1e-5, rtol=0)


def test_a_folder_in_use_is_left_alone(tiny_bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ExportError, match="is not an empty folder"):
        export_plain(tiny_bundle_path, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
