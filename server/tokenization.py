"""A request's texts to tokens: where that runs, and what is done about texts beyond the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from revmux_core.plan import Tokens
from revmux_core.tokenization import EmptyTextError, PairError, Text, TextTokenizer
from server.errors import EmptyInput, InvalidRequest, QueueFull

INLINE_CHARACTERS = 8192
"""Characters up to which a request is tokenized on the event loop: milliseconds at most, and a hand-over to a
thread costs more than a sentence."""

MAX_LARGE_REQUESTS = 16
"""Larger requests that may be tokenized or wait for it at a time, as each holds memory many times its body."""


class RequestTokenizer:
    """Tokenizes requests while the device computes.

    Large ones go to a thread, so that megabytes of text delay nobody else's sentence.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="revmux-tokenizer")
        self._large: set[Future[list[Tokens]]] = set()

    @property
    def max_tokens(self) -> int:
        return self._tokenizer.max_tokens

    def unknown(self, tokens: Tokens) -> int:
        """How many tokens stand for something that the vocabulary lacks."""
        return self._tokenizer.unknown(tokens)

    def is_quick(self, texts: Sequence[Text]) -> bool:
        """Whether `texts` may be tokenized where they are."""
        return sum(len(text) + len(pair or "") for text, pair in texts) <= INLINE_CHARACTERS

    def tokenize(self, texts: Sequence[Text], max_tokens: int | None, truncate: bool) -> list[Tokens]:
        """Tokens of every text, at most `max_tokens` each (None: the model's limit).

        Raises `InvalidRequest` for a longer text where `truncate` is false, for a `max_tokens` beyond the model's or
        one that leaves no room for text, for a text of which the tokenizer leaves nothing, or for a pair where words
        are answered.
        """
        limit = self.max_tokens if max_tokens is None else max_tokens
        if limit > self.max_tokens:
            raise InvalidRequest(
                f"`truncate_prompt_tokens` is {limit}, but the model takes at most {self.max_tokens} tokens: "
                "lower it, or send -1 for the model's limit",
                param="truncate_prompt_tokens",
            )
        least = max((self._tokenizer.least_tokens(text) for text in texts), default=0)
        if limit < least:
            raise InvalidRequest(
                f"`truncate_prompt_tokens` is {limit}, which the tokens that every text gets leave nothing of: send "
                f"{least} or more",
                param="truncate_prompt_tokens",
            )
        try:
            encodings = self._tokenizer.encode(texts)
        except EmptyTextError as error:
            raise EmptyInput(str(error)) from error
        except PairError as error:
            raise InvalidRequest(f"{error}: leave out `text_pair`", param="text_pair") from None
        if not truncate:
            for item, encoding in enumerate(encodings):
                if len(encoding) > limit:
                    raise InvalidRequest(
                        f"input {item} has {len(encoding)} tokens, more than {limit}: shorten it, or set `truncate` "
                        "to true",
                        param="truncate",
                    )
        return [self._tokenizer.cut(encoding, limit) for encoding in encodings]

    async def tokenize_large(self, texts: Sequence[Text], max_tokens: int | None, truncate: bool) -> list[Tokens]:
        """The same in the thread. Raises `QueueFull` when too many large requests are being tokenized."""
        # Futures, not a counter: a request that expires does not stop the thread.
        self._large = {work for work in self._large if not work.done()}
        if len(self._large) >= MAX_LARGE_REQUESTS:
            raise QueueFull(1)
        work = self._thread.submit(self.tokenize, texts, max_tokens, truncate)
        self._large.add(work)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Ends the thread once what it was given is done: nobody may wait for ever."""
        self._thread.shutdown(wait=False)
