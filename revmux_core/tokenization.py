"""Texts to tokens, once per sample."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from revmux_core.plan import Tokens

Text = tuple[str, str | None]
"""One text, or the two texts of a pair."""


class Tokenizer:
    """The backbone's own fast tokenizer; safe to call from several threads.

    It cuts over-long texts itself, since the Rust tokenizer holds its truncation length as shared state: setting it
    for one caller would change, or panic under, another.

    Raises `ValueError` for a tokenizer without a fast (Rust) implementation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} has no fast implementation, which serving needs")
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._segmented = "token_type_ids" in tokenizer.model_input_names
        self.pad_id = int(tokenizer.pad_token_id)
        self.mask_id: int | None = tokenizer.mask_token_id
        self.special_ids: list[int] = tokenizer.all_special_ids
        self.max_tokens = max_tokens

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """Encodes `(text, pair or None)` items whole, special tokens included."""
        return self._backend.encode_batch_fast([text if pair is None else (text, pair) for text, pair in texts])

    def cut(self, encoding: Encoding, max_tokens: int) -> Tokens:
        """The encoding as tokens, at most `max_tokens` of them; special tokens always stay.

        Where two texts are too long together, the longer gives way first, then both share evenly: the rule that
        Hugging Face calls `longest_first`.
        """
        ids, type_ids = encoding.ids, encoding.type_ids
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
        return Tokens(ids, type_ids if self._segmented else None)

    def __call__(self, texts: Sequence[Text]) -> list[Tokens]:
        """Encodes and cuts to the backbone's limit."""
        return [self.cut(encoding, self.max_tokens) for encoding in self.encode(texts)]


def _share(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each of two texts keeps when they may have `room` together."""
    if first + second <= room:
        return first, second
    if min(first, second) <= room // 2:
        short = min(first, second)
        return (short, room - short) if first <= second else (room - short, short)
    half = room // 2
    return (half, room - half) if first <= second else (room - half, half)
