"""Canonical JSON and the fingerprint: equal for equal questions, different for different ones."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.fingerprint import NOT_IN_ANSWER, canonical_json, fingerprint
from schemas.request import parse_request

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text()
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)

QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}


def print_of(sample: int | None = None, **params: Any) -> str:
    return fingerprint(tenant="t", provider="p", model="m", params={**QUESTION, **params}, sample=sample)


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values: Python's, but for True and 1, which differ in JSON."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def respelled(value: Any, dice: random.Random) -> Any:
    """The same JSON value in another spelling: other key order, 1.0 for 1, -0.0 for 0."""
    if isinstance(value, dict):
        items = list(value.items())
        dice.shuffle(items)
        return {key: respelled(item, dice) for key, item in items}
    if isinstance(value, list):
        return [respelled(item, dice) for item in value]
    if type(value) is int and abs(value) < 2**53 and dice.random() < 0.5:
        return -0.0 if value == 0 else float(value)
    return value


@given(json_values)
def test_canonical_json_is_still_the_value(value: Any) -> None:
    """Reading canonical JSON gives an equal value back."""
    assert same(json.loads(canonical_json(value)), value)


@given(json_values, st.randoms(use_true_random=False))
def test_another_spelling_has_the_same_canonical_json(value: Any, dice: random.Random) -> None:
    """Key order, 1.0 for 1, and -0.0 for 0 don't show."""
    assert canonical_json(respelled(value, dice)) == canonical_json(value)


@given(json_values, json_values)
def test_canonical_json_is_equal_only_for_equal_values(left: Any, right: Any) -> None:
    """Two values have the same canonical JSON exactly when they are equal."""
    assert (canonical_json(left) == canonical_json(right)) == same(left, right)


@given(json_values)
def test_canonical_json_is_a_fixed_point(value: Any) -> None:
    """What is canonical stays as it is."""
    once = canonical_json(value)
    assert canonical_json(json.loads(once)) == once


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e2, b"100"),
        (-0.0, b"0"),
        (1e22, b"10000000000000000000000"),
        (2**200, str(2**200).encode()),
        (0.1, b"0.1"),
        (True, b"true"),
        ({"b": 1, "a": [None, "é"]}, '{"a":[null,"é"],"b":1}'.encode()),
    ],
)
def test_canonical_spellings(value: Any, expected: bytes) -> None:
    """The spellings that other rooms and other languages can count on."""
    assert canonical_json(value) == expected


def test_a_lone_surrogate_has_a_spelling() -> None:
    """Half of a surrogate pair can be hashed, and differs from its other half."""
    assert canonical_json("\ud800") != canonical_json("\udc00")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_what_json_can_not_say_has_no_canonical_form(value: Any) -> None:
    """NaN and infinity are refused: they would give one fingerprint to different requests."""
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


@pytest.mark.parametrize(
    "params",
    [
        {"stream": True},
        {"stream_options": {"include_usage": True}},
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"timeout": 3},
        {"model": "an-alias"},
        {"n": 1},
        {"n": 1.0},
        {"temperature": None, "unknown": None},
        {"parallel_tool_calls": False},
        {"parallel_tool_calls": True, "tools": None},
    ],
)
def test_what_can_not_change_the_answer_does_not_show(params: dict[str, Any]) -> None:
    """Delivery, labels, nulls and defaults leave the fingerprint as it is."""
    assert print_of(**params) == print_of()


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"n": 2},
        {"seed": 1},
        {"max_tokens": 5},
        {"stop": "x"},
        {"unknown": False},
        {"unknown": {"nested": None}},
        {"messages": [{"role": "user", "content": "Why? "}]},
        {"messages": [{"role": "user", "content": "Why?", "name": None}]},
        {"messages": [{"role": "system", "content": "Why?"}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": False},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_what_can_change_the_answer_shows(params: dict[str, Any]) -> None:
    """Anything that a model could answer differently to gets a fingerprint of its own."""
    assert print_of(**params) != print_of()


def test_the_same_wish_said_in_two_ways_is_one() -> None:
    """Token limits under both names, one stop sequence with and without its list, 0 and 0.0."""
    assert print_of(max_tokens=9) == print_of(max_completion_tokens=9.0)
    assert print_of(max_tokens=9) == print_of(max_tokens=9, max_completion_tokens=9)
    assert print_of(stop="x") == print_of(stop=["x"])
    assert print_of(temperature=0) == print_of(temperature=-0.0)


def test_parallel_tool_calls_count_beside_tools() -> None:
    """With tools, whether they may be called together can change the answer."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert print_of(tools=tools, parallel_tool_calls=False) != print_of(tools=tools)


def test_tenant_provider_model_and_sample_have_places_of_their_own() -> None:
    """Nothing crosses tenants, providers, models or samples, and no two of them can stand in for each other."""
    base = {"tenant": "a", "provider": "b", "model": "c", "sample": None}
    variants = [
        base,
        base | {"tenant": "b", "provider": "a"},
        base | {"provider": "c", "model": "b"},
        base | {"tenant": "ab", "provider": ""},
        base | {"sample": 0},
        base | {"sample": 1},
    ]
    prints = {fingerprint(params=QUESTION, **variant) for variant in variants}  # type: ignore[arg-type]
    assert len(prints) == len(variants)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5))
def test_a_fingerprint_leaves_its_parameters_alone(params: dict[str, Any]) -> None:
    """The parameters are sent on after they were hashed, so hashing must not change them."""
    before = json.dumps(params)
    digest = fingerprint(tenant="t", provider="p", model="m", params=params, sample=None)
    assert json.dumps(params) == before
    assert len(digest) == 64
    assert int(digest, 16) >= 0


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(sorted(NOT_IN_ANSWER), json_values)),
    st.dictionaries(st.text(max_size=8), st.none(), max_size=3),
    st.randoms(use_true_random=False),
)
def test_no_spelling_nor_delivery_shows(
    delivery: dict[str, Any], nulls: dict[str, None], dice: random.Random
) -> None:
    """Whatever is said of fields that can't change the answer, nulls, and another spelling of the rest."""
    asked: dict[str, Any] = {"temperature": 0, "seed": 7, "logit_bias": {"5": -1, "9": 1.5}}
    more = {name: None for name in nulls if name not in {*asked, *QUESTION}} | delivery
    assert print_of(**respelled({**asked, **more}, dice)) == print_of(**asked)


answering = st.dictionaries(
    st.sampled_from(["temperature", "seed", "top_p", "tools", "logit_bias", "response_format", "unknown"]),
    json_values.filter(lambda value: value is not None),
    max_size=3,
)


@given(answering, answering)
def test_any_field_that_can_change_the_answer_shows(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Two requests are equal exactly when all of these fields are."""
    assert (print_of(**left) == print_of(**right)) == same(left, right)


def test_the_deepest_request_that_is_let_in_can_be_hashed() -> None:
    """Whatever depth and length of number the request's own checks allow, the fingerprint bears."""
    deep = b"[" * 199 + b"9" * 4300 + b"]" * 199
    request = parse_request(b'{"model":"m","messages":[{"role":"user","content":"Why?"}],"x":' + deep + b"}")
    assert print_of(**request.params()) != print_of()


def test_the_fingerprint_is_the_same_in_every_release() -> None:
    """A fingerprint is stored: if this value changes, VERSION has to change with it."""
    assert (
        print_of(temperature=0, stop="x", sample=3)
        == "2f25d45c2804269ef34355b4532ed69d33744418277cbf4a340e17dc614695d1"
    )
