"""What the server writes to standard error: lines for people or for machines, and no client's text in either."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from server.settings import Settings

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being answered, in whose context it is set; None where a line is about no single one."""


class Unquoted(Exception):
    """Stands for an exception in the logs, by its type and where it was raised, without what it says."""


def unquoted(error: BaseException) -> Exception:
    """`error` as it may be logged where what it says could quote a client's text."""
    kind = type(error)
    return Unquoted(f"{kind.__module__}.{kind.__qualname__}").with_traceback(error.__traceback__)


class TextFormatter(logging.Formatter):
    """A line for people, with the request's id at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line, request_id = super().formatMessage(record), REQUEST_ID.get()
        return line if request_id is None else f"{line} [request {request_id}]"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (ISO 8601, UTC), `level`, `logger`, `message` and, where there is one,
    `request_id` and `exception`, the traceback as text."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = REQUEST_ID.get()
        if request_id is not None:
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logs(settings: Settings) -> None:
    """Has all of this process's logs, and Python's warnings, written as `settings` say."""
    # Not `sys.stderr`: a replica of Ray Serve has made lines of Serve's own log of what is written there.
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    logging.captureWarnings(True)
