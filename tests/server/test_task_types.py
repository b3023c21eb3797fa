"""Task types over HTTP: each has its own answer on /classify, and on /predict what that format has a place for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from revmux_core.bundle import Bundle, load_bundle
from revmux_core.offline import run_all, run_cascade
from revmux_core.problems import ProblemType
from server.schemas import ClassifyResponse, InfoResponse, PredictErrorResponse
from tests.server.running import running_server, wait_until
from tests.tiny import PROBLEMS, random_samples

KINDS = [kind for kind in PROBLEMS if kind != "single_label_classification"]
TEXTS = ["a  good film", "not very good .", "bad film word7 word8", "the film is bad"]


@contextmanager
def served(bundle: Bundle, **flags: Any) -> Iterator[httpx.Client]:
    with running_server(lambda: bundle, **flags) as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def bundles(task_bundle_paths: dict[ProblemType, Path]) -> dict[ProblemType, Bundle]:
    return {kind: load_bundle(path) for kind, path in task_bundle_paths.items()}


@pytest.fixture(scope="module", params=KINDS)
def client(request: pytest.FixtureRequest, bundles: dict[ProblemType, Bundle]) -> Iterator[httpx.Client]:
    with served(bundles[request.param], point="n2-l2-u2.3") as client:
        client.headers["x-kind"] = request.param
        yield client


def classify(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    response = client.post("/classify", json=body)
    assert response.status_code == 200, response.text
    parsed = ClassifyResponse.model_validate(response.json())
    assert [type(item).__name__ for item in parsed.data] == [
        "TokenClassification" if "entities" in item else "Classification" for item in response.json()["data"]
    ]
    return response.json()["data"]


def test_every_type_answers_as_the_library_does(client: httpx.Client, bundles: dict[ProblemType, Bundle]) -> None:
    bundle = bundles[client.headers["x-kind"]]
    problem = bundle.manifest.problem
    for item, answer in zip(classify(client, input=TEXTS, quality="exact"), bundle.classify(TEXTS, 1), strict=True):
        assert item["num_classes"] == len(problem.labels)
        assert (item["mux_width"], item["escalated"]) == (1, False)
        assert item.get("probs", []) == pytest.approx(answer.probs, abs=1e-5)
        assert (item.get("label"), item.get("labels")) == (answer.label, answer.labels)
        assert item.get("score") == pytest.approx(answer.score, abs=1e-5)
        expected = answer.entities and [{**e, "score": pytest.approx(e["score"], abs=1e-5)} for e in answer.entities]
        assert item.get("entities") == expected
    together = classify(client, input=TEXTS, quality="fast")
    assert {item["mux_width"] for item in together} == {2}
    assert {frozenset(item) for item in together} == {frozenset(item)}
    info = InfoResponse.model_validate(client.get("/info").json())
    stated = bundle.manifest.thresholds, bundle.manifest.tolerance
    assert (info.problem_type, info.thresholds, info.tolerance) == (problem.type, *stated)


def test_raw_scores_decide_the_same(client: httpx.Client) -> None:
    """`use_activation` changes what is shown, never what is answered."""
    shown = classify(client, input=TEXTS, quality="exact")
    raw = classify(client, input=TEXTS, quality="exact", use_activation=False)
    for item, other in zip(shown, raw, strict=True):
        assert item.get("label") == other.get("label")
        assert item.get("labels") == other.get("labels")
        assert [e["entity"] for e in item.get("entities", [])] == [e["entity"] for e in other.get("entities", [])]
        if "score" in item:
            assert (item["probs"], other["probs"]) == ([pytest.approx(item["score"])], [pytest.approx(item["score"])])
        elif "labels" in item:
            assert all(0 <= prob <= 1 for prob in item["probs"])
            assert min(other["probs"]) < 0


def test_predict_answers_what_its_format_has_a_place_for(
    client: httpx.Client, bundles: dict[ProblemType, Bundle]
) -> None:
    kind = client.headers["x-kind"]
    response = client.post("/predict", json={"inputs": "a good film"})
    if kind == "token_classification":
        assert response.status_code == 400
        error = PredictErrorResponse.model_validate(response.json())
        assert (error.error_type, "use /classify" in error.error) == ("Validation", True)
        return
    (plain,) = bundles[kind].classify(["a good film"], 1)
    ranking = response.json()
    assert [row["score"] for row in ranking] == sorted((row["score"] for row in ranking), reverse=True)
    expected = dict(zip(bundles[kind].manifest.labels, plain.probs, strict=True))
    assert {row["label"]: row["score"] for row in ranking} == pytest.approx(expected, abs=1e-5)


def test_words_say_where_they_stand_and_pairs_are_refused(bundles: dict[ProblemType, Bundle]) -> None:
    with served(bundles["token_classification"]) as client:
        for text, item in zip(TEXTS, classify(client, input=TEXTS), strict=True):
            words = text.split()
            for entity in item["entities"]:
                assert entity["word"] == text[entity["start"] : entity["end"]] == words[entity["index"] - 1]
        cut = classify(client, input="film " * 100, truncate_prompt_tokens=12)[0]
        assert max(entity["index"] for entity in cut["entities"]) <= 10
        refused = client.post("/classify", json={"input": {"text": "a film", "text_pair": "good"}})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "text_pair")
        assert "single texts" in refused.json()["error"]["message"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_guaranteed_escalated_and_audited(
    kind: ProblemType, calibrated_task_paths: dict[ProblemType, Path]
) -> None:
    """Each answer is what its own cascade gives; audits agree by the type's own rule."""
    bundle = load_bundle(calibrated_task_paths[kind])
    texts, _ = random_samples(bundle, 48, seed=3)
    expected = bundle.classify(texts, 1, quality="guaranteed")
    plain = bundle.classify(texts, 1)
    with served(bundle, width="max", shadow_share=1) as client:
        data = classify(client, input=texts, max_width=1)
        assert [item["escalated"] for item in data] == [answer.escalated for answer in expected]
        assert {item["escalated"] for item in data} == {True, False}
        for item, answer in zip(data, plain, strict=True):
            if item["escalated"]:
                assert item.get("labels") == answer.labels
                assert item.get("score") == pytest.approx(answer.score, abs=1e-4)
                assert [e["entity"] for e in item.get("entities", [])] == [e["entity"] for e in answer.entities or []]
        audits = 'revmux_shadow_answers_total{agreed="true",mux_width="1",quality="guaranteed"}'
        wait_until(lambda: audits in client.get("/metrics").text)
        wait_until(lambda: audited(client) == len(texts))
        problem = bundle.manifest.problem
        agreeing = sum(
            problem.agrees(*pair)
            for pair in zip(logits_of(bundle, texts, "guaranteed"), logits_of(bundle, texts, "exact"), strict=True)
        )
        assert audited(client, "true") == agreeing


def audited(client: httpx.Client, agreed: str = "true|false") -> float:
    lines = client.get("/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("revmux_shadow_answers_total")]
    return sum(float(line.split()[-1]) for line in counts if line.split('agreed="')[1].split('"')[0] in agreed)


def logits_of(bundle: Bundle, texts: list[str], quality: str) -> list[list[float]]:
    """One row a text, by the library."""
    samples = bundle.tokenizer([(text, None) for text in texts])
    if quality == "exact":
        logits, _ = run_all(bundle.classifier, samples, bundle.classifier.plain, 0, 512)
    else:
        logits, _ = run_cascade(bundle.classifier, samples, bundle.cascade(1), 0, 512)
    return [row[~row.isnan()].tolist() for row in logits]
