"""`POST /predict`: the format of Text Embeddings Inference."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.answers import Answer
from server.errors import InvalidRequest
from server.routes.common import WORK_ERRORS, admissible, authorized, body_docs, error_docs, json_response
from server.schemas import PredictErrorResponse, Prediction, PredictRequest, parse
from server.service import Work

router = APIRouter(tags=["classification"])


@router.post(
    "/predict",
    response_model=list[Prediction] | list[list[Prediction]],
    responses=error_docs(WORK_ERRORS, PredictErrorResponse),
    openapi_extra=body_docs(PredictRequest, {"inputs": [["a gripping film"], ["a waste of time"]]}),
)
async def predict(request: Request) -> Response:
    """Scores of every label, best first; of a regression its one score. Token classification has no place here.

    `inputs` is one text, ONE pair of texts as a list of two strings (never a batch of two), or a batch as a list of
    lists. One input answers a list, a batch a list of lists.
    """
    service, tenant = authorized(request)
    query = parse(PredictRequest, await admissible(request, service))
    if service.model.facts.problem_type == "token_classification":
        raise InvalidRequest(
            "this model labels every word of a text, for which this format has no place: use /classify"
        )
    texts, batched = query.inputs
    result = await service.classify(Work(texts, truncate=query.truncate is True, tenant=tenant), request)
    labels = result.facts.labels
    ranked = [_ranked(answer, labels, query.raw_scores) for answer in result.answers.items]
    return json_response(ranked if batched else ranked[0], result.answers)


def _ranked(answer: Answer, labels: list[str], raw_scores: bool) -> list[dict[str, object]]:
    scores = answer.logits if raw_scores else answer.probs
    best_first = sorted(zip(scores, labels, strict=True), key=lambda scored: -scored[0])
    return [{"score": score, "label": label} for score, label in best_first]
