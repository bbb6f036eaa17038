"""Folding: however a completion was cut into chunks, the fold puts it together again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from schemas.fold import Fold
from tests.support.completions import Cut, chunk, cuts, fold, piece, strange_chunk


def message(*deltas: dict[str, Any]) -> dict[str, Any]:
    """The message that a single choice's deltas fold into."""
    return fold(*(chunk({"index": 0, "delta": delta}) for delta in deltas))["choices"][0]["message"]


def called(*fragments: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Id, name and arguments of the tool calls that lists of fragments fold into."""
    calls = message(*({"tool_calls": one} for one in fragments))["tool_calls"]
    return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]


def fragment(arguments: str | None = None, *, name: str | None = None, **fields: Any) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**fields, "function": function}


# -- Any completion, cut any way


@given(cuts())
def test_a_completion_cut_into_chunks_folds_back(cut: Cut) -> None:
    """Cut anywhere and interleaved in any way, the chunks fold into the completion they came from."""
    whole, chunks = cut
    assert fold(*chunks) == whole


@given(cuts(in_turn=True))
def test_the_fold_agrees_with_the_openai_sdk(cut: Cut) -> None:
    """The SDK validates what we fold, and folds the same chunks into the same messages.

    It wants choices and tool calls to begin in the order of their indexes; ours need not.
    """
    _, chunks = cut
    ours = ChatCompletion.model_validate(fold(*chunks))
    state = ChatCompletionStreamState()
    for one in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(one))
    theirs = state.current_completion_snapshot
    for left, right in zip(ours.choices, theirs.choices, strict=True):
        assert left.finish_reason == right.finish_reason
        assert left.message.content == right.message.content
        assert left.message.refusal == right.message.refusal
        assert [call.model_dump() for call in left.message.tool_calls or ()] == [
            call.model_dump(include={"id", "type", "function"}, exclude={"function": {"parsed_arguments"}})
            for call in right.message.tool_calls or ()
        ]


@given(st.lists(strange_chunk, max_size=4))
def test_no_shape_of_a_chunk_raises(chunks: list[dict[str, Any]]) -> None:
    """Providers send strange things; a reader still gets a completion, and the chunks stay as they were."""
    before = repr(chunks)
    folded = fold(*chunks)
    assert repr(chunks) == before
    assert folded["object"] == "chat.completion"
    assert all("role" in choice["message"] for choice in folded["choices"])


@given(cuts(), st.data())
def test_a_completion_taken_on_the_way_is_not_touched_later(cut: Cut, data: st.DataObject) -> None:
    """Asking early changes nothing, and what was handed out stays as it was."""
    whole, chunks = cut
    middle = data.draw(st.integers(0, len(chunks)))
    folded = Fold()
    for one in chunks[:middle]:
        folded.add(one)
    early = folded.completion()
    kept = copy.deepcopy(early)
    for one in chunks[middle:]:
        folded.add(one)
    assert folded.completion() == whole
    assert early == kept


# -- Messages


def test_no_chunks_are_an_empty_completion() -> None:
    """Without a chunk there is a completion without choices and usage."""
    assert fold() == {"id": "", "object": "chat.completion", "created": 0, "model": "", "choices": []}


def test_content_is_null_where_none_came() -> None:
    """Null content stays null beside tool calls; an empty string is an answer."""
    assert (
        message({"role": "assistant", "content": None}, {"tool_calls": [fragment("{}", name="f", index=0)]})[
            "content"
        ]
        is None
    )
    assert message({"content": ""})["content"] == ""
    assert message({"content": "a"}, {"content": None}, {"content": "b"})["content"] == "ab"


def test_the_role_is_said_once() -> None:
    """A role in every chunk is not concatenated, and one that never comes is the assistant's."""
    assert (
        message({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"})["role"]
        == "assistant"
    )
    assert message({"content": "a"})["role"] == "assistant"


def test_both_names_of_reasoning_are_kept() -> None:
    """Reasoning comes under two names and is folded under both."""
    said = message({"reasoning_content": "a", "reasoning": "a"}, {"reasoning_content": "b", "reasoning": "b"})
    assert (said["reasoning_content"], said["reasoning"]) == ("ab", "ab")


def test_unknown_fields_of_a_delta() -> None:
    """Strings are concatenated, lists extended, of anything else the last one stands, and null erases nothing."""
    said = message(
        {"s": "a", "l": [1], "d": {"x": 1}, "n": 1, "z": None},
        {"s": "b", "l": [2, 3], "d": {"y": 2}, "n": 2, "z": None},
        {"s": None, "l": None, "d": None, "n": None},
    )
    assert {name: said[name] for name in "sldnz"} == {
        "s": "ab",
        "l": [1, 2, 3],
        "d": {"y": 2},
        "n": 2,
        "z": None,
    }


def test_content_may_turn_from_text_to_parts() -> None:
    """Text before, between and after parts keeps its place."""
    part = {"type": "thinking", "thinking": []}
    assert message({"content": ""}, {"content": [part]}, {"content": "b"})["content"] == [
        part,
        {"type": "text", "text": "b"},
    ]
    assert message({"content": "a"}, {"content": [part]})["content"] == [{"type": "text", "text": "a"}, part]


def test_audio_is_joined_where_it_flows() -> None:
    """Audio's data and transcript grow; its id and expiry are said once or again."""
    said = message(
        {"audio": {"id": "audio_1", "transcript": "He"}},
        {"audio": {"id": "audio_1", "data": "AA"}},
        {"audio": {"data": "BB", "transcript": "llo"}},
        {"audio": {"expires_at": 9}},
        {"audio": None},
    )
    assert said["audio"] == {"id": "audio_1", "transcript": "Hello", "data": "AABB", "expires_at": 9}


def test_annotations_are_gathered() -> None:
    """Each annotation that comes is one more."""
    assert message({"annotations": [{"a": 1}]}, {"annotations": [{"a": 2}]})["annotations"] == [
        {"a": 1},
        {"a": 2},
    ]


def test_the_deprecated_function_call() -> None:
    """Name and arguments are joined as in a tool call."""
    said = message(
        {"function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": '{"a"'}},
        {"function_call": {"arguments": ":1}"}},
    )
    assert said["function_call"] == {"name": "f", "arguments": '{"a":1}'}


def test_a_long_answer_takes_linear_time() -> None:
    """Half a million characters in as many chunks fold within the test's time limit."""
    folded = Fold()
    one = chunk(piece(content="x"))
    for _ in range(500_000):
        folded.add(one)
    assert len(folded.completion()["choices"][0]["message"]["content"]) == 500_000


# -- Tool calls


def test_fragments_join_by_index() -> None:
    """Interleaved fragments find their call, and the calls stand in the order of their indexes."""
    assert called(
        [fragment("", index=1, id="b", name="g", type="function")],
        [fragment("", index=0, id="a", name="f", type="function")],
        [fragment("1", index=1), fragment("2", index=0)],
        [fragment("3", index=1)],
    ) == [("a", "f", "2"), ("b", "g", "13")]


def test_the_index_and_repeated_fields_do_not_show() -> None:
    """A call has no index in a completion; id, type and name that come again are said once."""
    again = fragment("x", index=0, id="a", name="f", type="function")
    assert message({"tool_calls": [again]}, {"tool_calls": [again]})["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "xx"}}
    ]


def test_a_name_may_come_in_fragments() -> None:
    """A function name cut in two is joined."""
    assert called([fragment(index=0, id="a", name="get_")], [fragment("{}", index=0, name="weather")]) == [
        ("a", "get_weather", "{}")
    ]


def test_whole_calls_that_all_have_index_0_stay_apart() -> None:
    """Some providers number every call 0: a new id with a name is a new call, and fragments go to the newest."""
    assert called(
        [fragment("{}", index=0, id="a", name="f")],
        [fragment("[", index=0, id="b", name="f")],
        [fragment("]", index=0)],
    ) == [("a", "f", "{}"), ("b", "f", "[]")]


def test_an_id_that_changes_with_every_fragment_is_one_call() -> None:
    """Some providers make up a new id for each fragment: without a name it is no new call."""
    assert called(
        [fragment("", index=0, id="a", name="f")],
        [fragment("1", index=0, id="b")],
        [fragment("2", index=0, id="c")],
    ) == [("a", "f", "12")]


def test_without_an_index_fragments_join_by_id() -> None:
    """Where a provider sends no index, the id says which call is meant."""
    assert called(
        [fragment("1", id="a", name="f")],
        [fragment("2", id="b", name="g")],
        [fragment("3", id="a")],
        [fragment("4", id="b")],
    ) == [("a", "f", "13"), ("b", "g", "24")]


def test_without_index_and_id_a_name_begins_a_call() -> None:
    """A fragment with a name is a new call; one without goes on with the last."""
    assert called([fragment("{}", id="", name="f")], [fragment("{", name="f")], [fragment("}")]) == [
        ("", "f", "{}"),
        ("", "f", "{}"),
    ]


def test_without_index_and_id_several_fragments_join_by_position() -> None:
    """Fragments that come side by side go on with the calls that began side by side."""
    assert called([fragment("1", name="f"), fragment("2", name="g")], [fragment("3"), fragment("4")]) == [
        ("", "f", "13"),
        ("", "g", "24"),
    ]


def test_an_id_may_come_late() -> None:
    """A call whose id comes after its name is still one call."""
    assert called([fragment(index=0, name="f")], [fragment("{}", index=0, id="a", name="f")]) == [
        ("a", "f", "{}")
    ]


def test_a_call_without_arguments_has_empty_ones() -> None:
    """Readers take name and arguments for granted, so both are strings even where none came."""
    assert called([{"index": 0, "id": "a", "function": {"name": "f", "arguments": None}}]) == [("a", "f", "")]
    assert message({"function_call": {"name": "f"}})["function_call"] == {"name": "f", "arguments": ""}


def test_a_custom_tool_call() -> None:
    """The input of a custom tool is joined, and its type is found out where none was sent."""
    said = message(
        {"tool_calls": [{"index": 0, "id": "a", "custom": {"name": "sh", "input": "l"}}]},
        {"tool_calls": [{"index": 0, "custom": {"input": "s"}}]},
    )
    assert said["tool_calls"] == [{"id": "a", "type": "custom", "custom": {"name": "sh", "input": "ls"}}]


def test_unknown_fields_of_a_tool_call_are_kept() -> None:
    """What a provider attaches to a call, such as a signature that it wants back, stays with it."""
    signed = fragment("{}", index=0, id="a", name="f", extra_content={"google": {"thought_signature": "s"}})
    assert message({"tool_calls": [signed]})["tool_calls"][0]["extra_content"] == {
        "google": {"thought_signature": "s"}
    }


# -- Choices and the chunk


def test_choices_stand_in_the_order_of_their_indexes() -> None:
    """Choices come in any order and from any chunk."""
    whole = fold(
        chunk(piece(2, content="c")),
        chunk(piece(0, content="a"), piece(1, content="b")),
        chunk(piece(2, "stop")),
    )
    assert [(choice["index"], choice["message"]["content"]) for choice in whole["choices"]] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
    ]
    assert [choice["finish_reason"] for choice in whole["choices"]] == [None, None, "stop"]


def test_logprobs_of_both_shapes_are_concatenated() -> None:
    """OpenAI's lists and the flat ones of the older shape grow chunk by chunk; null adds nothing."""
    whole = fold(
        chunk(piece(logprobs={"content": [1], "refusal": None, "tokens": ["a"], "text_offset": [0]})),
        chunk(piece(logprobs=None)),
        chunk(piece(logprobs={"content": [2], "refusal": None, "tokens": ["b"], "text_offset": [1]})),
    )
    assert whole["choices"][0]["logprobs"] == {
        "content": [1, 2],
        "refusal": None,
        "tokens": ["a", "b"],
        "text_offset": [0, 1],
    }


def test_unknown_fields_of_choice_and_chunk_keep_their_last_value() -> None:
    """Fields that we don't know survive; the stream's own padding does not."""
    whole = fold(
        chunk(
            {**piece(content="a"), "stop_reason": None, "filter": {"a": 1}}, provider="x", obfuscation="zzz"
        ),
        chunk({**piece(content="b"), "stop_reason": 7, "filter": {"b": 2}}, provider="y", obfuscation="z"),
        chunk({**piece(), "stop_reason": None}, provider=None),
    )
    assert whole["provider"] == "y"
    assert "obfuscation" not in whole
    choice = whole["choices"][0]
    assert (choice["stop_reason"], choice["filter"], choice["message"]["content"]) == (7, {"b": 2}, "ab")


def test_the_last_usage_stands() -> None:
    """Usage that grows with every chunk is not added up, a null after it erases nothing, and none is none."""
    assert fold(chunk(usage={"total_tokens": 1}), chunk(usage={"total_tokens": 2}), chunk(usage=None))[
        "usage"
    ] == {"total_tokens": 2}
    assert "usage" not in fold(chunk(piece(content="a"), usage=None))


@pytest.mark.parametrize("name", ["system_fingerprint", "service_tier"])
def test_a_null_takes_no_values_place(name: str) -> None:
    """A field that is null in later chunks keeps its value; one that is null throughout stays null."""
    assert fold(chunk(**{name: "a"}), chunk(**{name: None}))[name] == "a"
    assert fold(chunk(**{name: None}))[name] is None
