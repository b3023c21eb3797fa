"""`POST /classify`: the classification format of vLLM and SGLang."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.errors import InvalidRequest, UnknownModel
from server.routes.common import WORK_ERRORS, admissible, authorized, body_docs, error_docs, json_response
from server.schemas import ClassifyRequest, ClassifyResponse, ErrorResponse, parse
from server.service import Work

router = APIRouter(tags=["classification"])

_DOCS = error_docs((*WORK_ERRORS, UnknownModel), ErrorResponse)
_BODY = body_docs(ClassifyRequest, {"input": ["a gripping film", "a waste of time"]})


@router.post("/v1/classify", response_model=ClassifyResponse, responses=_DOCS, openapi_extra=_BODY)
@router.post("/classify", response_model=ClassifyResponse, responses=_DOCS, openapi_extra=_BODY)
async def classify(request: Request) -> Response:
    """Classifies one text, one pair of texts, or a list of those."""
    service, tenant = authorized(request)
    query = parse(ClassifyRequest, await admissible(request, service))
    service.require_model(query.model)
    result = await service.classify(_work(query, tenant), request)
    problem = result.facts.problem
    data = []
    for index, (answer, (text, _), sample, unknown) in enumerate(
        zip(result.answers.items, query.input, result.samples, result.unknown, strict=True)
    ):
        scores = answer.logits if query.use_activation is False else answer.probs
        data.append(
            {
                "index": index,
                **problem.answer(answer.logits, scores, text, sample),
                "mux_width": answer.point.width,
                "point": answer.point.name,
                "escalated": answer.escalated,
                "unknown_tokens": unknown,
            }
        )
    tokens = sum(map(len, result.samples))
    content = {
        "id": f"classify-{request.state.request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": result.facts.name,
        "data": data,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }
    return json_response(content, result.answers)


def _work(query: ClassifyRequest, tenant: str) -> Work:
    if query.truncate_prompt_tokens == 0:
        raise InvalidRequest(
            "`truncate_prompt_tokens` must be -1 (the model's limit) or at least 1", param="truncate_prompt_tokens"
        )
    return Work(
        texts=query.input,
        truncate=query.truncate,
        tenant=tenant,
        quality=query.quality,
        max_width=query.max_width,
        max_tokens=None if query.truncate_prompt_tokens == -1 else query.truncate_prompt_tokens,
        priority=query.priority,
        timeout_ms=query.timeout_ms,
    )
