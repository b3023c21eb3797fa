"""One end of the stream between a front end and the engine; when it closes, the other side is gone, and known to be."""

from __future__ import annotations

import asyncio
import logging
from typing import Generic, TypeVar, cast

import msgspec

from server.messages import FrameError, FrameReader, ToEngine, ToFrontEnd, append_frame

logger = logging.getLogger(__name__)

HIGH_WATER = 8 * 2**20
"""Bytes that may wait to be sent before the other side counts as slow."""

Incoming = TypeVar("Incoming")


class Channel(asyncio.Protocol, Generic[Incoming]):
    """Sends messages and hears those that `decoder` knows.

    What is sent in one turn of the event loop goes out in one write.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[Incoming]) -> None:
        self._decoder = decoder
        self._reader = FrameReader()
        self._unsent = bytearray()
        self._flush_due = False
        self.transport: asyncio.Transport | None = None
        self.slow = False

    def send(self, message: ToEngine | ToFrontEnd) -> None:
        """Sends `message`, or drops it where the other side is gone. Raises `FrameError` for one that is too large."""
        if self.transport is None:
            return
        append_frame(self._unsent, message)
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def heard(self, message: Incoming) -> None:
        """Called with every message."""
        raise NotImplementedError

    def lost(self) -> None:
        """Called once, when the other side is gone."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self.heard(self._decoder.decode(frame))
        except (FrameError, msgspec.MsgspecError):
            logger.exception("the other process sent what is no message")
            if self.transport is not None:
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.lost()

    def pause_writing(self) -> None:
        self.slow = True

    def resume_writing(self) -> None:
        self.slow = False

    def _flush(self) -> None:
        self._flush_due = False
        unsent, self._unsent = self._unsent, bytearray()
        if self.transport is not None:
            self.transport.write(unsent)
