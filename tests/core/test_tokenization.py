"""Tokens are the Hugging Face tokenizer's own, cut as it cuts."""

# Letters that look like others are what this is about.
# ruff: noqa: RUF001

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from revmux_core.bundle import Bundle
from revmux_core.tokenization import EmptyTextError, TextError, TextTokenizer, Tokenizer

WORDS = st.lists(st.sampled_from(["good", "bad", "film", "unknownword", "."]), min_size=1, max_size=60).map(" ".join)


@settings(max_examples=80)
@given(first=WORDS, second=st.none() | WORDS, limit=st.integers(6, 64))
def test_cutting_matches_hugging_face(
    tiny_bundle: Bundle, tiny_base_path: Path, first: str, second: str | None, limit: int
) -> None:
    reference = AutoTokenizer.from_pretrained(tiny_base_path)
    expected = reference(first, second, truncation=True, max_length=limit)
    encoding = tiny_bundle.tokenizer.encode([(first, second)])[0]
    tokens = tiny_bundle.tokenizer.cut(encoding, limit)
    assert tokens.ids == expected["input_ids"]
    assert (tokens.type_ids or [0] * len(tokens)) == expected["token_type_ids"]
    assert (tokens.type_ids is None) == (second is None)


SCRIPTS = {
    "chinese": "这部电影非常好看，值得一看。",
    "japanese": "この映画はとても面白かった",
    "korean": "이 영화는 정말 좋았다",
    "arabic": "هذا الفيلم رائع جدا",
    "hebrew": "הסרט הזה נפלא מאוד",
    "hindi": "यह फिल्म बहुत अच्छी है",
    "thai": "หนังเรื่องนี้ดีมาก",
    "russian": "Этот фильм отличный",
    "emoji": "\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7",
    "combining": "cafe\u0301 re\u0301sume\u0301 a\u0335\u0327",
    "directions": "\u202egood\u202c \u2067טוב\u2069",
    "fullwidth": "ｇｏｏｄ　ｆｉｌｍ",
    "nul": "good\x00 film",
}
ANY_TEXT = st.text(max_size=80) | st.lists(st.sampled_from([*SCRIPTS.values(), "good"]), max_size=8).map(" ".join)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One of each kind: BERT's, T5's and that of Llama 3 and Qwen, which has a token for every byte."""
    learnt = {
        "WordPiece": (models.WordPiece(unk_token="<unk>"), normalizers.BertNormalizer(), trainers.WordPieceTrainer),
        "Unigram": (models.Unigram(), normalizers.NFKC(), partial(trainers.UnigramTrainer, unk_token="<unk>")),
        "byte-level BPE": (models.BPE(), normalizers.NFC(), trainers.BpeTrainer),
    }
    splits = {
        "WordPiece": pre_tokenizers.BertPreTokenizer(),
        "Unigram": pre_tokenizers.Metaspace(),
        "byte-level BPE": pre_tokenizers.ByteLevel(),
    }
    known = [text for name, text in SCRIPTS.items() if name in ("chinese", "arabic", "nul")]
    made = {}
    for name, (model, normalizer, trainer) in learnt.items():
        rust = RustTokenizer(model)
        rust.normalizer, rust.pre_tokenizer = normalizer, splits[name]
        bytes_too = pre_tokenizers.ByteLevel.alphabet() if name == "byte-level BPE" else []
        special = ["<unk>", "<s>", "</s>"]
        rust.train_from_iterator(known, trainer(vocab_size=400, special_tokens=special, initial_alphabet=bytes_too))
        rust.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        unknown = None if bytes_too else "<unk>"
        made[name] = PreTrainedTokenizerFast(tokenizer_object=rust, unk_token=unknown, model_max_length=10_000)
    return made


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "byte-level BPE"])
@settings(max_examples=100)
@given(first=ANY_TEXT, second=st.none() | ANY_TEXT, limit=st.integers(5, 40))
def test_any_unicode_is_cut_as_hugging_face_does_or_refused(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, first: str, second: str | None, limit: int
) -> None:
    reference = tokenizers[kind]
    tokenizer = Tokenizer(reference, limit)
    whole = reference(first, second).input_ids
    text = (first, second)
    alone = [reference(part, add_special_tokens=False).input_ids for part in text if part is not None]
    if not all(alone):
        with pytest.raises(EmptyTextError, match="input 1 is empty to this model"):
            tokenizer([("film", None), text])
        return
    encoding, elsewhere = (
        own.encode([text])[0]
        for own in (tokenizer, TextTokenizer(RustTokenizer.from_str(tokenizer.to_json()), False, limit))
    )
    assert encoding.ids == elsewhere.ids == whole, "counted whole, here and in a process that only speaks HTTP"
    tokens = tokenizer.cut(encoding, limit)
    assert tokens.ids == reference(first, second, truncation=True, max_length=limit).input_ids
    assert len(tokens) == min(len(whole), limit)
    assert tokenizer.unknown(tokens) == (0 if kind == "byte-level BPE" else tokens.ids.count(0))


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "byte-level BPE"])
@settings(max_examples=50)
@given(text=ANY_TEXT, limit=st.integers(2, 40))
def test_words_of_any_unicode_are_where_hugging_face_has_them(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, text: str, limit: int
) -> None:
    (tokens,) = Tokenizer(tokenizers[kind], limit, by_word=True)([(text, None)])
    cut = tokenizers[kind](text, truncation=True, max_length=limit)
    words = [word for word in dict.fromkeys(cut.word_ids()) if word is not None]
    assert tokens.ids == cut.input_ids
    assert tokens.words == [cut.word_to_tokens(word).start for word in words]
    assert tokens.spans == [tuple(cut.word_to_chars(word)) for word in words]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_the_vocabulary_lacks_is_counted(tiny_bundle: Bundle, script: str) -> None:
    """The tiny model knows a few English words only: "good film" around NUL, "good" between marks of direction, "a"."""
    [tokens] = tiny_bundle.tokenizer([(SCRIPTS[script], None)])
    known = {"nul": 2, "directions": 1, "combining": 1}.get(script, 0)
    assert len(tokens) - 2 - tiny_bundle.tokenizer.unknown(tokens) == known


@pytest.mark.parametrize("text", ["", " ", "\x00", "\u200b\ufeff", "\u0301", "\u202e\u202c"])
def test_a_text_of_which_nothing_is_left_is_refused(tiny_bundle: Bundle, text: str) -> None:
    with pytest.raises(EmptyTextError, match="input 1 is empty to this model, whose tokenizer drops"):
        tiny_bundle.classify(["good", text])
    with pytest.raises(EmptyTextError, match="input 0"):
        tiny_bundle.classify([("good", text)])


def test_half_of_a_surrogate_pair_is_refused(tiny_bundle: Bundle) -> None:
    for texts in (["good", "bad \ud83d film"], ["good", ("bad", "\udc00")]):
        with pytest.raises(TextError, match="input 1 has half of a surrogate pair"):
            tiny_bundle.classify(texts)


@pytest.mark.parametrize("text", ["\U0001f600" * 300, "字" * 300, "x" * 100_000, "e\u0301" * 5000])
def test_any_text_is_tokenized_within_the_limit(tiny_bundle: Bundle, text: str) -> None:
    tokens = tiny_bundle.tokenizer([(text, None)])[0]
    assert 3 <= len(tokens) <= tiny_bundle.tokenizer.max_tokens


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
