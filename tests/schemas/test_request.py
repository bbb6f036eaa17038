"""The request: what is let through untouched, and how what is wrong is named."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.errors import InvalidRequest
from schemas.request import ChatCompletionRequest, parse_request, validate_request

MINIMAL: dict[str, Any] = {"model": "local:m", "messages": [{"role": "user", "content": "Why?"}]}


def encoded(**params: Any) -> bytes:
    return json.dumps({**MINIMAL, **params}).encode()


def refused(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(body)
    assert caught.value.http_status == 400
    assert "\n" not in caught.value.message
    assert "<" not in caught.value.message
    return caught.value


def message_refused(message: Any) -> InvalidRequest:
    return refused(encoded(messages=[{"role": "system", "content": "Be brief."}, message]))


# -- What goes through

FULL: dict[str, Any] = {
    "model": "ft:gpt-4o:org::id",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "d"}]},
        {
            "role": "user",
            "name": "eve",
            "content": [
                {"type": "text", "text": "u", "cache_control": {"type": "ephemeral", "ttl": None}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                {"type": "file", "file": {"file_id": "file-1", "filename": None}},
                {"type": "video_url", "video_url": {"url": "https://example.org/v"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "because",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{not json"}},
                {"id": "b", "type": "custom", "custom": {"name": "g", "input": "x"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "2"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "refusal": None},
        {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
        {"role": "function", "name": "f", "content": None},
    ],
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {"default": None}, "strict": None}},
        {"type": "custom", "custom": {"name": "g"}},
        {"type": "web_search", "anything": [1]},
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "stream": True,
    "stream_options": {"include_usage": None, "include_obfuscation": False},
    "n": 2,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "temperature": 0,
    "top_p": 1,
    "frequency_penalty": -2,
    "presence_penalty": 2.0,
    "seed": -9007199254740991,
    "stop": ["a", "b", "c", "d"],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object", "const": None}, "strict": True},
    },
    "logprobs": True,
    "top_logprobs": 20,
    "reasoning_effort": "xhigh",
    "user": "u",
    "store": False,
    "metadata": {"k" * 64: "v" * 512},
    "timeout": 0.5,
    "logit_bias": {"50256": -100},
    "huge": 2**80,
    "params": {"schema": [None]},
}


def test_a_full_request_comes_out_as_it_went_in() -> None:
    """Every parameter, every role and every part survives, with extra fields and nested nulls."""
    assert parse_request(json.dumps(FULL).encode()).params() == FULL


def test_each_way_in_gives_the_same_request() -> None:
    """A body, a decoded object and keyword arguments make equal requests."""
    assert parse_request(json.dumps(FULL).encode()) == validate_request(FULL) == ChatCompletionRequest(**FULL)


def test_a_top_level_null_means_omitted() -> None:
    """Nulls at the top are as if never sent, for known and unknown parameters alike."""
    request = parse_request(encoded(temperature=None, store=None, metadata=None, unknown=None))
    assert request.params() == MINIMAL
    assert request.store is True


def test_defaults_are_not_sent() -> None:
    """What the client left out stays out of the parameters, and reads as its default."""
    request = parse_request(encoded())
    assert request.params() == MINIMAL
    assert (request.store, request.n_choices, request.token_limit) == (True, 1, None)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_token_limit_has_two_names(name: str) -> None:
    """The limit reads the same under either name; an integral float is an integer."""
    request = parse_request(encoded(**{name: 100.0}))
    assert request.token_limit == 100
    assert type(request.params()[name]) is int


def test_unknown_parameters_may_have_any_name() -> None:
    """A parameter named like something of Python's or pydantic's is only a parameter."""
    strange = {"__class__": 1, "__dict__": {}, "self": 2, "model_extra": 3, "model_config": {}, "copy": []}
    assert parse_request(encoded(**strange)).params() == {**MINIMAL, **strange}


def test_a_repeated_key_takes_the_last_value() -> None:
    """The last of several equal keys counts, as in most readers of JSON."""
    body = b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}'
    assert parse_request(body).model == "b"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_any_extra_json_survives(extra: dict[str, Any]) -> None:
    """Whatever JSON stands in extra fields comes out as it went in, but for nulls at the top."""
    body = {"x-" + name: value for name, value in extra.items()}
    request = parse_request(json.dumps({**MINIMAL, **body}).encode())
    sent = {name: value for name, value in body.items() if value is not None}
    assert request.params() == {**MINIMAL, **sent}
    assert json.dumps(request.params(), sort_keys=True) == json.dumps({**MINIMAL, **sent}, sort_keys=True)


# -- What does not


@pytest.mark.parametrize(
    ("params", "param", "message"),
    [
        ({"model": None}, "model", "'model' is required."),
        ({"model": ""}, "model", "'model' must not be empty."),
        ({"model": "m" * 257}, "model", "'model' must have at most 256 characters."),
        ({"model": "a\nb"}, "model", "'model' must not contain control characters."),
        ({"model": "a\n"}, "model", "'model' must not contain control characters."),
        ({"model": "a\x85"}, "model", "'model' must not contain control characters."),
        ({"messages": None}, "messages", "'messages' is required."),
        ({"messages": []}, "messages", "'messages' must not be empty."),
        ({"messages": "Why?"}, "messages", "'messages' must be an array."),
        ({"messages": {"0": {}}}, "messages", "'messages' must be an array."),
        ({"temperature": 2.1}, "temperature", "'temperature' must be at most 2."),
        ({"temperature": -0.1}, "temperature", "'temperature' must be at least 0."),
        ({"temperature": "0.5"}, "temperature", "'temperature' must be a number."),
        ({"temperature": True}, "temperature", "'temperature' must be a number."),
        ({"temperature": 10**400}, "temperature", "'temperature' must be a number."),
        ({"top_p": 1.01}, "top_p", "'top_p' must be at most 1."),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "'frequency_penalty' must be at least -2."),
        ({"presence_penalty": 2.5}, "presence_penalty", "'presence_penalty' must be at most 2."),
        ({"n": 0}, "n", "'n' must be at least 1."),
        ({"n": True}, "n", "'n' must be an integer."),
        ({"n": 1.5}, "n", "'n' must be an integer."),
        ({"max_tokens": 0}, "max_tokens", "'max_tokens' must be at least 1."),
        ({"max_tokens": "9"}, "max_tokens", "'max_tokens' must be an integer."),
        ({"max_tokens": 1e300}, "max_tokens", "'max_tokens' must be at most 9007199254740991."),
        ({"seed": 2**53}, "seed", "'seed' must be at most 9007199254740991."),
        ({"seed": -(2**53)}, "seed", "'seed' must be at least -9007199254740991."),
        ({"stop": list("abcde")}, "stop", "'stop' must have at most 4 items."),
        ({"stop": 3}, "stop", "'stop' must be a string or an array of up to 4 strings."),
        ({"stop": ["a", None]}, "stop[1]", "'stop[1]' must be a string."),
        ({"logprobs": 1}, "logprobs", "'logprobs' must be true or false."),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "'top_logprobs' must be at most 20."),
        ({"top_logprobs": 0}, "top_logprobs", "'top_logprobs' needs 'logprobs' to be true."),
        ({"stream": "true"}, "stream", "'stream' must be true or false."),
        ({"stream_options": True}, "stream_options", "'stream_options' must be an object."),
        ({"store": 0}, "store", "'store' must be true or false."),
        ({"user": 7}, "user", "'user' must be a string."),
        ({"user": "a\0b"}, "user", "'user' must not contain U+0000."),
        ({"timeout": 0}, "timeout", "'timeout' must be greater than 0."),
        ({"timeout": 1e300}, "timeout", "'timeout' must be at most 2592000."),
        ({"metadata": []}, "metadata", "'metadata' must be an object."),
        (
            {"metadata": dict.fromkeys(map(str, range(17)), "")},
            "metadata",
            "'metadata' must have at most 16 pairs.",
        ),
        (
            {"metadata": {"k" * 65: ""}},
            "metadata",
            "'metadata' must have keys of 1 to 64 characters without U+0000.",
        ),
        (
            {"metadata": {"a": 1}},
            "metadata.a",
            "'metadata.a' must be a string of at most 512 characters without U+0000.",
        ),
        (
            {"metadata": {"a": "\0"}},
            "metadata.a",
            "'metadata.a' must be a string of at most 512 characters without U+0000.",
        ),
        (
            {"max_tokens": 5, "max_completion_tokens": 6},
            "max_completion_tokens",
            "'max_completion_tokens' must equal 'max_tokens', or send only one of the two.",
        ),
        (
            {"reasoning_effort": "lots"},
            "reasoning_effort",
            "'reasoning_effort' must be 'none', 'minimal', 'low', 'medium', 'high', 'xhigh' or 'max'.",
        ),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type",
            "'response_format.type' must be 'text', 'json_object' or 'json_schema'.",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "'response_format.json_schema' is required.",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": "{}"}}},
            "response_format.json_schema.schema",
            "'response_format.json_schema.schema' must be an object.",
        ),
        ({"tools": {}}, "tools", "'tools' must be an array."),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "'tools[0].function' is required."),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": "{}"}}]},
            "tools[0].function.parameters",
            "'tools[0].function.parameters' must be an object.",
        ),
        ({"tool_choice": "any"}, "tool_choice", "'tool_choice' must be 'none', 'auto' or 'required'."),
        (
            {"tool_choice": ["f"]},
            "tool_choice",
            "'tool_choice' must be 'none', 'auto', 'required' or an object that names a tool.",
        ),
        (
            {"tool_choice": {"type": "function"}},
            "tool_choice.function",
            "'tool_choice.function' is required.",
        ),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any], param: str, message: str) -> None:
    """The error names the field in ``param`` and says in one sentence what to send instead."""
    error = refused(encoded(**params))
    assert (error.param, error.message) == (param, message)
    assert error.code == "invalid_request"


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        ("hello", "", "must be an object."),
        (None, "", "must be an object."),
        ({"role": "user"}, ".content", "is required."),
        ({"role": "user", "content": None}, ".content", "must be a string or an array of content parts."),
        (
            {"role": "user", "content": {"type": "text"}},
            ".content",
            "must be a string or an array of content parts.",
        ),
        ({"role": "user", "content": ["x"]}, ".content[0]", "must be an object."),
        ({"role": "user", "content": [{"text": "x"}]}, ".content[0].type", "is required."),
        ({"role": "user", "content": [{"type": 5}]}, ".content[0].type", "must be a string."),
        ({"role": "user", "content": [{"type": {}}]}, ".content[0].type", "must be a string."),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text", "is required."),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "https://example.org/i"}]},
            ".content[0].image_url",
            "must be an object.",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "x"}, {"type": "input_audio", "input_audio": {}}],
            },
            ".content[1].input_audio.data",
            "is required. (1 more error.)",
        ),
        (
            {"role": "user", "user": 1, "content": 2},
            ".content",
            "must be a string or an array of content parts.",
        ),
        ({"role": "user", "content": "x", "name": 3}, ".name", "must be a string."),
        ({"role": "tool", "content": "x"}, ".tool_call_id", "is required."),
        ({"role": "function", "content": "x"}, ".name", "is required."),
        ({"role": "assistant"}, ".content", "is required in an assistant message without tool calls."),
        (
            {"role": "assistant", "content": None, "name": "a"},
            ".content",
            "is required in an assistant message without tool calls.",
        ),
        ({"role": "assistant", "tool_calls": "f"}, ".tool_calls", "must be an array."),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, ".tool_calls[0].function", "is required."),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]},
            ".tool_calls[0].function.arguments",
            "must be a string.",
        ),
    ],
)
def test_a_wrong_message_is_named(message: Any, field: str, words: str) -> None:
    """The error speaks of the shape that the message's role and the part's type ask for, and of no other."""
    error = message_refused(message)
    assert (error.param, error.message) == (f"messages[1]{field}", f"'messages[1]{field}' {words}")


@pytest.mark.parametrize("role", ["robot", "", 5, None, [], {}])
def test_an_unknown_role_is_told_the_known_ones(role: Any) -> None:
    """Whatever stands in ``role``, the error lists the six that are known."""
    error = message_refused({"role": role, "content": "x"})
    assert error.param == "messages[1].role"
    assert "'system', 'developer', 'user', 'assistant', 'tool' or 'function'" in error.message


def test_the_first_of_several_errors_is_told_and_the_others_counted() -> None:
    """One error at a time, with a count so that nobody thinks it is the last."""
    error = refused(encoded(temperature=9, top_p=9, n=0))
    assert error.param == "n"
    assert error.message == "'n' must be at least 1. (2 more errors.)"


def test_a_million_wrong_messages_are_one_error() -> None:
    """Checking stops at the first wrong message, so a hostile body makes no million errors."""
    error = refused(b'{"model":"m","messages":[' + b",".join([b"0"] * 1_000_000) + b"]}")
    assert error.param == "messages[0]"


# -- Bodies that are no request


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The body is empty."),
        (b" \r\n\t", "The body is empty."),
        (b'{"model": ', "line 1 column 10"),
        (b'{\n  "model": "m",\n}', "line 3 column 1"),
        (b"{} {}", "trailing characters at line 1 column 4"),
        (b"\xff\xfe", "line 1 column 1"),
        (b'{"model": "\xff"}', "unicode"),
        (b'{"model": "\xed\xa0\x80"}', "unicode"),
        (b'{"model": "a\nb"}', "control character"),
        (b'{"model": "\\ud800"}', "an escaped surrogate must be one of a pair"),
        (b'{"model": "\\udc00"}', "an escaped surrogate must be one of a pair"),
        (b'{"model": "\\ud83dx"}', "an escaped surrogate must be one of a pair"),
        (b'{"temperature": NaN}', "line 1 column 17"),
        (b'{"temperature": Infinity}', "line 1 column 17"),
        (b'{"x": [1e999]}', "a number is out of range"),
        (b'{"x": -1e400}', "a number is out of range"),
        (b'{"x": ' + b"9" * 5000 + b"}", "number out of range"),
        (b"[" * 100_000, "recursion limit"),
        (b'{"x":' * 100_000, "recursion limit"),
        (b'{"x": ' + b"[" * 250 + b"]" * 250 + b"}", "recursion limit"),
    ],
)
def test_what_is_not_json_is_told_where(body: bytes, words: str) -> None:
    """Broken JSON gets a code of its own and the place where it breaks; no depth or number blows anything up."""
    error = refused(body)
    assert error.code == "invalid_json"
    assert error.param is None
    assert words in error.message


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"[]", "an array"),
        (b"null", "null"),
        (b"1", "a number"),
        (b'"x"', "a string"),
        (b"true", "a boolean"),
    ],
)
def test_json_that_is_no_object_is_told_so(body: bytes, name: str) -> None:
    """A body that is JSON but no object is told what it is."""
    assert refused(body).message == f"The body must be a JSON object, not {name}."


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    """Any bytes are a request or an InvalidRequest."""
    with pytest.raises(InvalidRequest):
        parse_request(body)


@given(
    st.dictionaries(
        st.sampled_from(sorted(ChatCompletionRequest.model_fields)),
        json_values | st.sampled_from(list(FULL.values())),
    )
)
def test_no_values_raise_anything_else(params: dict[str, Any]) -> None:
    """Any JSON in any known parameter is taken or refused by name; what is taken is what was sent."""
    body = {**MINIMAL, **params}
    try:
        request = parse_request(json.dumps(body).encode())
    except InvalidRequest as error:
        assert error.param
        assert error.param.split(".")[0].split("[")[0] in ChatCompletionRequest.model_fields
    else:
        assert request.params() == {name: value for name, value in body.items() if value is not None}


# -- Decoded objects


@pytest.mark.parametrize(
    "value", ["\ud800", ["\udc00"], {"\ud800": 1}, math.nan, math.inf, b"bytes", {1, 2}, object()]
)
def test_a_decoded_object_has_to_be_json_too(value: Any) -> None:
    """Python values that JSON can't say are refused before anything is sent on."""
    with pytest.raises(InvalidRequest) as caught:
        validate_request({**MINIMAL, "x": value})
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("depth", [250, 800, 100_000])
def test_a_decoded_object_may_not_be_bottomless(depth: int) -> None:
    """An object as deep as a body may not be is an invalid request too, and no RecursionError."""
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    with pytest.raises(InvalidRequest, match=r"nested too deeply|recursion limit"):
        validate_request({**MINIMAL, "x": deep})


def test_errors_read_the_same_for_a_decoded_object() -> None:
    """A batch row is refused in the words that a body is refused in."""
    with pytest.raises(InvalidRequest) as caught:
        validate_request({**MINIMAL, "temperature": 3})
    assert (caught.value.param, caught.value.message) == ("temperature", "'temperature' must be at most 2.")


def test_python_callers_get_pydantics_own_error() -> None:
    """Building a request from keywords raises what any pydantic model raises."""
    with pytest.raises(ValidationError):
        ChatCompletionRequest(model="m", messages=[])


def test_the_request_has_a_json_schema() -> None:
    """OpenAPI can show the request: its parameters, what is required, and that more are let through."""
    schema = ChatCompletionRequest.model_json_schema()
    assert schema["required"] == ["model", "messages"]
    assert schema["additionalProperties"] is True
    assert set(FULL) - {"logit_bias", "huge", "params"} == set(schema["properties"])
