"""Texts whose answers are known: one that differs is another request's."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.connection import Connection
from loadtest.fuzz.bodies import Request
from loadtest.servers import HOST

WORDS = ("a", "the", "good", "bad", "film", "is", "not", "very", *(f"word{number}" for number in range(30)))
"""Most tokenizers tell these apart, and so does that of the tests' tiny models."""

ROUNDING = 1e-3
"""How far numbers of one text's answers may lie apart: float32 rounds other batches otherwise, by some 1e-5."""
DISTINCT = 20 * ROUNDING

_VARYING = ("index", "mux_width", "point", "escalated")


@dataclass(frozen=True, slots=True)
class Probe:
    """A request for the plain model's answers to `texts`, and those answers."""

    request: Request
    answers: list[dict[str, Any]]

    def fits(self, answer: Any) -> bool:
        """Whether the parsed JSON of an answer says the same, in the same order."""
        found = answer["data"]
        return len(found) == len(self.answers) and all(
            item["index"] == index and _same(_told(item), expected, ROUNDING)
            for index, (item, expected) in enumerate(zip(found, self.answers, strict=True))
        )


async def learn_probes(port: int, count: int, seed: int = 0) -> list[Probe]:
    """`count` probes, half of one text and half of several, whose texts were each asked for alone on a server that had
    nothing else to do. Answers of any two texts differ."""
    draw = random.Random(seed)
    known: dict[str, dict[str, Any]] = {}
    connection = await Connection.open(HOST, port)
    while len(known) < count:
        text = " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))
        answer = await connection.exchange(encode(_ask([text]), port, b"probe"))
        if answer.status != 200:
            raise ValueError(f"the server answers {text!r} with {answer.status}: {answer.body[:200]!r}")
        told = _told(json.loads(answer.body)["data"][0])
        if not any(_same(told, other, DISTINCT) for other in known.values()):
            known[text] = told
    connection.close()
    chosen = [[text] for text in known][: count // 2]
    chosen += [draw.sample(list(known), draw.randint(2, min(8, count))) for _ in range(count - len(chosen))]
    return [Probe(_ask(texts), [known[text] for text in texts]) for texts in chosen]


def encode(request: Request, port: int, request_id: bytes | None) -> bytes:
    """The whole HTTP/1.1 request, with this `x-request-id` where there is one."""
    head = [b"POST %b HTTP/1.1" % request.path.encode(), b"host: %b:%d" % (HOST.encode(), port)]
    head += [b"%b: %b" % header for header in request.headers]
    if request_id is not None:
        head.append(b"x-request-id: %b" % request_id)
    body = request.body
    if request.chunked:
        head.append(b"transfer-encoding: chunked")
        size = max(len(body) // 5, 1)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    else:
        head.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*head, b"", b""]) + body


def _ask(texts: Sequence[str]) -> Request:
    body = {"input": list(texts), "quality": "exact", "use_activation": False}
    return Request("/classify", ((b"content-type", b"application/json"),), json.dumps(body).encode(), False)


def _told(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in _VARYING}


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name], tolerance) for name, value in one.items())
    return bool(one == other)
