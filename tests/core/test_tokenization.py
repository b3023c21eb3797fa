"""Tokens are the Hugging Face tokenizer's own, cut as it cuts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from revmux_core.bundle import Bundle

WORDS = st.lists(st.sampled_from(["good", "bad", "film", "unknownword", "."]), min_size=1, max_size=60).map(" ".join)


@settings(max_examples=80, deadline=None)
@given(first=WORDS, second=st.none() | WORDS, limit=st.integers(6, 64))
def test_cutting_matches_hugging_face(
    tiny_bundle: Bundle, tiny_base_path: Path, first: str, second: str | None, limit: int
) -> None:
    reference = AutoTokenizer.from_pretrained(tiny_base_path)
    expected = reference(first, second, truncation=True, max_length=limit)
    encoding = tiny_bundle.tokenizer.encode([(first, second)])[0]
    tokens = tiny_bundle.tokenizer.cut(encoding, limit)
    assert tokens.ids == expected["input_ids"]
    assert tokens.type_ids == expected["token_type_ids"]


@pytest.mark.parametrize("text", ["", " ", "\x00", "\U0001f600" * 300, "\uff41\uff42", "\u202ertl", "x" * 100_000])
def test_any_text_is_tokenized_within_the_limit(tiny_bundle: Bundle, text: str) -> None:
    tokens = tiny_bundle.tokenizer([(text, None)])[0]
    assert 2 <= len(tokens) <= tiny_bundle.tokenizer.max_tokens
