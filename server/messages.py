"""What front ends and the engine tell each other, and how it stands in a stream: msgpack, each behind its length."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import Self

import msgspec

from revmux_core.plan import Tokens
from server.answers import Terms
from server.facts import Facts

MAX_FRAME = 64 * 2**20
"""Bytes of a message, at most: the largest tokenizers take some 30 MiB, and the largest requests less."""

_INT = "I"
_LENGTH = struct.Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """`Tokens` without their spans in the text: each list as the bytes of its numbers, of which the engine makes no
    object each."""

    ids: bytes
    type_ids: bytes | None
    words: bytes | None

    @classmethod
    def of(cls, tokens: Tokens) -> Self:
        type_ids, words = (None if own is None else _bytes(own) for own in (tokens.type_ids, tokens.words))
        return cls(_bytes(tokens.ids), type_ids, words)

    def tokens(self) -> Tokens:
        type_ids, words = (None if own is None else array(_INT, own) for own in (self.type_ids, self.words))
        return Tokens(array(_INT, self.ids), type_ids, words)


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A request: its samples and its terms. `number` is the front end's own."""

    number: int
    samples: list[Sample]
    terms: Terms


class Withdraw(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Nobody waits for request `number` any more."""

    number: int


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The first that a front end hears: the model is warm, and this is what stands between texts and its tokens."""

    facts: Facts
    tokenizer: str
    segmented: bool
    unknown_id: int | None


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The answers to request `number`: logits, probabilities, the point's name, and whether it was escalated to."""

    number: int
    items: list[tuple[list[float], list[float], str, bool]]
    queue_seconds: float
    inference_seconds: float


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The queue is full or, for an answer in time, `too_long`: request `number` may come again in `seconds`."""

    number: int
    seconds: int
    too_long: bool


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The model failed on request `number`."""

    number: int


class Renewed(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Another model answers from now on: to be asked over a new connection. This one lasts for what it was asked."""


ToEngine = Submit | Withdraw
ToFrontEnd = Hello | Answered | Refused | Failed | Renewed


def _bytes(numbers: Sequence[int]) -> bytes:
    return array(_INT, numbers).tobytes()


class FrameError(ValueError):
    """A message that is too large for the stream."""


def append_frame(stream: bytearray, message: ToEngine | ToFrontEnd) -> None:
    """Adds `message` to the end of `stream`. Raises `FrameError`, and adds nothing, where it is too large."""
    start = len(stream)
    stream += bytes(_LENGTH.size)
    _ENCODER.encode_into(message, stream, -1)
    length = len(stream) - start - _LENGTH.size
    if length > MAX_FRAME:
        del stream[start:]
        raise FrameError(f"a message of {length} bytes is larger than {MAX_FRAME}")
    _LENGTH.pack_into(stream, start, length)


class FrameReader:
    """Cuts a stream into messages, whatever the pieces that it arrives in."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, still encoded. Raises `FrameError` for one that is too large."""
        stream: bytes | bytearray = data
        if self._held:
            # Not in new bytes: a long message comes in many pieces.
            self._held += data
            stream = self._held
        frames = []
        start = 0
        while len(stream) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(stream, start)
            if length > MAX_FRAME:
                raise FrameError(f"a message of {length} bytes is larger than {MAX_FRAME}")
            stop = start + _LENGTH.size + length
            if len(stream) < stop:
                break
            frames.append(bytes(stream[start + _LENGTH.size : stop]))
            start = stop
        if stream is data:
            self._held += data[start:]
        else:
            del self._held[:start]
        return frames
