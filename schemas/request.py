"""``ChatCompletionRequest``: the parameters of a chat completion and their ranges.

The contract is OpenAI's Chat Completions API, with ``timeout`` added. What we don't know goes through to the
provider: unknown parameters, extra fields anywhere, content parts and tools of other types. A top-level null
means omitted.

Only the request itself is a model. What is in it is checked as plain dicts and stays plain dicts, so that
``params()`` gives back what was sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, cast

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json
from typing_extensions import TypedDict

from schemas.errors import InvalidRequest
from schemas.explain import explain, integral
from schemas.messages import Message, Tool, ToolChoice, text_or_list, type_of

#: The greatest integer that every JSON reader keeps exactly: 2^53 - 1.
MAX_SAFE_INTEGER = 9_007_199_254_740_991
#: The longest deadline that ``timeout`` can ask for, in seconds: 30 days.
MAX_TIMEOUT = 30 * 86_400
MAX_MODEL_LENGTH = 256
MAX_STOP_SEQUENCES = 4
#: OpenAI's limits for ``metadata``; lengths in characters.
MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512

_STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

#: 100.0 is an integer in JSON; 0.5 is left for the integer's own check.
Integer = Annotated[int, BeforeValidator(integral)]


class JSONSchema(TypedDict):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: NotRequired[str | None]
    schema: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


class PlainFormat(TypedDict):
    type: Literal["text", "json_object", "json_schema"]


class JSONSchemaFormat(TypedDict):
    type: Literal["json_schema"]
    json_schema: JSONSchema


def _format_tag(value: Any) -> str:
    return "<schema>" if type_of(value) == "json_schema" else "<plain>"


ResponseFormat = Annotated[
    Annotated[PlainFormat, Tag("<plain>")] | Annotated[JSONSchemaFormat, Tag("<schema>")],
    Discriminator(_format_tag),
]


class StreamOptions(TypedDict):
    include_usage: NotRequired[bool | None]


Stop = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[str], Field(max_length=MAX_STOP_SEQUENCES, fail_fast=True), Tag("<array>")],
    Discriminator(
        text_or_list,
        custom_error_type="stop",
        custom_error_message="must be a string or an array of up to 4 strings",
    ),
]


def _no_nul(value: Any) -> Any:
    if isinstance(value, str) and "\0" in value:
        raise PydanticCustomError("nul", "must not contain U+0000")
    return value


def _check_metadata(value: Any) -> Any:
    """OpenAI's limits; U+0000 is refused because PostgreSQL text can't hold it."""
    if not isinstance(value, dict):
        return value
    pairs = cast("dict[Any, Any]", value)
    if len(pairs) > MAX_METADATA_PAIRS:
        raise PydanticCustomError("metadata", "must have at most 16 pairs")
    for key, text in pairs.items():
        if not isinstance(key, str) or not key or len(key) > MAX_METADATA_KEY or "\0" in key:
            raise PydanticCustomError("metadata", "must have keys of 1 to 64 characters without U+0000")
        if not isinstance(text, str) or len(text) > MAX_METADATA_VALUE or "\0" in text:
            raise PydanticCustomError(
                "metadata",
                "must be a string of at most 512 characters without U+0000",
                {"param": f"metadata.{key}"},
            )
    return pairs


Metadata = Annotated[dict[str, str], BeforeValidator(_check_metadata)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenLimit = Annotated[Integer, Field(ge=1, le=MAX_SAFE_INTEGER)]


class ChatCompletionRequest(BaseModel):
    """A chat completion to make. Parameters that are not declared here are kept, for the provider."""

    model_config = _STRICT

    model: Annotated[
        str, Field(min_length=1, max_length=MAX_MODEL_LENGTH, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")
    ]
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Integer, Field(ge=1, le=MAX_SAFE_INTEGER)] | None = None
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Annotated[Integer, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)] | None = None
    stop: Stop | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    user: Annotated[str, BeforeValidator(_no_nul)] | None = None
    #: Ours: whether the answer can be read and listed later.
    store: bool = True
    #: Ours: labels to list completions by.
    metadata: Metadata | None = None
    #: Ours: the deadline in seconds after acceptance.
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_means_omitted(cls, data: Any) -> Any:
        if isinstance(data, dict):
            sent = cast("dict[str, Any]", data)
            return {name: value for name, value in sent.items() if value is not None}
        return data

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if (
            self.max_tokens is not None
            and self.max_completion_tokens is not None
            and self.max_tokens != self.max_completion_tokens
        ):
            raise PydanticCustomError(
                "token_limits",
                "must equal 'max_tokens', or send only one of the two",
                {"param": "max_completion_tokens"},
            )
        if self.top_logprobs is not None and self.logprobs is not True:
            raise PydanticCustomError(
                "top_logprobs", "needs 'logprobs' to be true", {"param": "top_logprobs"}
            )
        for position, message in enumerate(self.messages):
            if message["role"] == "assistant" and message.get("content") is None and message.keys() <= _BARE:
                raise PydanticCustomError(
                    "assistant",
                    "is required in an assistant message without tool calls",
                    {"param": f"messages[{position}].content"},
                )
        return self

    @property
    def token_limit(self) -> int | None:
        """The most tokens that one choice may have, under whichever name it was sent."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def n_choices(self) -> int:
        return 1 if self.n is None else self.n

    def params(self) -> dict[str, Any]:
        """What was sent, as JSON-able values, without top-level nulls; nested nulls are kept.

        The dict is new, its values are shared with this request: don't change them in place.
        """
        sent = self.model_fields_set
        params = {name: value for name, value in self.__dict__.items() if name in sent}
        if self.model_extra:
            params.update(self.model_extra)
        return params


class _Labels(BaseModel):
    model_config = _STRICT

    metadata: Metadata | None = None


#: An assistant message with no other field than these says nothing when its content is null.
_BARE = frozenset({"role", "name", "content"})


def parse_request(body: bytes) -> ChatCompletionRequest:
    """The request in an HTTP body. Raises InvalidRequest, which names the field (``messages[0].content``)."""
    if not body or body.isspace():
        raise InvalidRequest(
            "The body is empty. Send a JSON object with 'model' and 'messages'.", code="invalid_json"
        )
    return _validated(_decoded(body))


def _decoded(body: bytes) -> Any:
    try:
        # The first one tells line and column and bounds the depth. The second one refuses 1e999, of which the
        # first makes infinity.
        value = from_json(body, allow_inf_nan=False)
        msgspec.json.decode(body)
    except msgspec.MsgspecError:
        raise _not_json("a number is out of range") from None
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)) from None
    return value


def validate_request(obj: Mapping[str, Any]) -> ChatCompletionRequest:
    """The request in a decoded JSON object, such as the ``body`` of a batch row, under the rules for an HTTP body.

    Raises InvalidRequest.
    """
    return parse_request(_encoded(obj))


def _encoded(obj: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(obj, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise _not_json("a string holds half of a surrogate pair") from None
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise _not_json(str(error)) from None


def validate_metadata(value: Any) -> dict[str, str] | None:
    """The labels in a decoded JSON value, under the rules for a request's ``metadata``.

    Raises InvalidRequest.
    """
    try:
        return _Labels.model_validate(_decoded(_encoded({"metadata": value}))).metadata
    except ValidationError as error:
        raise _invalid(error) from None


def _not_json(reason: str) -> InvalidRequest:
    if "surrogate" in reason or "hex escape" in reason:
        reason += " (an escaped surrogate must be one of a pair)"
    return InvalidRequest(f"The body is not valid JSON: {reason}.", code="invalid_json")


def _json_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "a number"


def _validated(value: Any) -> ChatCompletionRequest:
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_json_name(value)}.")
    try:
        return ChatCompletionRequest.model_validate(value)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    first, *others = error.errors(include_url=False, include_input=False)
    param, sentence = explain(first)
    if others:
        sentence += f" ({len(others)} more {'error' if len(others) == 1 else 'errors'}.)"
    return InvalidRequest(sentence, param=param)
