"""Families beside the encoders over HTTP: the server is the same for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from revmux_core.bundle import load_bundle
from tests.server.running import running_server, wait_until
from tests.tiny import FAMILIES, LABELS, PROMPT_TOKENS

TEXTS = ["a good film", "not very good .", "bad film word7 word8", "the film is bad"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_served(family: str, family_bundle_paths: dict[str, Path]) -> None:
    bundle = load_bundle(family_bundle_paths[family])
    plain = bundle.classify(TEXTS, point=1)
    with running_server(lambda: bundle, width="max") as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        exact = client.post("/classify", json={"input": TEXTS, "quality": "exact"}).json()
        together = client.post("/classify", json={"input": TEXTS, "quality": "fast"}).json()
        cut = client.post("/classify", json={"input": "film " * 100, "truncate_prompt_tokens": 20}).json()
        info = client.get("/info").json()
    for item, answer in zip(exact["data"], plain, strict=True):
        assert item["probs"] == pytest.approx(answer.probs, abs=1e-5)
        assert (item["label"], item["mux_width"], item["num_classes"]) == (answer.label, 1, len(LABELS))
    assert [item["mux_width"] for item in together["data"]] == [4] * 4
    assert {round(sum(item["probs"]), 4) for item in together["data"]} == {1.0}
    assert cut["usage"]["prompt_tokens"] == 20
    words = sum(len(text.split()) for text in TEXTS)
    added = {"t5": PROMPT_TOKENS + 1, "llama": PROMPT_TOKENS + 1, "qwen3": PROMPT_TOKENS, "mistral": 1}[family]
    assert exact["usage"]["prompt_tokens"] == words + added * len(TEXTS), "a soft prompt counts, as it costs as much"
    assert sorted(info["labels"]) == sorted(LABELS)
