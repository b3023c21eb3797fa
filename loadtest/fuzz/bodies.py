"""Requests that no client should send, and some that it may: made by hypothesis, as bytes.

All of Unicode is in them (lone surrogates as JSON's escapes or as broken UTF-8, controls, text from right to left,
emoji, piles of combining marks, words of a megabyte), and what JSON can be bent to: literals that are none, numbers of
thousands of digits, deep nesting, wrong types, unknown and repeated fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

CLASSIFY_PATHS = ("/classify", "/v1/classify")
PREDICT_PATH = "/predict"

LONGEST_WORD = 2**20
"""Characters; of four bytes each they are more than the 4 MiB that a server takes by default."""


@dataclass(frozen=True, slots=True)
class Request:
    """A POST: `headers` are beside those that every request has; a `chunked` body goes out in pieces."""

    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    chunked: bool


def generate(count: int, seed: int) -> list[Request]:
    """`count` requests at most, the same for the same seed."""
    found: list[Request] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(_requests())
    def collect(request: Request) -> None:
        found.append(request)

    collect()
    return found


def _ranges(*ranges: tuple[int, int]) -> st.SearchStrategy[str]:
    return st.one_of([st.characters(min_codepoint=low, max_codepoint=high) for low, high in ranges])


def _texts() -> st.SearchStrategy[str]:
    controls = st.characters(categories=["Cc", "Cf", "Co", "Cn"])
    # Hebrew to Thaana, presentation forms, and the marks and overrides of direction.
    right_to_left = _ranges((0x590, 0x7BF), (0xFB1D, 0xFDFF), (0x200E, 0x200F), (0x202A, 0x202E), (0x2066, 0x2069))
    # Pictographs, skin tones, regional indicators, the joiner, the variation selector, tags.
    emoji = _ranges((0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x200D, 0x200D), (0xFE0F, 0xFE0F), (0xE0020, 0xE007F))
    combining = st.characters(categories=["Mn", "Mc", "Me"])
    alphabets = [st.characters(codec="utf-8"), controls, right_to_left, emoji, combining]
    whole = [*alphabets, st.one_of(alphabets)]
    short = st.one_of([st.text(alphabet, min_size=1, max_size=60) for alphabet in whole])
    # A body with one of these is refused whole.
    broken = st.text(st.one_of(*alphabets, st.characters(categories=["Cs"])), max_size=60)
    # Short ones repeated: hypothesis itself makes none this long.
    long_words = st.builds(str.__mul__, st.text(st.one_of(alphabets), min_size=1, max_size=3), st.integers(1, 2000))
    many_words = st.builds(lambda word, n: f"{word} " * n, short, st.integers(1, 500))
    usual = st.sampled_from(["a good film", "the film is not very bad ."])
    return st.integers(0, 39).flatmap(lambda draw: broken if draw == 0 else usual | short | long_words | many_words)


def _huge_words() -> st.SearchStrategy[str]:
    lengths = st.sampled_from([2**16, 2**18, LONGEST_WORD])
    return st.builds(str.__mul__, st.characters(codec="utf-8"), lengths)


def _json_values(texts: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    numbers = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**300, 1e308, 5e-324])
    leaves = st.none() | st.booleans() | numbers | texts
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=12,
    )


def _mostly(right: st.SearchStrategy[object], odd: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Now and then odd: what has ten fields should not always be refused for one."""
    return st.integers(0, 9).flatmap(lambda draw: right if draw else odd)


def _objects() -> st.SearchStrategy[tuple[str, dict[str, object]]]:
    """Paths and bodies that are objects, their fields right or wrong."""
    texts, odd = _texts(), _json_values(_texts())
    pairs = st.fixed_dictionaries({"text": texts}, optional={"text_pair": texts | st.none()})
    items = st.lists(texts | pairs, min_size=1, max_size=20)
    # More than a request may hold, or nearly.
    crowds = st.builds(lambda text, n: [text] * n, st.text(min_size=1, max_size=3), st.integers(1000, 1100))
    options = {
        "model": st.sampled_from(["tiny", "gpt", None]),
        "user": odd,
        "priority": st.integers(),
        "quality": st.sampled_from(["exact", "guaranteed", "fast"]),
        "max_width": st.integers(1, 5) | st.integers(1),
        "timeout_ms": st.floats(0.01, 5000),
        "truncate": st.booleans(),
        "truncate_prompt_tokens": st.integers(-2, 70),
        "use_activation": st.booleans(),
        "unknown": odd,
    }
    classify = st.fixed_dictionaries(
        {"input": _mostly(st.one_of(texts, pairs, items, items), odd | crowds)},
        optional={name: _mostly(right, odd) for name, right in options.items()},
    )
    sequences = st.lists(texts, min_size=1, max_size=2)
    predict = st.fixed_dictionaries(
        {"inputs": _mostly(st.one_of(texts, sequences, st.lists(sequences, min_size=1, max_size=10)), odd)},
        optional={
            "raw_scores": _mostly(st.booleans(), odd),
            "truncate": _mostly(st.booleans(), odd),
            "truncation_direction": _mostly(st.sampled_from(["right", "Right"]), odd),
        },
    )
    return st.tuples(st.sampled_from(CLASSIFY_PATHS), classify) | st.tuples(st.just(PREDICT_PATH), predict)


def _dump(content: object, escaped: bool) -> bytes:
    # Unescaped, a lone surrogate becomes broken UTF-8.
    return json.dumps(content, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


def _raw_bodies() -> st.SearchStrategy[bytes]:
    """Bodies that are no such object, or are one that Python's JSON would not write."""
    literals = st.sampled_from(
        [
            b"NaN",
            b"-Infinity",
            b"1e999",
            b"-0",
            b"-0.0",
            b"01",
            b"+1",
            b".5",
            b"0x10",
            b"1_0",
            b"True",
            b"null",
            b"''",
            b"1e-999",
        ]
    )
    digits = st.builds(lambda n: b"9" * n, st.integers(10, 5000))
    fields = st.sampled_from(
        [b"input", b"priority", b"timeout_ms", b"max_width", b"truncate_prompt_tokens", b"truncate"]
    )
    odd_number = st.builds(
        lambda field, literal: b'{"input": "a", "%b": %b}' % (field, literal), fields, literals | digits
    )
    depths = st.integers(1, 2000) | st.just(200_000)
    nesting = st.builds(
        lambda part, n, close: part[0] * n + b'"a"' + part[1] * (n if close else 0),
        st.sampled_from(
            [(b"[", b"]"), (b'{"input":', b"}"), (b'{"input": "a", "x": [', b"]}"), (b'{"inputs":[[', b"]]}")]
        ),
        depths,
        st.booleans(),
    )
    return st.one_of(
        st.binary(max_size=200),
        _json_values(_texts()).map(lambda value: _dump(value, True)),
        odd_number,
        nesting,
        # Cut, or broken at one place.
        st.builds(
            lambda whole, n: whole[: -1 - n], _objects().map(lambda pair: _dump(pair[1], False)), st.integers(0, 20)
        ),
        st.builds(
            _spoilt,
            _objects().map(lambda pair: _dump(pair[1], False)),
            st.integers(0, 10_000),
            st.binary(min_size=1, max_size=3),
        ),
        # Repeated, and in other encodings.
        st.just(b'{"input": "a", "input": ["b"], "inputs": "c", "inputs": 1}'),
        st.builds(
            lambda text, codec: json.dumps({"input": text}).encode(codec),
            _texts(),
            st.sampled_from(["utf-16", "utf-32-le", "utf-8-sig"]),
        ),
    )


def _spoilt(whole: bytes, place: int, wrong: bytes) -> bytes:
    at = place % (len(whole) + 1)
    return whole[:at] + wrong + whole[at:]


def _requests() -> st.SearchStrategy[Request]:
    values = st.binary(max_size=40).map(lambda value: bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F))
    types = (
        st.sampled_from(
            [b"application/json", b"text/plain", b"application/json; charset=utf-16", b"multipart/form-data", b""]
        )
        | values
    )
    headers = st.fixed_dictionaries(
        {b"content-type": types},
        optional=dict.fromkeys((b"x-request-id", b"accept", b"authorization", b"content-encoding", b"cookie"), values),
    ).map(lambda chosen: tuple(chosen.items()))
    usual = st.just(((b"content-type", b"application/json"),))
    paths = st.sampled_from([*CLASSIFY_PATHS, PREDICT_PATH])

    def of(pairs: st.SearchStrategy[tuple[str, bytes]]) -> st.SearchStrategy[Request]:
        return st.builds(
            lambda pair, chosen, chunked: Request(pair[0], chosen, pair[1], chunked),
            pairs,
            usual | headers,
            st.sampled_from([False] * 9 + [True]),
        )

    objects = st.builds(lambda pair, escaped: (pair[0], _dump(pair[1], escaped)), _objects(), st.booleans())
    huge = st.builds(
        lambda path, text, escaped: (path, _dump({"inputs" if path == PREDICT_PATH else "input": text}, escaped)),
        paths,
        _huge_words(),
        st.booleans(),
    )
    kinds: list[Callable[[], st.SearchStrategy[Request]]] = [
        lambda: of(objects),
        lambda: of(st.tuples(paths, _raw_bodies())),
        lambda: of(huge),
    ]
    # Megabytes take a server a hundred times a sentence's time: one request in fifty.
    return st.integers(0, 49).flatmap(lambda draw: kinds[2 if draw == 0 else 1 if draw < 15 else 0]())
