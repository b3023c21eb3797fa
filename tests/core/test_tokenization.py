"""Tokens are the Hugging Face tokenizer's own, cut as it cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from revmux_core.bundle import Bundle
from revmux_core.tokenization import Tokenizer

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


BYTES = processors.ByteLevel()
BEGIN = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 2)])


@pytest.mark.parametrize(
    ("own", "single", "pair"),
    [
        (BYTES, [8, 9, 0], [8, 9, 0, 1]),
        (BEGIN, [8, 9, 2, 0], [8, 9, 2, 0, 2, 1]),
        (processors.Sequence([BYTES, BEGIN]), [8, 9, 2, 0], [8, 9, 2, 0, 2, 1]),
    ],
)
def test_a_soft_prompt_stands_before_all_special_tokens(own: Any, single: list[int], pair: list[int]) -> None:
    """Of tokenizers as Qwen, Mistral and Llama 3 have them."""
    rust = RustTokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="a"))
    rust.post_processor = own
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust), 16, [8, 9])
    assert [tokens.ids for tokens in tokenizer([("a", None), ("a", "b")])] == [single, pair]


def test_special_tokens_that_leave_no_place_for_a_prompt_are_refused(tiny_base_path: Path) -> None:
    with pytest.raises(ValueError, match="in front of the special tokens of a BertProcessing tokenizer"):
        Tokenizer(AutoTokenizer.from_pretrained(tiny_base_path), 16, [8, 9])
