"""A server's wire format: how one text is asked about, and where its answer has the label."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Reading(NamedTuple):
    """What an answer says; `point` and `escalated` are there in our own format only."""

    label: str
    point: str | None = None
    escalated: bool = False


@dataclass(frozen=True, slots=True)
class Wire:
    """`body` makes the JSON of a POST to `path` about a text (ours: or a list of them); `read` takes the parsed JSON of
    its answer, of a list the first text's.

    `read` raises `KeyError`, `IndexError`, `TypeError` or `ValueError` for an answer in another format.
    """

    path: str
    body: Callable[[Any], object]
    read: Callable[[Any], Reading]

    def request(self, host: str, port: int, text: str | list[str], api_key: str | None = None) -> bytes:
        """The whole HTTP/1.1 request."""
        body = json.dumps(self.body(text)).encode()
        head = (
            f"POST {self.path} HTTP/1.1",
            f"host: {host}:{port}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *([] if api_key is None else [f"authorization: Bearer {api_key}"]),
        )
        return "\r\n".join((*head, "", "")).encode() + body


def _read_classify(answer: Any) -> Reading:
    item = answer["data"][0]
    return Reading(item["label"], item.get("point"), item.get("escalated", False))


# Ours, and vLLM's.
CLASSIFY = Wire("/classify", lambda text: {"input": text}, _read_classify)
