"""The process that holds the model: `python -m server.engine_process FOLDER LISTENER`, started by the supervisor."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop

from revmux_core.errors import RevmuxError
from server import __version__
from server.answers import Answers
from server.channel import Channel
from server.child import END, RELOAD, SupervisorLine
from server.errors import DeviceLost, QueueFull, QueueTooLong
from server.garbage import relax
from server.messages import Answered, Failed, FrameError, Hello, Refused, Renewed, Submit, ToEngine, Withdraw
from server.metrics import Metrics

if TYPE_CHECKING:
    from server.loading import Loaded
    from server.pending import Pending

logger = logging.getLogger(__name__)


class Served:
    """A model, and the connections over which front ends ask it."""

    def __init__(self, loaded: Loaded) -> None:
        self.batcher = loaded.batcher
        tokenizer = loaded.tokenizer
        self.hello = Hello(loaded.facts, tokenizer.to_json(), tokenizer.segmented, tokenizer.unknown_id)
        self._front_ends: set[FrontEnd] = set()
        self._left = asyncio.Event()

    def join(self, front_end: FrontEnd) -> None:
        self._front_ends.add(front_end)
        front_end.send(self.hello)

    def leave(self, front_end: FrontEnd) -> None:
        self._front_ends.discard(front_end)
        self._left.set()

    async def replaced(self) -> None:
        """Tells all front ends that there is another model, and returns once none asks this one any more."""
        for front_end in self._front_ends:
            front_end.send(Renewed())
        while self._front_ends:
            self._left.clear()
            await self._left.wait()


class Switch:
    """Gives every front end that connects the model that is served now."""

    def __init__(self) -> None:
        self._served: Served | None = None

    @property
    def served(self) -> Served:
        assert self._served is not None
        return self._served

    async def to(self, loaded: Loaded) -> None:
        before, self._served = self._served, Served(loaded)
        if before is not None:
            await before.replaced()


class FrontEnd(Channel[ToEngine]):
    """A front end that is connected, to one model. What it asked for is withdrawn when it is gone."""

    def __init__(self, switch: Switch) -> None:
        super().__init__(msgspec.msgpack.Decoder(ToEngine))
        self._switch = switch
        self._pending: dict[int, Pending[Reply]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Not when it was accepted, a turn of the event loop before: that model may have been replaced since.
        self._served = self._switch.served
        self._served.join(self)

    def heard(self, message: ToEngine) -> None:
        if isinstance(message, Withdraw):
            self._withdraw(message.number)
        else:
            self._submit(message)

    def lost(self) -> None:
        for number in list(self._pending):
            self._withdraw(number)
        self._served.leave(self)

    def pause_writing(self) -> None:
        # Who does not read answers may not ask for more; the others do not wait for that.
        super().pause_writing()
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.transport is not None:
            self.transport.resume_reading()

    def ended(self, number: int, message: Answered | Failed | None) -> None:
        """Sends what request `number` is told in the end, if anything."""
        del self._pending[number]
        if message is None:
            return
        try:
            self.send(message)
        except FrameError:
            logger.exception("the answers to a request are lost")
            self.send(Failed(number))

    def _submit(self, message: Submit) -> None:
        samples = [sample.tokens() for sample in message.samples]
        reply = Reply(self, message.number)
        try:
            self._pending[message.number] = self._served.batcher.admit(samples, message.terms, reply)
        except QueueFull as error:
            self.send(Refused(message.number, error.seconds, isinstance(error, QueueTooLong)))

    def _withdraw(self, number: int) -> None:
        pending = self._pending.pop(number, None)
        if pending is not None:
            pending.answers.withdraw()
            self._served.batcher.withdraw(pending)


class Reply:
    """Tells `front_end` what becomes of its request `number`, unless that is withdrawn before: the promise that the
    batcher is given. A future would do the same with a callback, and a turn of the event loop, for every request."""

    __slots__ = ("_front_end", "_number")

    def __init__(self, front_end: FrontEnd, number: int) -> None:
        self._front_end: FrontEnd | None = front_end
        self._number = number

    def done(self) -> bool:
        return self._front_end is None

    def withdraw(self) -> None:
        self._front_end = None

    def set_result(self, answers: Answers) -> None:
        items = [(answer.logits, answer.probs, answer.point.name, answer.escalated) for answer in answers.items]
        self._end(Answered(self._number, items, answers.queue_seconds, answers.inference_seconds))

    def set_exception(self, error: Exception) -> None:
        # Where the device is lost this process ends, and the front end words that.
        self._end(None if isinstance(error, DeviceLost) else Failed(self._number))

    def _end(self, message: Answered | Failed | None) -> None:
        front_end, self._front_end = self._front_end, None
        assert front_end is not None
        front_end.ended(self._number, message)


async def run(line: SupervisorLine, folder: Path, listener: socket.socket) -> int:
    """Loads the model and answers front ends until the supervisor says that none is left; the exit status."""
    from server.loading import bundle_reader
    from server.swap import HotSwap

    loop, stopping, switch = asyncio.get_running_loop(), asyncio.Event(), Switch()
    try:
        metrics = Metrics(__version__, folder)
        swap = HotSwap(line.settings, lambda: bundle_reader(line.settings)(), metrics, switch.to, stopping.set)
        line.listen({END: lambda: loop.call_soon_threadsafe(stopping.set), RELOAD: swap.reload})
        await swap.start()
    except Exception as error:
        if not isinstance(error, RevmuxError):
            logger.exception("loading failed")
        line.report(failed=str(error), foreseeable=isinstance(error, RevmuxError))
        return 1
    server = await loop.create_unix_server(lambda: FrontEnd(switch), sock=listener)
    facts = switch.served.hello.facts
    line.report(ready=facts.name, device=facts.device)
    await stopping.wait()
    server.close()
    await swap.close()
    # The supervisor starts another process, which gets a device of its own.
    return 1 if swap.lost else 0


def main() -> None:
    relax()
    folder = Path(sys.argv[1])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(run(SupervisorLine(folder), folder, socket.socket(fileno=int(sys.argv[2]))))
    sys.exit(status)


if __name__ == "__main__":
    main()
