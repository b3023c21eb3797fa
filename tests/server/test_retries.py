"""What a failed batch is tried again as; and over HTTP, that one text's NaN is nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from revmux_core.bundle import Bundle, load_bundle
from revmux_core.classifier import Adapters
from revmux_core.multiplexing.reversible import ReversibleMultiplexer
from revmux_core.points import OperatingPoint
from server.errors import DeviceLost
from server.planner import Menu
from server.retries import failed_alone, halves
from server.service import Service
from tests.server.running import Gate, running_server, wait_until
from tests.server.test_planner import Waiting
from tests.tiny import HIDDEN, LAYERS, SPECIAL, WORDS, save_tiny_bundle, save_tokenizer

TWO, PLAIN = OperatingPoint.mux(2, 2, LAYERS), OperatingPoint.plain(LAYERS)
MENU = Menu((TWO, PLAIN))
POISON = "word42"
SOUND = [f"a good film {word}" for word in WORDS[:24]]


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from([0, 2])), min_size=1, max_size=20))
def test_halves_hold_every_suspect_once_without_partners(texts: list[tuple[int, int]]) -> None:
    suspects = [Waiting(length, start=start, resumes_at=PLAIN if start else None) for length, start in texts]
    batches = halves(suspects, MENU)
    assert sorted(member for batch in batches for member in batch.members) == list(range(len(texts)))
    assert [len(batch.members) for batch in batches] in ([1], [len(texts) // 2, -(-len(texts) // 2)])
    assert {group.point for batch in batches for group in batch.plan.groups} == {PLAIN}
    for batch in batches:
        starts = {batch.members[row]: group.start for group in batch.plan.groups for row in group.members}
        assert all(starts[member] == texts[member][1] for member in batch.members)
    if len(batches) == 2:
        assert max(texts[member][0] for member in batches[0].members) <= min(
            texts[member][0] for member in batches[1].members
        )


def test_who_fails_alone_fails_without_partners() -> None:
    assert failed_alone([PLAIN], PLAIN)
    assert not failed_alone([OperatingPoint(1, 1, ())], PLAIN)
    assert not failed_alone([PLAIN, PLAIN], PLAIN)


@pytest.fixture(scope="module")
def poisoned(tiny_base_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Gate, Bundle]:
    """The tiny bundle around a model that knows no number for one word."""
    base, folder = tmp_path_factory.mktemp("poisoned"), tmp_path_factory.mktemp("bundle")
    model = BertForSequenceClassification.from_pretrained(tiny_base_path)
    model.get_input_embeddings().weight.data[len(SPECIAL) + WORDS.index(POISON)] = torch.nan
    model.save_pretrained(base)
    save_tokenizer(base)
    torch.manual_seed(1)
    save_tiny_bundle(folder, base, {TWO: Adapters(ReversibleMultiplexer(2, HIDDEN))})
    bundle = load_bundle(folder)
    return Gate(bundle), bundle


@pytest.fixture(scope="module")
def server(poisoned: tuple[Gate, Bundle]) -> Iterator[tuple[httpx.Client, Service]]:
    with running_server(lambda: poisoned[1], width="2") as (client, service):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client, service


@pytest.mark.parametrize("quality", ["exact", "fast"])
def test_one_text_of_nan_costs_its_own_request_alone(
    server: tuple[httpx.Client, Service], poisoned: tuple[Gate, Bundle], tiny_bundle: Bundle, quality: str
) -> None:
    client, (gate, _) = server[0], poisoned
    # The shortest, so that it is in the first composite whoever arrives first.
    texts = [*SOUND[:11], POISON, *SOUND[11:]]
    with ThreadPoolExecutor(len(texts) + 1) as threads:
        with gate.held():
            first = threads.submit(client.post, "/classify", json={"input": "a"})
            assert gate.reached.wait(10)
            requests = [
                threads.submit(client.post, "/classify", json={"input": text, "quality": quality}) for text in texts
            ]
            wait_until(lambda: server[1].model.batcher.load.items == len(texts))
        responses = [request.result() for request in requests]
    assert first.result().status_code == 200
    failed = responses.pop(11)
    assert failed.status_code == 500
    assert "NaN" in failed.json()["error"]["message"]
    assert {response.status_code for response in responses} == {200}
    answers = [response.json()["data"][0] for response in responses]
    plain = [answer["probs"] for answer in answers if answer["mux_width"] == 1]
    # Of 25 texts one has no partner, and the culprit's one is tried without.
    assert len(plain) == (len(SOUND) if quality == "exact" else 2)
    expected = dict(zip(SOUND, tiny_bundle.classify(SOUND, quality="exact"), strict=True))
    for text, answer in zip(SOUND, answers, strict=True):
        if answer["mux_width"] == 1:
            assert answer["probs"] == pytest.approx(expected[text].probs, abs=1e-4)


def test_nan_among_words_of_a_request_fails_the_request(server: tuple[httpx.Client, Service]) -> None:
    client, _ = server

    def retried() -> float:
        return float(client.get("/metrics").text.partition("\nrevmux_retried_inputs_total ")[2].split()[0])

    before = retried()
    assert client.post("/classify", json={"input": [*SOUND, POISON]}).status_code == 500
    assert retried() > before
    before = retried()
    assert client.post("/classify", json={"input": SOUND}).status_code == 200
    assert retried() == before


def test_a_lost_device_is_a_503_and_ends_the_server(tiny_bundle_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    gate = Gate(bundle)
    with running_server(lambda: bundle) as (client, service):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        with gate.failing(DeviceLost()):
            lost = client.post("/classify", json={"input": "a film"})
        assert (lost.status_code, lost.headers["retry-after"]) == (503, "5")
        assert "device" in str(service.failure)
        assert client.get("/health/ready").status_code == 503
