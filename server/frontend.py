"""A process that speaks HTTP and tokenizes: `python -m server.frontend FOLDER`, started by the supervisor."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from server import __version__
from server.child import ENGINE, SupervisorLine
from server.metrics import Metrics
from server.remote import Remote
from server.service import Service
from server.web import DrainingServer, listen


class FrontEndServer(DrainingServer):
    """Drains when the supervisor says so, whatever signals the process gets."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        pass


def main() -> None:
    folder = Path(sys.argv[1])
    line = SupervisorLine(folder)
    service = Service(line.settings, Remote(folder / ENGINE), Metrics(__version__, folder))
    server = FrontEndServer(service, lambda: line.report(ready=service.model.facts.name))
    line.listen(server.drain)
    server.run([listen(line.settings, shared=True)])
    if service.failure is not None:
        raise service.failure


if __name__ == "__main__":
    main()
