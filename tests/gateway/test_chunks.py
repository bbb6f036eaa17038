"""What is in the chunks that clients see, whatever the provider sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.api import Api, ordered, text_of
from tests.support.orders import TOOL_CALLS
from tests.support.stack import Stack


def chunks(api: Api, endpoint: str, **more: Any) -> list[dict[str, Any]]:
    """The chunks of a new completion on one of the two endpoints."""
    whole = api.seed(**more) if endpoint == "seed" else api.openai(**more)
    return [data for data in whole.data if isinstance(data, dict)]


both = pytest.mark.parametrize("endpoint", ["seed", "openai"])


@both
def test_every_choice_has_a_finish_reason(api: Api, endpoint: str) -> None:
    """Null until the choice ends, also where the provider leaves it out."""
    raw = [
        {"choices": [{"index": 0, "delta": {"content": "a"}}]},
        {"choices": [{"index": 0, "delta": {"content": "b"}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    found = chunks(api, endpoint, fake={"raw_chunks": raw})
    assert [c["choices"][0]["finish_reason"] for c in found] == [None, None, "stop"]


@both
@pytest.mark.parametrize(
    ("asked", "provider", "model"),
    [
        ("fake", "fake", "fake"),
        ("fake:fake-b", "fake", "fake-b"),
        ("llama3:8b", "fake", "llama3:8b"),
        ("ft:gpt-4o:org::id", "fake", "ft:gpt-4o:org::id"),
        ("fake:llama3:8b", "fake", "llama3:8b"),
        ("org/model-1", "fake", "org/model-1"),
        ("listed:only-here", "listed", "only-here"),
        ("silent:whatever/it:takes", "silent", "whatever/it:takes"),
        ("auto", "fake", "fake"),
        ("team/best", "fake", "org/model-1"),
    ],
)
def test_chunks_name_the_model_as_asked_and_as_resolved(
    api: Api, endpoint: str, asked: str, provider: str, model: str
) -> None:
    """``model`` is what the client sent; what it means stands beside it."""
    for chunk in chunks(api, endpoint, model=asked):
        assert (chunk["model"], chunk["resolved_provider"], chunk["resolved_model"]) == (
            asked,
            provider,
            model,
        )


@both
def test_id_and_created_are_ours_and_the_same_in_all(api: Api, endpoint: str) -> None:
    """The provider's own id and time are no use to anybody."""
    found = chunks(api, endpoint)
    assert len({(c["id"], c["created"]) for c in found}) == 1
    assert found[0]["id"].startswith("chatcmpl-")
    assert found[0]["id"] != "chatcmpl-fake"


@both
def test_reasoning_appears_under_both_names(api: Api, endpoint: str) -> None:
    """``reasoning_content`` as it came, and the same as ``reasoning``."""
    found = chunks(api, endpoint, fake={"reasoning": 3, "chunks": 2})
    deltas = [c["choices"][0]["delta"] for c in found if c["choices"]]
    said = [d for d in deltas if "reasoning_content" in d]
    assert "".join(d["reasoning_content"] for d in said) == " think0 think1 think2"
    assert all(d["reasoning"] == d["reasoning_content"] for d in said)
    assert text_of(found) == ordered(2)


@both
def test_reasoning_beside_content_keeps_both(api: Api, endpoint: str) -> None:
    """A delta with several fields loses none."""
    delta = {"content": "x", "reasoning_content": "y"}
    found = chunks(api, endpoint, fake={"deltas": [delta]})
    assert {"content": "x", "reasoning_content": "y", "reasoning": "y"} in [
        c["choices"][0]["delta"] for c in found if c["choices"]
    ]


def test_logprobs_have_the_flat_keys_on_the_seeds_endpoint(api: Api) -> None:
    """OpenAI's keys and the flat ones, one row a token."""
    found = chunks(
        api, "seed", logprobs=True, top_logprobs=2, fake={"logprobs": True, "pieces": [" one", " two"]}
    )
    probs = [c["choices"][0]["logprobs"] for c in found if c["choices"] and c["choices"][0].get("logprobs")]
    assert [p["tokens"] for p in probs] == [[" one"], [" two"]]
    for p in probs:
        (row,) = p["content"]
        assert p["token_logprobs"] == [row["logprob"]]
        assert p["top_logprobs"] == [{t["token"]: t["logprob"] for t in row["top_logprobs"]}]
        assert p["text_offset"] == [0]


def test_logprobs_are_openais_alone_on_openais_endpoint(api: Api) -> None:
    """Strict clients see nothing that OpenAI doesn't send."""
    found = chunks(api, "openai", logprobs=True, fake={"logprobs": True, "pieces": [" one"]})
    (probs,) = [
        c["choices"][0]["logprobs"] for c in found if c["choices"] and c["choices"][0].get("logprobs")
    ]
    assert set(probs) == {"content", "refusal"}


@both
def test_fields_that_nobody_knows_survive(api: Api, endpoint: str) -> None:
    """In the chunk, in the choice and in the delta."""
    extra = {"service_tier": "x", "vendor": {"deep": [1, None, {"a": 1e-9}]}}
    found = chunks(api, endpoint, fake={"extra": extra, "deltas": [{"content": "a", "mood": "fine"}]})
    assert all(c["service_tier"] == "x" and c["vendor"] == extra["vendor"] for c in found)
    assert any(c["choices"] and c["choices"][0]["delta"].get("mood") == "fine" for c in found)


@both
def test_tool_calls_come_as_sent_and_fold_into_whole_ones(api: Api, endpoint: str) -> None:
    """Fragments in the stream; joined by index in the plain answer."""
    found = chunks(api, endpoint, fake={"tool_calls": True})
    parts = [p for c in found if c["choices"] for p in c["choices"][0]["delta"].get("tool_calls", ())]
    for index, (call_id, name, arguments) in enumerate(TOOL_CALLS):
        mine = [p for p in parts if p["index"] == index]
        assert (mine[0]["id"], mine[0]["function"]["name"]) == (call_id, name)
        assert "".join(p["function"]["arguments"] for p in mine) == "".join(arguments)
    message = api.plain(fake={"tool_calls": True}).json()["choices"][0]
    assert message["finish_reason"] == "tool_calls"
    assert [
        (c["id"], c["function"]["name"], c["function"]["arguments"]) for c in message["message"]["tool_calls"]
    ] == [(call_id, name, "".join(arguments)) for call_id, name, arguments in TOOL_CALLS]


@both
def test_several_choices_stay_apart(api: Api, endpoint: str) -> None:
    """Each with its own text and finish reason."""
    found = chunks(api, endpoint, n=3)
    assert [text_of(found, choice) for choice in range(3)] == [
        ordered(),
        "".join(f" tok{i}'1" for i in range(10)),
        "".join(f" tok{i}'2" for i in range(10)),
    ]
    ends = [p["index"] for c in found for p in c["choices"] if p["finish_reason"] == "stop"]
    assert sorted(ends) == [0, 1, 2]
    assert len(api.plain(n=3).json()["choices"]) == 3


@both
@pytest.mark.parametrize(
    "pieces",
    [
        ["größer ", "水", "👩‍👩‍👧", "\u0000", "\u2028", '"\\', "\n\ndata: no\r\n", "", " "],
        ["\ud800", "a\udfffb"],
    ],
    ids=["unicode", "lone surrogates"],
)
def test_any_text_survives(each_stack: Stack, each_api: Api, endpoint: str, pieces: list[str]) -> None:
    """What JSON can say reaches the reader as it was said, live and from the books."""
    api = each_api
    # Word for word, for a request can't hold half of a surrogate pair.
    choices: list[dict[str, Any]] = [{"index": 0, "delta": {"content": piece}} for piece in pieces]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    raw = "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices)
    whole = api.seed(fake={"raw": raw}) if endpoint == "seed" else api.openai(fake={"raw": raw})
    assert whole.text == "".join(pieces)
    for _ in ("Redis", "the books"):
        assert api.stored(whole.id)["choices"][0]["message"]["content"] == "".join(pieces)
        each_stack.forget(whole.id)


@both
def test_numbers_survive(api: Api, endpoint: str) -> None:
    """Integers over 64 bits and floats as they are."""
    extra = {"big": 10**30, "small": 5e-324, "float": 1.0, "negative": -(2**63) - 1}
    for chunk in chunks(api, endpoint, fake={"extra": extra}):
        assert {name: chunk[name] for name in extra} == extra
        assert isinstance(chunk["float"], float)


def test_usage_of_a_provider_passes_as_it_is(api: Api) -> None:
    """With fields that we don't count."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "vendor_credits": 0.5}
    whole = api.seed(fake={"usage": usage})
    assert [d["usage"] for d in whole.data if isinstance(d, dict) and "usage" in d] == [usage]
    assert api.stored(whole.id)["usage"] == usage
