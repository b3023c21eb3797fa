"""The wire formats of the peers: their own, or that of the applications in `apps`."""

from __future__ import annotations

from typing import Any

from loadtest.wire import Reading, Wire

SERVED_NAME = "classifier"


def _best(answer: Any) -> Reading:
    return Reading(max(answer["data"][0], key=lambda entry: float(entry["score"]))["label"])


INFINITY = Wire("/classify", lambda text: {"model": SERVED_NAME, "input": [text]}, _best)


def labelled(path: str) -> Wire:
    """`{"text": ...}` to `{"label": ..., "score": ...}`, what a Transformers pipeline gives for one text."""
    return Wire(path, lambda text: {"text": text}, lambda answer: Reading(answer["label"]))
