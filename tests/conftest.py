"""Small real models: random weights, but every code path of a trained bundle."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from revmux_core.base_model import sha256
from revmux_core.bundle import BaseEntry, Bundle, load_bundle, save_bundle
from revmux_core.multiplexing import ReversibleMultiplexer
from revmux_core.points import OperatingPoint

LABELS = ["negative", "neutral", "positive"]
WORDS = [f"word{i}" for i in range(180)] + ["a", "an", "the", "good", "bad", "film", "is", "not", "very", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LAYERS, HIDDEN, MAX_TOKENS = 4, 32, 64


def save_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer of about 200 words, saved as a model folder has it."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL + WORDS)}
    rust = RustTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=rust,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a random BERT classifier of 4 layers, d = 32, three labels, and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS,
        # Wide enough that different texts get clearly different answers.
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
    save_bundle(
        folder,
        name="tiny",
        base=BaseEntry(model_id=str(tiny_base_path), sha256=sha256(tiny_base_path / "model.safetensors")),
        labels=LABELS,
        max_tokens=MAX_TOKENS,
        source=tiny_base_path,
        task=None,
        multiplexers={OperatingPoint.mux(width, 2, LAYERS): ReversibleMultiplexer(width, HIDDEN) for width in (2, 4)},
        num_layers=LAYERS,
        training={},
    )
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_path: Path) -> Bundle:
    return load_bundle(tiny_bundle_path)
