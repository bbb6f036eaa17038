"""What a POST to ``/v1/batches`` and to what is beside it may say. What OpenAI's API does not have is ours."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from schemas.batches import (
    DEFAULT_CONCURRENCY,
    DEFAULT_ERROR_RATE,
    ENDPOINTS,
    MAX_CONCURRENCY,
    MAX_WINDOW_HOURS,
)
from schemas.errors import InvalidRequest
from schemas.explain import explain
from schemas.files import LONGEST_LIFE, SHORTEST_LIFE
from schemas.request import Integer, Metadata

#: Rows that an estimate looks at, where ``sample`` is not sent, and at most.
DEFAULT_SAMPLE, MAX_SAMPLE = 1_000, 100_000

_WINDOW = re.compile(r"([0-9]{1,5})([hd])")
_HOURS = {"h": 1, "d": 24}


def window_hours(text: str) -> int | None:
    """The hours of a ``completion_window``; None for what is none."""
    match = _WINDOW.fullmatch(text)
    hours = int(match[1]) * _HOURS[match[2]] if match else 0
    return hours if 0 < hours <= MAX_WINDOW_HOURS else None


def _window(text: str) -> str:
    if window_hours(text) is None:
        raise PydanticCustomError(
            "window",
            "must be '<n>h' or '<n>d', such as '24h', and at most {days} days",
            {"days": MAX_WINDOW_HOURS // 24},
        )
    return text


def _endpoint(text: str) -> str:
    if text not in ENDPOINTS:
        raise PydanticCustomError("endpoint", "must be '{endpoint}'", {"endpoint": ENDPOINTS[0]})
    return text


Endpoint = Annotated[str, AfterValidator(_endpoint)]
FileId = Annotated[str, Field(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_means_omitted(cls, data: Any) -> Any:
        if isinstance(data, dict):
            sent = cast("dict[str, Any]", data)
            return {name: value for name, value in sent.items() if value is not None}
        return data


class OutputExpiry(_Body):
    anchor: Literal["created_at"]
    seconds: Annotated[Integer, Field(ge=SHORTEST_LIFE, le=LONGEST_LIFE)]


class BatchRequest(_Body):
    """A batch to make."""

    input_file_id: FileId
    endpoint: Endpoint
    completion_window: Annotated[str, AfterValidator(_window)]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None
    #: Ours: rows under way at once.
    max_concurrency: Annotated[Integer, Field(ge=1, le=MAX_CONCURRENCY)] = DEFAULT_CONCURRENCY
    #: Ours: the batch stops when more than this part of its rows fails.
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = DEFAULT_ERROR_RATE


class RetryRequest(_Body):
    """Which failed rows to ask again: those with one of these error codes; all without any."""

    codes: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=100)
        ]
        | None
    ) = None


class EstimateRequest(_Body):
    """What to look at."""

    input_file_id: FileId
    endpoint: Endpoint = ENDPOINTS[0]
    sample: Annotated[Integer, Field(ge=1, le=MAX_SAMPLE)] = DEFAULT_SAMPLE


B = TypeVar("B", bound=_Body)


def parse_body(model: type[B], body: bytes) -> B:
    """Raises InvalidRequest, which names the field. No body is an empty object."""
    try:
        value: Any = from_json(body, allow_inf_nan=False) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param, sentence = explain(first)
        if first["type"] == "extra_forbidden":
            sentence = f"There is no field '{param[:80]}' here; there are {', '.join(model.model_fields)}."
        raise InvalidRequest(sentence, param=param[:80]) from None
