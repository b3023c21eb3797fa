"""The supervisor, as the processes that it started see it: standard input and output are the line to it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from server.logs import set_up_logs
from server.settings import Settings
from server.traces import set_up_traces

LENGTH = struct.Struct(">I")
DRAIN, END, RELOAD = b"d", b"e", b"r"
"""What a process can be told: to refuse new work and report when it is idle; to end; to read the bundle again."""

ENGINE = "engine"
"""The engine's socket, in the server's folder."""


def handover(settings: Settings) -> bytes:
    """What a process is sent first. Not by arguments or the environment, which others on the machine can read."""
    pickled = pickle.dumps(settings)
    return LENGTH.pack(len(pickled)) + pickled


class SupervisorLine:
    """The line to the process that started this one.

    Only the supervisor says when to stop: a signal to the whole group must not end an engine that front ends still
    wait for. Where the supervisor itself ends, so does this process, and at once.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is the server's own, which nobody else could remove after the supervisor was killed."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._folder = folder
        # What libraries print must not get between the reports.
        self._reports = os.dup(1)
        os.dup2(2, 1)
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        self.settings: Settings = pickle.loads(self._read(length))
        set_up_logs(self.settings)
        set_up_traces()

    def listen(self, obey: Mapping[bytes, Callable[[], object]]) -> None:
        """From now on calls, in a thread, what is to be done when the supervisor says so; and ends with it."""
        threading.Thread(target=self._listen, args=(obey,), name="revmux-supervisor", daemon=True).start()

    def report(self, **news: object) -> None:
        """Tells the supervisor of what happened, as one line of JSON."""
        os.write(self._reports, json.dumps(news).encode() + b"\n")

    def _listen(self, obey: Mapping[bytes, Callable[[], object]]) -> None:
        while told := os.read(0, 1):
            obey[told]()
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = os.read(0, size - len(data))
            if not piece:
                os._exit(1)
            data += piece
        return data
