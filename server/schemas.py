"""The wire types: requests as they are parsed, answers as they are documented.

Requests are validated from the raw body, strictly: a number in quotes is not a number. Answers are written by the
routes as plain dictionaries, since validating what was just computed would cost more than the rest of the route; the
answer types here are what OpenAPI shows, and the tests hold the routes to them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from revmux_core.backends import BackendName
from revmux_core.cascade import Quality
from revmux_core.problems import ProblemType
from revmux_core.tokenization import Text
from server.errors import EmptyInput, InvalidRequest

_PAIR_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "text_pair": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
    "required": ["text"],
}
_ITEM_SCHEMA = {"anyOf": [{"type": "string"}, _PAIR_SCHEMA]}
_INPUT_SCHEMA = {"anyOf": [{"type": "string"}, _PAIR_SCHEMA, {"type": "array", "items": _ITEM_SCHEMA, "minItems": 1}]}
_SEQUENCE_SCHEMA = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}
_INPUTS_SCHEMA = {
    "anyOf": [{"type": "string"}, _SEQUENCE_SCHEMA, {"type": "array", "items": _SEQUENCE_SCHEMA, "minItems": 1}],
    "description": "A text, ONE pair of texts as a list of two strings, or a batch as a list of lists.",
}


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


def _invalid(message: str) -> PydanticCustomError:
    return PydanticCustomError("input", "{message}", {"message": message})


def _empty(message: str) -> PydanticCustomError:
    return PydanticCustomError("empty_input", "{message}", {"message": message})


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _invalid(f"`{name}` must be a string")
    if not value or value.isspace():
        raise _empty(f"`{name}` is empty or only white space: send a text")
    return value


def _classify_item(value: Any, name: str) -> Text:
    if isinstance(value, dict):
        if "text" not in value:
            raise _invalid(f'`{name}` lacks "text": send {{"text": ..., "text_pair": ...}}')
        pair = value.get("text_pair")
        return _text(value["text"], f"{name}.text"), None if pair is None else _text(pair, f"{name}.text_pair")
    if not isinstance(value, str):
        raise _invalid(f'`{name}` must be a string or an object {{"text": ..., "text_pair": ...}}')
    return _text(value, name), None


def _classify_input(value: Any) -> list[Text]:
    if not isinstance(value, list):
        return [_classify_item(value, "input")]
    if not value:
        raise _empty("`input` is an empty list: send at least one text")
    return [_classify_item(item, f"input[{index}]") for index, item in enumerate(value)]


class ClassifyRequest(_Request):
    """`POST /classify`, the format of vLLM's and SGLang's classification API. Unknown fields are ignored."""

    input: Annotated[list[Text], PlainValidator(_classify_input), WithJsonSchema(_INPUT_SCHEMA)] = Field(
        description="A text, a pair of texts as an object, or a list of those."
    )
    model: str | None = Field(None, description="The loaded model's name; may be left out.")
    user: str | None = Field(None, description="Ignored.")
    priority: int = Field(0, description="Requests with a lower value are served first.")
    quality: Quality | None = Field(
        None,
        description="exact: plain inference only. fast: multiplexed. guaranteed: multiplexed, but never below the "
        "agreement that a calibrated bundle certifies. Left out: the server's default, guaranteed where it can be.",
    )
    max_width: int | None = Field(
        None, ge=1, description="Highest mux width allowed; at 1 an early exit may answer, if one is served."
    )
    timeout_ms: float | None = Field(
        None, gt=0, le=3_600_000, allow_inf_nan=False, description="Answer 504 after this many milliseconds."
    )
    truncate: bool = Field(True, description="Cut over-long inputs; false makes them a 400.")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="Cut inputs to this many tokens; -1 is the model's limit."
    )
    use_activation: bool | None = Field(None, description="false: raw logits in `probs`, or as scores of entities.")


def _predict_sequence(value: list[Any], name: str) -> Text:
    if not 1 <= len(value) <= 2:
        raise (_invalid if value else _empty)(
            f"`{name}` must hold one text, or the two texts of a pair; a batch is a list of such lists: [[...], [...]]"
        )
    first = _text(value[0], f"{name}[0]")
    return first, None if len(value) == 1 else _text(value[1], f"{name}[1]")


def _predict_inputs(value: Any) -> tuple[list[Text], bool]:
    if isinstance(value, str):
        return [(_text(value, "inputs"), None)], False
    if not isinstance(value, list):
        raise _invalid("`inputs` must be a string, one pair [text, text], or a batch [[text], [text, text], ...]")
    if value and isinstance(value[0], list):
        sequences = []
        for index, item in enumerate(value):
            if not isinstance(item, list):
                raise _invalid(f"`inputs[{index}]` must be a list, as `inputs[0]` is one")
            sequences.append(_predict_sequence(item, f"inputs[{index}]"))
        return sequences, True
    return [_predict_sequence(value, "inputs")], False


class PredictRequest(_Request):
    """`POST /predict`, the format of Text Embeddings Inference. Unknown fields are ignored.

    `inputs` becomes the texts, and whether they were sent as a batch.
    """

    inputs: Annotated[tuple[list[Text], bool], PlainValidator(_predict_inputs), WithJsonSchema(_INPUTS_SCHEMA)]
    raw_scores: bool = Field(False, description="true: raw logits as scores.")
    truncate: bool | None = Field(None, description="Cut over-long inputs; otherwise they are a 400.")
    truncation_direction: Literal["right", "Right"] = Field("right", description="Only right is supported.")


_Parsed = TypeVar("_Parsed", bound=BaseModel)


def parse(model: type[_Parsed], body: bytes) -> _Parsed:
    """`body` as a request. Raises `InvalidRequest` with the first thing that is wrong; nothing of the text in it."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or None
        if first["type"] in ("input", "empty_input"):
            kind = EmptyInput if first["type"] == "empty_input" else InvalidRequest
            raise kind(first["msg"], param=field) from None
        if field is None:
            raise InvalidRequest(f"the body must be one JSON object: {_plain(first['msg'])}") from None
        raise InvalidRequest(f"`{field}`: {_plain(first['msg'])}", param=field) from None


def _plain(message: str) -> str:
    return message[:1].lower() + message[1:]


class _Item(BaseModel):
    index: int
    num_classes: int
    mux_width: int = Field(
        description="How many samples shared the composite; 1: none, the answer is plain or an early exit's."
    )
    point: str = Field(description="The operating point that answered, see `/info`.")
    escalated: bool = Field(description="Whether it was escalated to the plain path.")
    unknown_tokens: int = Field(
        description="Tokens that stand for what the model's vocabulary lacks: where many do, the answer is a guess."
    )


class Classification(_Item):
    label: str = Field(description="The most probable label; a regression's only one.")
    labels: list[str] = Field([], description="Multi-label models only: all that reach their thresholds, see `/info`.")
    probs: list[float] = Field(
        description="By label, in the order of `/info`. They sum to 1, or each is by itself where any number of labels "
        "may be given. A regression's only one is its score."
    )
    score: float | None = Field(None, description="Regression only: the model's score.")


class Entity(BaseModel):
    """A word and its label, in the format of Hugging Face's token classification pipeline."""

    entity: str
    score: float = Field(description="The label's probability.")
    index: int = Field(description="Which token of the text the word begins with; 0 is the first special token.")
    word: str
    start: int = Field(description="In characters of the text.")
    end: int


class TokenClassification(_Item):
    entities: list[Entity] = Field(description="One a word, but for those that are labelled O.")


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None


class ClassifyResponse(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classification] | list[TokenClassification]
    usage: Usage


class Prediction(BaseModel):
    score: float
    label: str


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Limits(BaseModel):
    max_tokens: int
    max_items_per_request: int
    max_body_bytes: int
    max_batch_tokens: int
    max_queue_items: int
    max_queue_tokens: int
    default_timeout_ms: float


class Point(BaseModel):
    name: str
    width: int
    prefill_layers: int
    ideal_speedup: float
    measured_agreement: float | None = Field(description="With the plain model, on held-out text; null: not measured.")


class CertifiedCascade(BaseModel):
    width: int
    points: list[str]
    score: str
    thresholds: list[float] = Field(description="How sure each point must be of an answer.")
    predicted_escalation_rate: float
    realised_escalation_rate: float | None = Field(description="Since the start; null before the first answer.")
    ideal_speedup: float


class InfoResponse(BaseModel):
    model: str
    base: str
    labels: list[str]
    problem_type: ProblemType
    thresholds: list[float] | None = Field(description="Multi-label: from which probability on a text has each label.")
    tolerance: float | None = Field(description="Regression: how far a score may be from the plain model's and agree.")
    widths: list[int]
    points: list[Point]
    quality: Quality = Field(description="Of requests that name none.")
    certified_agreement: float | None = Field(description="Of guaranteed answers; null: none are served.")
    certified_confidence: float | None = Field(description="The statistical confidence in that.")
    cascades: list[CertifiedCascade]
    device: str
    backend: BackendName
    dtype: str
    limits: Limits
    versions: dict[str, str]


class HealthResponse(BaseModel):
    status: Literal["alive", "ready", "loading", "draining", "failed"]


class ErrorDetail(BaseModel):
    message: str = Field(description="What to change, in plain words.")
    type: str
    param: str | None
    code: int


class ErrorResponse(BaseModel):
    error: ErrorDetail


class PredictErrorResponse(BaseModel):
    error: str
    error_type: str
