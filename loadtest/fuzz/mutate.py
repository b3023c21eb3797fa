"""Structure-aware mutation: JSON stays JSON, and a safetensors file keeps a header that can be parsed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 64, 10_000, 2**31, 2**63, 10**30, -(10**30)),
    *(0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "\0", "\n", "\ud800", "..", "../..", "/", "/etc/passwd", "a/b", "C:\\", "x" * 5000, "😀", "{}"),
    *([], {}, [[]], [None], [0, 0], {"": ""}, {"a": {"a": {}}}),
    # The key and the value by which a folder asks for code of its own to be run.
    *("auto_map", {"AutoConfig": "code.Config", "AutoTokenizer": ["code.Slow", "code.Fast"]}),
    # What such files say elsewhere.
    *("F32", "F16", "BF16", "F64", "I64", "I8", "BOOL", "F8_E4M3", "U64", "bert", "llama", "t5", "mistral", "electra"),
    *("early-exit", "revmux", "datamux", "mux-plm", "token-pool", "learnt", "top-probability", "openvino", "float32"),
    *("regression", "multi_label_classification", "token_classification", "single_label_classification"),
    *("n1-l2", "n2-l2-u2.3", "n9999-l0-u1"),
)

_HEADER = 8
"""Bytes of the length, little-endian, in front of a safetensors file's header."""


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """The JSON `content` with one to three of its values changed, dropped, doubled or moved. Raises `ValueError` where
    it is none."""
    whole = [json.loads(content)]
    for _ in range(draw.randint(1, 3)):
        places = _places(whole)
        place, key = draw.choice(places)
        other, other_key = draw.choice(places)
        kind = draw.random()
        if kind < 0.45:
            place[key] = draw.choice(ODD)
        elif kind < 0.6:
            # Through bytes, so that no part is in two places at once.
            place[key] = json.loads(json.dumps(other[other_key]))
        elif kind < 0.75 and isinstance(place[key], int | float):
            place[key] = draw.choice(
                [place[key] + 1, place[key] - 1, -place[key], place[key] * 2, place[key] / 2, str(place[key])]
            )
        elif kind < 0.85 and place is not whole:
            del place[key]
        elif isinstance(place, dict):
            place[draw.choice([str(odd) for odd in ODD])] = place.pop(key)
        else:
            place.insert(key, json.loads(json.dumps(place[key])))
    return json.dumps(whole[0]).encode()


def mutate_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file with another header, whose length is right. Raises `ValueError` where it has none."""
    end = _HEADER + int.from_bytes(content[:_HEADER], "little")
    header = mutate_json(content[_HEADER:end], draw)
    return len(header).to_bytes(_HEADER, "little") + header + content[end:]


def mutator_of(name: str) -> Callable[[bytes, random.Random], bytes] | None:
    """What mutates a file of this name; None where there is nothing better than bytes."""
    if name.endswith(".json"):
        return mutate_json
    return mutate_safetensors if name.endswith(".safetensors") else None


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every value inside of `content`, as what holds it and its key there."""
    found = []
    waiting = [content]
    for part in waiting:
        keys = list(part) if isinstance(part, dict) else range(len(part))
        for key in keys:
            found.append((part, key))
            if isinstance(part[key], dict | list):
                waiting.append(part[key])
    return found
