"""Tiny models that tests build for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from revmux_core.base_model import sha256
from revmux_core.bundle import Bundle
from revmux_core.classifier import Adapters
from revmux_core.manifest import BaseEntry
from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint
from revmux_core.saving import save_bundle

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


def save_tiny_bundle(folder: Path, base: Path, adapters: Mapping[OperatingPoint, Adapters]) -> None:
    """A bundle around the tiny classifier in the folder `base`."""
    save_bundle(
        folder,
        name="tiny",
        base=BaseEntry(model_id=str(base), sha256=sha256(base / "model.safetensors")),
        labels=LABELS,
        max_tokens=MAX_TOKENS,
        source=base,
        task=None,
        adapters=adapters,
        num_layers=LAYERS,
        training={},
    )


def tiny_config(**settings: Any) -> BertConfig:
    """A BERT of 4 layers and d = 32 that knows the words of `save_tokenizer`."""
    return BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS,
        **settings,
    )


def random_samples(bundle: Bundle, count: int, seed: int = 0) -> tuple[list[str], list[Tokens]]:
    """Texts of 2 to 19 of the tokenizer's words, and their tokens."""
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, rng.integers(2, 20))) for _ in range(count)]
    return lines, bundle.tokenizer([(line, None) for line in lines])
