"""Texts to tokens, once per sample."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from revmux_core.errors import RevmuxError
from revmux_core.plan import Tokens

if TYPE_CHECKING:
    # Takes seconds and brings torch, neither of which a process that only cuts texts needs.
    from transformers import PreTrainedTokenizerBase

_PROMPT = "<soft prompt>"
"""What a tokenizer's template calls the soft prompt."""

Text = tuple[str, str | None]
"""One text, or the two texts of a pair."""


class TextError(RevmuxError):
    """A text that no model can be asked about; the message says which one and what to change."""


class EmptyTextError(TextError):
    """A text of which the tokenizer leaves nothing."""


class PairError(RevmuxError):
    """A pair of texts where only single ones can be answered."""


class TextTokenizer:
    """A Rust tokenizer and the length that a model takes; safe to call from several threads.

    It cuts over-long texts itself, since the Rust tokenizer holds its truncation length as shared state: setting it
    for one caller would change, or panic under, another. `segmented` models tell the two texts of a pair apart. With
    `by_word` tokens say where words are. `unknown_id` stands for what the vocabulary has no token for; None: it has one
    for every byte.
    """

    def __init__(
        self,
        backend: RustTokenizer,
        segmented: bool,
        max_tokens: int,
        by_word: bool = False,
        unknown_id: int | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special = {pair: backend.num_special_tokens_to_add(pair) for pair in (False, True)}
        self.segmented = segmented
        self.max_tokens = max_tokens
        self.by_word = by_word
        self.unknown_id = unknown_id

    def to_json(self) -> str:
        """The Rust tokenizer, for `RustTokenizer.from_str`."""
        return str(self._backend.to_str())

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """Encodes `(text, pair or None)` items whole, special tokens included.

        Raises `PairError` for a pair where words are answered: which text's they are could not be told. Raises
        `TextError` for half of a surrogate pair, and `EmptyTextError` for a text of which no token is left, such as one
        of control or zero-width characters only: some families would have nothing at all to answer about.
        """
        if self.by_word and any(pair is not None for _, pair in texts):
            raise PairError("token classification takes single texts, not pairs")
        # The fast one does not say where in the text a token stands.
        encode = self._backend.encode_batch if self.by_word else self._backend.encode_batch_fast
        try:
            encodings = encode([text if pair is None else (text, pair) for text, pair in texts])
        except TypeError:
            # Of strings only these cannot be handed to Rust.
            for item, text in enumerate(texts):
                if any("\ud800" <= character <= "\udfff" for part in text for character in part or ""):
                    raise TextError(
                        f"input {item} has half of a surrogate pair (U+D800 to U+DFFF), which is no character: send "
                        "whole characters"
                    ) from None
            raise
        for item, (encoding, (_, pair)) in enumerate(zip(encodings, texts, strict=True)):
            # A text without words has no entities, which is an answer.
            own = len(encoding) - (0 if self.by_word else self._special[pair is not None])
            if own == 0 or (pair is not None and encoding.sequence_ids.count(1) in (0, own)):
                raise EmptyTextError(
                    f"input {item} is empty to this model, whose tokenizer drops all that is in it (control and "
                    "zero-width characters, combining marks alone, ...): send a text"
                )
        return encodings

    def least_tokens(self, text: Text) -> int:
        """The special tokens that a text, or pair of texts, gets, and one of each text's own."""
        pair = text[1] is not None
        return self._special[pair] + 1 + pair

    def unknown(self, tokens: Tokens) -> int:
        """How many tokens stand for something that the vocabulary lacks."""
        return 0 if self.unknown_id is None else tokens.ids.count(self.unknown_id)

    def cut(self, encoding: Encoding, max_tokens: int) -> Tokens:
        """The encoding as tokens, at most `max_tokens` of them; special tokens always stay.

        Where two texts are too long together, the longer gives way first, then both share evenly: the rule that
        Hugging Face calls `longest_first`.
        """
        ids, type_ids = encoding.ids, encoding.type_ids
        kept: Sequence[int] = range(len(ids))
        if len(ids) > max_tokens:
            sequences = encoding.sequence_ids
            first, second = sequences.count(0), sequences.count(1)
            room = max(max_tokens - (len(ids) - first - second), 0)
            shares = _share(first, second, room)
            taken = [0, 0]
            kept = []
            for position, sequence in enumerate(sequences):
                if sequence is not None:
                    taken[sequence] += 1
                    if taken[sequence] > shares[sequence]:
                        continue
                kept.append(position)
            ids, type_ids = [ids[i] for i in kept], [type_ids[i] for i in kept]
        words, spans = _words(encoding, kept) if self.by_word else (None, None)
        return Tokens(ids, type_ids if self.segmented and any(type_ids) else None, words, spans)

    def __call__(self, texts: Sequence[Text]) -> list[Tokens]:
        """Encodes and cuts to the backbone's limit. Raises as `encode` does."""
        return [self.cut(encoding, self.max_tokens) for encoding in self.encode(texts)]


class Tokenizer(TextTokenizer):
    """The backbone's own fast tokenizer, with its special tokens, behind `prompt_ids` that stand for a soft prompt.

    Raises `ValueError` for a tokenizer without a fast (Rust) implementation, or whose special tokens leave no place
    for a prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        prompt_ids: Sequence[int] = (),
        by_word: bool = False,
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} has no fast implementation, which serving needs")
        backend = tokenizer.backend_tokenizer
        if prompt_ids:
            backend = _with_prompt(backend, list(prompt_ids))
        segmented = "token_type_ids" in tokenizer.model_input_names
        super().__init__(backend, segmented, max_tokens, by_word, tokenizer.unk_token_id)
        # Llama has none; what stands at padded positions is hidden from all others.
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.mask_id: int | None = tokenizer.mask_token_id
        self.special_ids: list[int] = tokenizer.all_special_ids


def _words(encoding: Encoding, kept: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Where, among the tokens `kept`, words begin, and the characters from which to which they go, as far as they were
    kept. A word is what is looked for word pieces in as one."""
    words, offsets = encoding.word_ids, encoding.offsets
    firsts: list[int] = []
    spans: list[tuple[int, int]] = []
    before: int | None = None
    for place, position in enumerate(kept):
        word = words[position]
        if word is not None:
            begin, end = offsets[position]
            if word != before:
                firsts.append(place)
                spans.append((begin, end))
            else:
                spans[-1] = spans[-1][0], end
        before = word
    return firsts, spans


def _with_prompt(backend: RustTokenizer, ids: list[int]) -> RustTokenizer:
    """The same tokenizer with `ids` in front of every text, as one more of the special tokens that it adds.

    Like those they stay where a text is cut, and travel with the tokenizer to other processes.
    """
    content: dict[str, Any] = json.loads(backend.to_str())
    own = content["post_processor"]
    steps = [] if own is None else own["processors"] if own["type"] == "Sequence" else [own]
    unknown = [step["type"] for step in steps if step["type"] not in ("ByteLevel", "TemplateProcessing")]
    if unknown:
        raise ValueError(f"a soft prompt cannot stand in front of the special tokens of a {unknown[0]} tokenizer")
    templates = [step for step in steps if step["type"] == "TemplateProcessing"]
    if not templates:
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        template = {"type": "TemplateProcessing", "single": [first], "pair": [first, second], "special_tokens": {}}
        steps, templates = [*steps, template], [template]
    for form in ("single", "pair"):
        templates[0][form].insert(0, {"SpecialToken": {"id": _PROMPT, "type_id": 0}})
    templates[0]["special_tokens"][_PROMPT] = {"id": _PROMPT, "ids": ids, "tokens": [_PROMPT] * len(ids)}
    content["post_processor"] = {"type": "Sequence", "processors": steps}
    return RustTokenizer.from_str(json.dumps(content))


def _share(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each of two texts keeps when they may have `room` together."""
    if first + second <= room:
        return first, second
    if min(first, second) <= room // 2:
        short = min(first, second)
        return (short, room - short) if first <= second else (room - short, short)
    half = room // 2
    return (half, room - half) if first <= second else (room - half, half)
