"""The wire formats and their errors, against a real server over loopback."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from revmux_core.batch import collate
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.classifier import MuxClassifier, make_adapters
from revmux_core.evaluation import plain_answers
from revmux_core.multiplexing import EARLY_EXIT, make_multiplexer
from revmux_core.plan import Group, MuxPlan
from revmux_core.points import OperatingPoint
from server.schemas import ClassifyResponse, ErrorResponse, InfoResponse, ModelList, PredictErrorResponse
from tests.core.test_tokenization import SCRIPTS
from tests.server.running import running_server, wait_until
from tests.tiny import random_samples

MAX_BODY, MAX_ITEMS = 200_000, 64


@pytest.fixture(scope="module")
def client(tiny_bundle: Bundle) -> Iterator[httpx.Client]:
    with running_server(lambda: tiny_bundle, width="max", max_body_bytes=MAX_BODY, max_items_per_request=MAX_ITEMS) as (
        client,
        _,
    ):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


def classify(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/classify", json=body)
    assert response.status_code == 200, response.text
    ClassifyResponse.model_validate(response.json())
    return response.json()


def plain_logits(bundle: Bundle, text: str, pair: str | None = None) -> torch.Tensor:
    plan = MuxPlan((Group(bundle.classifier.plain, (0,)),))
    return bundle.classifier(collate(bundle.tokenizer([(text, pair)]), plan)).logits[0]


def test_one_text_has_the_probabilities_of_the_model(client: httpx.Client, tiny_bundle: Bundle) -> None:
    answer = classify(client, input="a good film", model="tiny", user="ignored", unknown_field=1)
    expected = plain_logits(tiny_bundle, "a good film").softmax(0)
    item = answer["data"][0]
    torch.testing.assert_close(torch.tensor(item["probs"]), expected)
    assert item["label"] == tiny_bundle.manifest.labels[int(expected.argmax())]
    assert (item["num_classes"], item["mux_width"], item["escalated"]) == (3, 1, False)
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "total_tokens": 5,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


def test_exact_answers_keep_their_order_and_pairs_are_pairs(client: httpx.Client, tiny_bundle: Bundle) -> None:
    items: list[Any] = ["a film", {"text": "good", "text_pair": "very bad film"}, {"text": "not bad"}]
    data = classify(client, input=items, quality="exact", use_activation=False)["data"]
    assert [item["mux_width"] for item in data] == [1, 1, 1]
    expected = [("a film", None), ("good", "very bad film"), ("not bad", None)]
    for item, (text, pair) in zip(data, expected, strict=True):
        torch.testing.assert_close(torch.tensor(item["probs"]), plain_logits(tiny_bundle, text, pair))
    assert classify(client, input=items[1], quality="exact")["usage"]["prompt_tokens"] == 7


def test_lists_are_multiplexed_as_wide_as_allowed(client: httpx.Client) -> None:
    texts = [f"word{i} film" for i in range(8)]
    for max_width, expected in ((None, 4), (4, 4), (3, 2), (1, 1)):
        data = classify(client, input=texts, max_width=max_width)["data"]
        assert {item["mux_width"] for item in data} == {expected}
        assert [item["index"] for item in data] == list(range(8))


def test_an_early_exit_answers_all_but_exact_requests(tiny_bundle: Bundle) -> None:
    torch.manual_seed(5)
    backbone = tiny_bundle.classifier.backbone
    early = OperatingPoint(1, 2, ())
    adapters = make_adapters(backbone, early, make_multiplexer(EARLY_EXIT, 1, backbone.hidden_size), 0)
    bundle = replace(tiny_bundle, classifier=MuxClassifier(backbone, {early: adapters}))
    expected = bundle.classifier(collate(bundle.tokenizer([("a film", None)]), MuxPlan((Group(early, (0,)),)))).logits[
        0
    ]
    with running_server(lambda: bundle, point="n1-l2") as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        for options in ({}, {"quality": "fast"}, {"max_width": 1}):
            item = classify(client, input="a film", use_activation=False, **options)["data"][0]
            assert item["mux_width"] == 1
            torch.testing.assert_close(torch.tensor(item["probs"]), expected)
        exact = classify(client, input="a film", use_activation=False, quality="exact")["data"][0]
        torch.testing.assert_close(torch.tensor(exact["probs"]), plain_logits(bundle, "a film"))
        assert [point["name"] for point in client.get("/info").json()["points"]] == ["n1-l4", "n1-l2"]


def test_a_guaranteed_answer_is_escalated_where_it_is_not_sure(calibrated_path: Path) -> None:
    """Each answer is what its own cascade gives, and the plain model's label where it was escalated."""
    bundle = load_bundle(calibrated_path)
    texts, samples = random_samples(bundle, 64, seed=3)
    plain = [bundle.manifest.labels[label] for label in plain_answers(bundle.classifier, samples, 0)]
    with running_server(lambda: bundle, width="max") as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        data = classify(client, input=texts)["data"]
        assert {item["escalated"] for item in data} == {True, False}
        assert all(item["label"] == label for item, label in zip(data, plain, strict=True) if item["escalated"])
        assert np.mean([item["label"] == label for item, label in zip(data, plain, strict=True)]) > 0.8
        expected = bundle.classify(texts, 1, quality="guaranteed")
        alone = classify(client, input=texts, max_width=1)["data"]
        assert [item["label"] for item in alone] == [answer.label for answer in expected]
        assert [item["escalated"] for item in alone] == [answer.escalated for answer in expected]
        assert not any(item["escalated"] for item in classify(client, input=texts, quality="fast")["data"])

        info = client.get("/info").json()
        assert (info["quality"], info["certified_agreement"], info["certified_confidence"]) == ("guaranteed", 0.8, 0.9)
        metrics = client.get("/metrics").text
        for cascade in info["cascades"]:
            assert abs(cascade["realised_escalation_rate"] - cascade["predicted_escalation_rate"]) < 0.3
            assert f'revmux_escalations_total{{mux_width="{cascade["width"]}"}}' in metrics
            assert f'revmux_certified_agreement{{mux_width="{cascade["width"]}"}} 0.8' in metrics
    with running_server(lambda: bundle, width="max", shadow_share=1) as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        width = info["cascades"][0]["width"]
        agreement = f'revmux_shadow_agreement{{mux_width="{width}",quality="guaranteed"}}'
        assert [item["label"] for item in classify(client, input=texts)["data"]] == [item["label"] for item in data]
        wait_until(lambda: agreement in client.get("/metrics").text)
        metrics = client.get("/metrics").text
        assert f'revmux_cascade_suspended{{mux_width="{width}"}} 0.0' in metrics
    with running_server(lambda: bundle, quality="exact") as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert [item["label"] for item in classify(client, input=texts)["data"]] == plain


def test_long_inputs_are_cut_or_refused(client: httpx.Client) -> None:
    text = "good " * 20_000
    assert classify(client, input=text)["usage"]["prompt_tokens"] == 64
    assert classify(client, input=text, truncate_prompt_tokens=10)["usage"]["prompt_tokens"] == 10
    assert classify(client, input="good " * 200, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] == 64
    assert classify(client, input="x" * 100_000)["usage"]["prompt_tokens"] == 3
    refused = client.post("/classify", json={"input": text, "truncate": False})
    assert refused.status_code == 400
    assert "20002 tokens, more than 64" in refused.json()["error"]["message"]


def test_other_scripts_are_answered_and_what_is_unknown_of_them_is_counted(
    client: httpx.Client, tiny_bundle: Bundle
) -> None:
    texts = list(SCRIPTS.values())
    before = client.get("/metrics").text
    answer = classify(client, input=texts, quality="exact")
    samples = tiny_bundle.tokenizer([(text, None) for text in texts])
    assert answer["usage"]["prompt_tokens"] == sum(map(len, samples))
    unknown = [tiny_bundle.tokenizer.unknown(tokens) for tokens in samples]
    assert [item["unknown_tokens"] for item in answer["data"]] == unknown
    for item, text in zip(answer["data"], texts, strict=True):
        torch.testing.assert_close(torch.tensor(item["probs"]), plain_logits(tiny_bundle, text).softmax(0))
    read = [
        float(metrics.partition("\nrevmux_unknown_tokens_total ")[2].split()[0])
        for metrics in (before, client.get("/metrics").text)
    ]
    assert read[1] - read[0] == sum(unknown) > 20
    # The raw bytes of UTF-8 are the same text as JSON's escapes.
    raw = json.dumps({"input": texts, "quality": "exact"}, ensure_ascii=False).encode()
    assert client.post("/classify", content=raw).json()["data"] == answer["data"]


def test_headers_name_the_request_and_its_times(client: httpx.Client) -> None:
    response = client.post("/v1/classify", json={"input": "a"}, headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert response.json()["id"] == "classify-mine-1"
    assert float(response.headers["x-queue-time-ms"]) >= 0
    assert float(response.headers["x-inference-time-ms"]) > 0
    made = client.post("/classify", json={"input": "a"}, headers={"x-request-id": "a b" * 100}).headers["x-request-id"]
    assert len(made) == 32


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [("a film", 3), (["a film", "bad"], 3), ([["a film"], ["bad", "good"]], (2, 3)), ([["a film"]], (1, 3))],
)
def test_predict_answers_in_the_shape_of_its_input(client: httpx.Client, inputs: Any, shape: Any) -> None:
    answer = client.post("/predict", json={"inputs": inputs}).json()
    rankings = [answer] if isinstance(shape, int) else answer
    assert (len(answer) if isinstance(shape, int) else (len(answer), len(answer[0]))) == shape
    for ranking in rankings:
        scores = [prediction["score"] for prediction in ranking]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_two_strings_are_one_pair_for_predict(client: httpx.Client, tiny_bundle: Bundle) -> None:
    answer = client.post("/predict", json={"inputs": ["a", "bad film"], "raw_scores": True}).json()
    scores = {prediction["label"]: prediction["score"] for prediction in answer}
    expected = plain_logits(tiny_bundle, "a", "bad film")
    torch.testing.assert_close(torch.tensor([scores[label] for label in tiny_bundle.manifest.labels]), expected)


BAD_CLASSIFY: list[tuple[bytes | dict[str, Any], int, str]] = [
    (b"", 400, "JSON"),
    (b'{"input": "a', 400, "JSON"),
    (b"[" * 100_000, 400, "recursion limit"),
    (b'{"input": "\xff\xfe"}', 400, "unicode"),
    (b'{"input": "\\ud800"}', 400, "hex escape"),
    (b'{"input": "a\\udc00"}', 400, "hex escape"),
    ({"input": ["a", "\u200b\x00"]}, 400, "input 1 is empty to this model"),
    ({"input": {"text": "a", "text_pair": "\u0301"}}, 400, "input 0 is empty to this model"),
    (b'"text"', 400, "object"),
    ({}, 400, "`input`"),
    ({"input": ""}, 400, "empty"),
    ({"input": " \n"}, 400, "white space"),
    ({"input": []}, 400, "at least one"),
    ({"input": ["a", ""]}, 400, "`input[1]`"),
    ({"input": None}, 400, "string"),
    ({"input": 7}, 400, "string"),
    ({"input": ["a", 7]}, 400, "`input[1]`"),
    ({"input": [["a"]]}, 400, "`input[0]`"),
    ({"input": {"text_pair": "a"}}, 400, '"text"'),
    ({"input": {"text": "a", "text_pair": 7}}, 400, "text_pair"),
    (b'{"input": "a", "timeout_ms": NaN}', 400, "finite"),
    (b'{"input": "a", "timeout_ms": Infinity}', 400, "finite"),
    (b'{"input": "a", "timeout_ms": 1e999}', 400, "finite"),
    ({"input": "a", "timeout_ms": 0}, 400, "timeout_ms"),
    ({"input": "a", "timeout_ms": "5"}, 400, "timeout_ms"),
    ({"input": "a", "max_width": 0}, 400, "max_width"),
    ({"input": "a", "max_width": 1.5}, 400, "max_width"),
    ({"input": "a", "priority": "high"}, 400, "priority"),
    ({"input": "a", "truncate": "yes"}, 400, "truncate"),
    ({"input": "a", "truncate_prompt_tokens": 0}, 400, "-1"),
    ({"input": "a", "truncate_prompt_tokens": 65}, 400, "at most 64"),
    ({"input": "a", "truncate_prompt_tokens": 2}, 400, "send 3 or more"),
    ({"input": {"text": "a", "text_pair": "b"}, "truncate_prompt_tokens": 4}, 400, "send 5 or more"),
    ({"input": "a", "quality": "best"}, 400, "exact"),
    ({"input": "a", "quality": "guaranteed"}, 400, "no certified cascade"),
    ({"input": "a", "model": "gpt"}, 404, "tiny"),
    ({"input": ["a"] * 10_000}, 413, "10000 inputs"),
    (b'{"input": "' + b"a" * MAX_BODY + b'"}', 413, "200000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD_CLASSIFY)
def test_bad_input_gets_its_documented_error(client: httpx.Client, body: Any, status: int, words: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/classify", content=content)
    assert response.status_code == status
    error = ErrorResponse.model_validate(response.json()).error
    assert words in error.message
    assert error.code == status


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b'{"inputs": "a"', 400, "Validation"),
        (b'{"inputs": ""}', 400, "Empty"),
        (b'{"inputs": []}', 400, "Empty"),
        (b'{"inputs": "\\u200b"}', 400, "Empty"),
        (b'{"inputs": ["a", "b", "c"]}', 400, "Validation"),
        (b'{"inputs": [["a"], "b"]}', 400, "Validation"),
        (b'{"inputs": [["a"], []]}', 400, "Empty"),
        (b'{"inputs": {"text": "a"}}', 400, "Validation"),
        (b'{"inputs": "a", "truncation_direction": "left"}', 400, "Validation"),
        (b'{"inputs": "' + b"good " * 100 + b'"}', 400, "Validation"),
    ],
)
def test_predict_errors_take_their_own_form(client: httpx.Client, body: bytes, status: int, kind: str) -> None:
    response = client.post("/predict", content=body)
    assert response.status_code == status
    assert PredictErrorResponse.model_validate(response.json()).error_type == kind


def test_a_streamed_body_over_the_limit_is_refused(client: httpx.Client) -> None:
    response = client.post("/classify", content=(b"a" * 1000 for _ in range(MAX_BODY // 1000 + 2)))
    assert response.status_code == 413


def test_a_client_that_leaves_while_it_sends_is_no_failure(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    wait_until(lambda: 'path="/classify",status="499"} 1.0' in client.get("/metrics").text)


def test_neighbours_of_bad_requests_are_answered(client: httpx.Client, tiny_bundle: Bundle) -> None:
    bad = [body if isinstance(body, bytes) else json.dumps(body).encode() for body, _, _ in BAD_CLASSIFY]
    texts = [f"word{i} " * (1 + i % 9) for i in range(len(bad))]
    good = [json.dumps({"input": text, "quality": "exact", "use_activation": False}).encode() for text in texts]
    bodies = [body for both in zip(good, bad, strict=True) for body in both]
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda body: client.post("/classify", content=body), bodies))
    for text, response in zip(texts, responses[::2], strict=True):
        assert response.status_code == 200
        logits = torch.tensor(response.json()["data"][0]["probs"])
        torch.testing.assert_close(logits, plain_logits(tiny_bundle, text))
    assert all(400 <= response.status_code < 500 for response in responses[1::2])


def test_models_and_info_describe_the_bundle(client: httpx.Client) -> None:
    models = ModelList.model_validate(client.get("/v1/models").json())
    assert [model.id for model in models.data] == ["tiny"]
    info = InfoResponse.model_validate(client.get("/info").json())
    assert info.labels == ["negative", "neutral", "positive"]
    assert info.widths == [1, 2, 4]
    assert [point.prefill_layers for point in info.points] == [4, 2, 2]
    assert (info.limits.max_tokens, info.limits.max_body_bytes) == (64, MAX_BODY)


def test_metrics_name_routes_never_paths(client: httpx.Client) -> None:
    client.post("/classify", json={"input": ["a", "b"]})
    assert client.get("/secret/path").status_code == 404
    text = client.get("/metrics").text
    for name in ("requests_total", "queue_items", "batch_padding_ratio_bucket", "inference_duration_seconds_sum"):
        assert f"revmux_{name}" in text
    assert 'revmux_requests_total{path="/classify",status="200"}' in text
    assert 'revmux_inputs_total{mux_width="2",point="n2-l2-u2.3"}' in text
    assert "secret" not in text
    openmetrics = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.text.endswith("# EOF\n")


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert client.get("/nowhere").json()["error"]["type"] == "NotFoundError"
    wrong = client.get("/classify")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "error_type" in client.get("/predict").json()


def test_openapi_documents_every_error(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, statuses in {
        "/classify": {"200", "400", "401", "404", "408", "413", "429", "431", "500", "503", "504"},
        "/predict": {"200", "400", "401", "408", "413", "429", "431", "500", "503", "504"},
    }.items():
        assert set(paths[path]["post"]["responses"]) == statuses
        assert paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert client.get("/docs").status_code == 200


def test_keys_are_asked_for_where_they_are_set(tiny_bundle: Bundle) -> None:
    hashed = f"sha256:{sha256('zweiter schlüssel'.encode()).hexdigest()}"
    with running_server(lambda: tiny_bundle, api_keys=f"first,{hashed}") as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)

        def ask(**headers: bytes) -> httpx.Response:
            return client.post("/classify", json={"input": "a"}, headers=headers)

        for refused in (ask(), *(ask(authorization=f"Bearer {key}".encode()) for key in ("wrong", "firs", hashed))):
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for key in ("first", "zweiter schlüssel"):
            assert ask(authorization=f"Bearer {key}".encode()).status_code == 200
        assert client.get("/v1/models").status_code == 401
