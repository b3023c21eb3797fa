"""A process that speaks HTTP and tokenizes: `python -m server.frontend FOLDER`, started by the supervisor."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from server import __version__
from server.child import DRAIN, END, ENGINE, SupervisorLine
from server.garbage import settle
from server.metrics import Metrics
from server.ports import listen_all
from server.remote import Remote
from server.service import Service
from server.web import DrainingServer


class FrontEndServer(DrainingServer):
    """Drains and ends when the supervisor says so, whatever signals the process gets.

    It goes on refusing work until every other front end is idle too: connections that the system gave to one that has
    ended would be reset, where a 503 is due.
    """

    def __init__(self, service: Service, line: SupervisorLine) -> None:
        super().__init__(service, lambda: line.report(ready=service.model.facts.name))
        self._service = service
        self._line = line
        self._told_idle = False
        self._may_end = False
        line.listen({DRAIN: self.drain, END: self._end})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        pass

    def drained(self) -> bool:
        if self._service.idle and not self._told_idle:
            self._told_idle = True
            self._line.report(idle=True)
        return self._may_end

    def _end(self) -> None:
        self._may_end = True


def main() -> None:
    folder = Path(sys.argv[1])
    line = SupervisorLine(folder)
    service = Service(line.settings, Remote(folder / ENGINE), Metrics(__version__, folder))
    server = FrontEndServer(service, line)
    settle()
    server.run(listen_all(line.settings, shared=True))
    if service.failure is not None:
        raise service.failure


if __name__ == "__main__":
    main()
