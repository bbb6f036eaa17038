"""Requests and what becomes of them: arms, rows, their digests, and lines of a batch's output as samples."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.evaluation.outcomes import sample_of
from tailrace.evaluation.requests import arms, digest, file_name, row
from tailrace.evaluation.shapes import Arm, Failure, Item, Outcome, Record, Sample
from tailrace.evaluation.suite import Dataset, Exact, Model, Prompt, Suite
from tailrace.evaluation.thoughts import split_thought

ITEM = Item(id="q/1", input="q", targets=(), metadata={}, columns={"input": "q"}, category="sums")
MESSAGES = [{"role": "user", "content": "q"}]
ARM = Arm(key="a", model=Model(model="p:m", name="a"), prompt=Prompt(name="plain"), params={"temperature": 0})


def suite(
    models: list[Model], prompts: list[Prompt] | None = None, params: dict[str, Any] | None = None
) -> Suite:
    return Suite(
        name="s",
        dataset=Dataset.model_validate({"path": "d"}),
        models=tuple(models),
        prompts=tuple(prompts or [Prompt()]),
        params=params or {},
        scorers=(Exact(),),
    )


# --------------------------------------------------------------------------------------------------- arms


def test_an_arm_is_a_model_or_a_model_under_one_of_several_prompts() -> None:
    models = [Model(model="p:m"), Model(model="p:m", name="warm", params={"temperature": 1})]
    one = arms(suite(models, params={"temperature": 0, "seed": 3}))
    assert [(arm.key, arm.params) for arm in one] == [
        ("p:m", {"temperature": 0, "seed": 3}),
        ("warm", {"temperature": 1, "seed": 3}),
    ]
    several = arms(suite(models, [Prompt(name="x"), Prompt(name="y")]))
    assert [arm.key for arm in several] == ["p:m/x", "p:m/y", "warm/x", "warm/y"]
    assert [arm.prompt.name for arm in several] == ["x", "y", "x", "y"]


_keys = st.text(st.sampled_from("aAbB/:.-_~ ä\n"), min_size=1, max_size=5)


@given(
    st.lists(_keys, min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(["a", "A", "b.c", "a-b"]), min_size=1, max_size=3, unique=True),
)
def test_keys_of_arms_are_unique_and_so_are_their_files(labels: list[str], prompts: list[str]) -> None:
    found = arms(suite([Model(model=label) for label in labels], [Prompt(name=name) for name in prompts]))
    keys = [arm.key for arm in found]
    assert len(set(keys)) == len(keys) == len(labels) * len(prompts)
    assert len({file_name(key).lower() for key in keys}) == len(keys)


@given(st.text(max_size=300))
def test_a_file_name_is_safe_anywhere(key: str) -> None:
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._~-]{0,119}", file_name(key))


def test_a_file_name_can_be_read() -> None:
    assert file_name("smollm2-135m") == "smollm2-135m"
    assert file_name("openai:GPT-4o/plain").startswith("openai-gpt-4o-plain~")


# --------------------------------------------------------------------------------------------------- rows


def test_a_row_is_a_line_of_a_batch() -> None:
    assert row(ARM, ITEM, 2, MESSAGES) == {
        "custom_id": "q/1/2",
        "method": "POST",
        "url": "/v1/chat/completions",
        "headers": {"x-sample": "2"},
        "body": {"model": "p:m", "messages": MESSAGES, "temperature": 0},
    }
    assert row(ARM, ITEM, 0, MESSAGES, fresh=True)["headers"] == {
        "x-sample": "0",
        "Cache-Control": "no-cache",
    }


def test_rows_that_ask_the_same_have_equal_digests() -> None:
    other = Item(id="another", input="q", targets=("x",), metadata={}, columns={})
    renamed = Arm(key="b", model=Model(model="p:m"), prompt=Prompt(name="other"), params={"temperature": 0})
    asked = digest(row(ARM, ITEM, 0, MESSAGES))
    assert digest(row(renamed, other, 0, [{"content": "q", "role": "user"}])) == asked
    assert digest(row(ARM, ITEM, 0, MESSAGES, fresh=True)) == asked
    assert re.fullmatch("[0-9a-f]{32}", asked)


def test_rows_that_differ_in_what_they_ask_have_other_digests() -> None:
    warm = Arm(key="a", model=ARM.model, prompt=ARM.prompt, params={"temperature": 1})
    large = Arm(key="a", model=Model(model="p:l"), prompt=ARM.prompt, params=ARM.params)
    rows = [
        row(ARM, ITEM, 0, MESSAGES),
        row(ARM, ITEM, 1, MESSAGES),
        row(warm, ITEM, 0, MESSAGES),
        row(large, ITEM, 0, MESSAGES),
        row(ARM, ITEM, 0, [{"role": "system", "content": "q"}]),
    ]
    assert len({digest(one) for one in rows}) == len(rows)


# ----------------------------------------------------------------------------------------------- outcomes


def line(
    message: dict[str, Any] | None = None,
    finish: str = "stop",
    record: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A line of a batch's output file."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message or {"content": "Four."}, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "completion_tokens_details": {"reasoning_tokens": 2},
            "prompt_tokens_details": {"cached_tokens": 5},
        },
    }
    whole = {
        "id": "batch_req_1",
        "custom_id": "q/1/0",
        "response": {"status_code": 200, "request_id": "req_1", "body": body},
        "error": None,
        "fingerprint": "f",
        **more,
    }
    return whole if record is None else {**whole, "record": record}


def failed(status: int, error: Any) -> dict[str, Any]:
    return line(response={"status_code": status, "request_id": "req_1", "body": {"error": error}})


def sample(line: dict[str, Any] | None) -> Sample:
    return sample_of(ARM, ITEM, 0, line, lambda text: text.startswith("I can't"))


def test_an_answer_is_a_sample_without_scores() -> None:
    assert sample(line()) == Sample(
        arm="a",
        model="p:m",
        prompt="plain",
        item="q/1",
        sample=0,
        category="sums",
        outcome=Outcome.ANSWERED,
        text="Four.",
        finish_reason="stop",
        completion_id="chatcmpl-1",
        record=Record(prompt_tokens=7, completion_tokens=3, reasoning_tokens=2, cached_tokens=5),
    )


def test_what_was_not_asked_is_missing() -> None:
    assert sample(None).outcome is Outcome.MISSING
    assert sample(None).text is None


@pytest.mark.parametrize(
    ("message", "finish", "outcome", "text"),
    [
        ({"content": "Fo"}, "length", Outcome.TRUNCATED, "Fo"),
        ({"content": "I can't"}, "length", Outcome.TRUNCATED, "I can't"),
        ({"content": "I can't help."}, "stop", Outcome.REFUSED, "I can't help."),
        ({"content": "Fo"}, "content_filter", Outcome.REFUSED, "Fo"),
        ({"content": None}, "content_filter", Outcome.REFUSED, ""),
        ({"content": None, "refusal": "No."}, "stop", Outcome.REFUSED, "No."),
        ({"content": "", "refusal": "No."}, "length", Outcome.REFUSED, "No."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "stop", Outcome.REFUSED, "No."),
        ({"content": "Four.", "refusal": ""}, "stop", Outcome.ANSWERED, "Four."),
        ({"content": None}, "stop", Outcome.ANSWERED, ""),
        ({"content": ""}, "length", Outcome.TRUNCATED, ""),
        ({"content": "<think>I can't</think>Four."}, "stop", Outcome.ANSWERED, "Four."),
        ({"content": "<think>Fine.</think>I can't."}, "stop", Outcome.REFUSED, "I can't."),
        ({"content": "<think>2 and 2"}, "length", Outcome.TRUNCATED, ""),
        ({"content": "<think>2 and 2"}, "stop", Outcome.ANSWERED, ""),
    ],
)
def test_what_became_of_a_request(message: dict[str, Any], finish: str, outcome: Outcome, text: str) -> None:
    found = sample(line(message, finish))
    assert (found.outcome, found.text, found.finish_reason) == (outcome, text, finish)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "Fo"}, {"text": "ur."}, {"type": "image_url"}, "odd"]}, "Four."),
        ({"content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": [1]}'}},
            {"id": "call_2", "type": "function", "function": {"name": "say", "arguments": "{half"}},
        ]}, '[{"name":"add","arguments":{"b":2,"a":[1]}},{"name":"say","arguments":"{half"}]'),
        ({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]},
         '[{"name":"f","arguments":""}]'),
        ({"content": "Text.", "tool_calls": [{"function": {"name": "f"}}]}, "Text."),
        ({"content": None, "tool_calls": ["nonsense"]}, '[{"name":null,"arguments":null}]'),
    ],
)  # fmt: skip
def test_an_answer_in_parts_or_of_calls_is_a_text(message: dict[str, Any], text: str) -> None:
    assert sample(line(message)).text == text


@pytest.mark.parametrize(
    ("message", "reasoning"),
    [
        ({"content": "4", "reasoning": "Hm."}, "Hm."),
        ({"content": "4", "reasoning_content": "Hm.", "reasoning": "Hm."}, "Hm."),
        ({"content": "<think>Hm.</think>4"}, "Hm."),
        ({"content": "<think>b</think>4", "reasoning": "a"}, "a\n\nb"),
        ({"content": [{"type": "thinking", "thinking": [{"text": "Hm."}]}, {"type": "text", "text": "4"}]}, "Hm."),
        ({"content": "4", "reasoning": ""}, None),
    ],
)  # fmt: skip
def test_reasoning_is_kept_apart(message: dict[str, Any], reasoning: str | None) -> None:
    found = sample(line(message))
    assert (found.text, found.reasoning) == ("4", reasoning)


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<think>a</think>b", "b", "a"),
        ("\n<think>\na\n</think>\n\nb\n", "b", "a"),
        ("<thinking>a</thinking> b", "b", "a"),
        ("\n<THINK>a</Think> b", "b", "a"),
        ("<reasoning>a</reasoning>b", "b", "a"),
        ("<thought>a</think>b", "", "a</think>b"),
        ("<think>a</think><think>c</think>b", "b", "a\n\nc"),
        ("<think></think>b", "b", None),
        ("<think>\n\n</think>\n\n{}", "{}", None),
        ("<think>a", "", "a"),
        ("<think>a</think><think>b", "", "a\n\nb"),
        ("a\n</think>\n\nb", "b", "a"),
        ("</think>\nb", "b", None),
        ("The tag <think>a</think> opens it.", "The tag <think>a</think> opens it.", None),
        ("It ends with </think>.", "It ends with </think>.", None),
        ("  kept  ", "  kept  ", None),
        ("", "", None),
    ],
)
def test_a_thought_is_split_from_its_answer(text: str, answer: str, reasoning: str | None) -> None:
    assert split_thought(text) == (answer, reasoning)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (
            failed(429, {"message": "Slow down.", "code": "rate_limit_exceeded"}),
            "rate_limit_exceeded",
            "Slow down.",
        ),
        (
            failed(400, {"message": "No.", "code": None, "type": "invalid_request_error"}),
            "invalid_request_error",
            "No.",
        ),
        (failed(502, {}), "http_502", "the server answered 502"),
        (failed(502, "text"), "http_502", "the server answered 502"),
        (failed(200, None), "invalid_answer", "the answer has no choices"),
        (line(response=None, error={"code": "batch_expired", "message": "Late."}), "batch_expired", "Late."),
        (line(response=None, error=None), "no_answer", "the row has neither an answer nor an error"),
        (line(error={"code": "odd", "message": "Both."}), "odd", "Both."),
    ],
)
def test_a_row_that_failed_says_why(line: dict[str, Any], code: str, message: str) -> None:
    found = sample(line)
    assert found.outcome is Outcome.ERROR
    assert found.error == Failure(code, message)
    assert found.completion_id == "chatcmpl-1"
    assert found.text is None


RECORD = {
    "cache": "miss",
    "cost_nano": "120000",
    "saved_nano": None,
    "prompt_tokens": 1,
    "completion_tokens": 2,
    "reasoning_tokens": 3,
    "cached_tokens": 4,
    "attempts": 5,
    "queue_ms": 6,
    "first_chunk_ms": 7,
    "duration_ms": 8,
}


def test_a_record_goes_before_the_answers_usage() -> None:
    assert sample(line(record=RECORD)).record == Record("miss", 120000, 120000, 1, 2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize(
    ("said", "cost", "answer_cost"),
    [
        ({"cache": "hit", "cost_nano": "0", "saved_nano": "99"}, 0, 99),
        ({"cache": "join", "cost_nano": "0", "saved_nano": "99"}, 0, 99),
        ({"cache": "hit", "cost_nano": "0", "saved_nano": None}, 0, None),
        ({"cache": "miss", "cost_nano": "5", "saved_nano": None}, 5, 5),
        ({"cache": "bypass", "cost_nano": "5", "saved_nano": "9"}, 5, 5),
        ({"cache": "miss", "cost_nano": None}, None, None),
        ({"cache": "miss", "cost_nano": "12345678901234567890"}, 12345678901234567890, 12345678901234567890),
    ],
)
def test_what_an_answer_costs_is_known_whoever_pays(
    said: dict[str, Any], cost: int | None, answer_cost: int | None
) -> None:
    found = sample(line(record={**RECORD, **said})).record
    assert (found.cost_nano, found.answer_cost_nano) == (cost, answer_cost)


def test_a_failed_row_has_its_record_too() -> None:
    one = {
        **failed(502, {"code": "x", "message": "y"}),
        "record": {**RECORD, "attempts": 3, "duration_ms": None},
    }
    assert sample(one).record.attempts == 3
    assert sample(one).record.duration_ms is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["response", "body", "choices", "message", "content", "tool_calls", "error", "record", "id"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["id", "response", "error", "record"]), _json),
    st.dictionaries(st.text(), _json),
)
def test_no_line_however_odd_is_an_exception(odd: dict[str, Any], message: dict[str, Any]) -> None:
    assert sample(odd).outcome in {Outcome.ERROR, Outcome.ANSWERED}
    assert sample(line(message)).outcome is not Outcome.MISSING
