"""The process that holds the model: `python -m server.engine_process FOLDER LISTENER`, started by the supervisor."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from revmux_core.errors import RevmuxError
from revmux_core.plan import Tokens
from server import __version__
from server.answers import Answers, Terms
from server.batcher import Batcher, Pending
from server.channel import Channel
from server.child import END, SupervisorLine
from server.errors import DeviceLost, QueueFull, QueueTooLong
from server.loading import bundle_reader, load_model
from server.messages import Answered, Failed, FrameError, Hello, Refused, Submit, ToEngine, Withdraw
from server.metrics import Metrics

logger = logging.getLogger(__name__)


class FrontEnd(Channel[ToEngine]):
    """A front end that is connected. What it asked for is withdrawn when it is gone."""

    def __init__(self, batcher: Batcher, hello: Hello) -> None:
        super().__init__(msgspec.msgpack.Decoder(ToEngine))
        self._batcher = batcher
        self._hello = hello
        self._pending: dict[int, Pending] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.send(self._hello)

    def heard(self, message: ToEngine) -> None:
        if isinstance(message, Withdraw):
            self._withdraw(message.number)
        else:
            self._submit(message)

    def lost(self) -> None:
        for number in list(self._pending):
            self._withdraw(number)

    def pause_writing(self) -> None:
        # Who does not read answers may not ask for more; the others do not wait for that.
        super().pause_writing()
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.transport is not None:
            self.transport.resume_reading()

    def _submit(self, message: Submit) -> None:
        samples = [Tokens(*fields) for fields in message.samples]
        terms = Terms(
            message.max_width, message.priority, message.guaranteed, message.tenant, message.timeout, message.trace
        )
        try:
            pending = self._batcher.submit(samples, terms)
        except QueueFull as error:
            self.send(Refused(message.number, error.seconds, isinstance(error, QueueTooLong)))
            return
        self._pending[message.number] = pending
        pending.answers.add_done_callback(partial(self._answer, message.number))

    def _withdraw(self, number: int) -> None:
        pending = self._pending.pop(number, None)
        if pending is not None:
            pending.answers.cancel()
            self._batcher.withdraw(pending)

    def _answer(self, number: int, done: asyncio.Future[Answers]) -> None:
        if self._pending.pop(number, None) is None:
            return
        error = done.exception()
        if error is not None:
            # Where the device is lost this process ends, and the front end words that.
            if not isinstance(error, DeviceLost):
                self.send(Failed(number))
            return
        answers = done.result()
        items = [(answer.logits, answer.probs, answer.point.name, answer.escalated) for answer in answers.items]
        try:
            self.send(Answered(number, items, answers.queue_seconds, answers.inference_seconds))
        except FrameError:
            logger.exception("answers to %d samples are lost", len(items))
            self.send(Failed(number))


async def run(line: SupervisorLine, folder: Path, listener: socket.socket) -> int:
    """Loads the model and answers front ends until the supervisor says that none is left; the exit status."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    line.listen({END: lambda: loop.call_soon_threadsafe(stopping.set)})
    try:
        metrics = Metrics(__version__, folder)
        loaded = await asyncio.to_thread(lambda: load_model(line.settings, bundle_reader(line.settings), metrics))
    except Exception as error:
        if not isinstance(error, RevmuxError):
            logger.exception("loading failed")
        line.report(failed=str(error), foreseeable=isinstance(error, RevmuxError))
        return 1
    # The model lasts: what collects garbage need not look at all of it again and again.
    gc.collect()
    gc.freeze()
    tokenizer = loaded.tokenizer
    hello = Hello(loaded.facts, tokenizer.to_json(), tokenizer.segmented, tokenizer.unknown_id)
    server = await loop.create_unix_server(lambda: FrontEnd(loaded.batcher, hello), sock=listener)
    # The supervisor starts another process, which gets a device of its own.
    loaded.batcher.lost.add_done_callback(lambda _: stopping.set())
    line.report(ready=loaded.facts.name)
    await stopping.wait()
    server.close()
    await loaded.close()
    return 1 if loaded.batcher.lost.done() else 0


def main() -> None:
    folder = Path(sys.argv[1])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(run(SupervisorLine(folder), folder, socket.socket(fileno=int(sys.argv[2]))))
    sys.exit(status)


if __name__ == "__main__":
    main()
