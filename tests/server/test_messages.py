"""Messages arrive whole and in order, in whatever pieces the stream arrives."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revmux_core.plan import Tokens
from server import messages
from server.answers import Terms
from server.messages import (
    Answered,
    Failed,
    FrameError,
    FrameReader,
    Refused,
    Renewed,
    Sample,
    Submit,
    ToEngine,
    Withdraw,
    append_frame,
)

numbers = st.integers(0, 2**31)
scores = st.lists(st.floats(allow_nan=False, width=32), max_size=4)
ids = st.lists(st.integers(0, 2**31), max_size=5)
samples = st.builds(Tokens, ids, st.none() | ids, st.none() | ids).map(Sample.of)
message = st.one_of(
    st.builds(
        Submit,
        numbers,
        st.lists(samples, max_size=4),
        st.builds(
            Terms,
            numbers,
            st.integers(-(2**31), 2**31),
            st.booleans(),
            st.text(max_size=5),
            st.floats(0),
            st.none() | st.text(max_size=5),
        ),
    ),
    st.builds(Withdraw, numbers),
    st.builds(
        Answered,
        numbers,
        st.lists(st.tuples(scores, scores, st.text(max_size=5), st.booleans()), max_size=4),
        st.floats(0, 10),
        st.floats(0, 10),
    ),
    st.builds(Refused, numbers, numbers, st.booleans()),
    st.builds(Failed, numbers),
    st.builds(Renewed),
)


@given(st.lists(message, max_size=10), st.data())
def test_messages_survive_any_pieces(sent: list, data: st.DataObject) -> None:
    stream = bytearray()
    for each in sent:
        append_frame(stream, each)
    decoder = msgspec.msgpack.Decoder(ToEngine | messages.ToFrontEnd)
    reader = FrameReader()
    heard = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        heard += [decoder.decode(frame) for frame in reader.feed(bytes(stream[:size]))]
        del stream[:size]
    assert heard == sent


@given(st.builds(Tokens, ids, st.none() | ids, st.none() | ids))
def test_samples_arrive_with_the_numbers_that_they_had(sent: Tokens) -> None:
    arrived = Sample.of(sent).tokens()
    for own, before in zip(msgspec.structs.astuple(arrived), msgspec.structs.astuple(sent), strict=True):
        assert before is None if own is None else list(own) == before


def test_what_is_too_large_is_neither_sent_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = bytearray()
    append_frame(stream, Withdraw(1))
    whole = bytes(stream)
    monkeypatch.setattr(messages, "MAX_FRAME", 20)
    with pytest.raises(FrameError):
        append_frame(stream, Submit(2, [Sample.of(Tokens([7] * 50))], Terms(1)))
    assert stream == whole
    reader = FrameReader()
    assert len(reader.feed(whole)) == 1
    with pytest.raises(FrameError):
        reader.feed((21).to_bytes(4, "big"))
