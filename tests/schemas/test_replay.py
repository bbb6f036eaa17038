"""Replaying: whatever was published and however the new attempt is cut, readers get one answer without a seam."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import ChunkEncoder, decode_head, decode_item, dumps, loads
from schemas.replay import Diverged, Replay, published_text, without_role
from tests.support.completions import chunk, completions, fold, piece, pieces_of, strange_chunk, texts, woven
from tests.support.properties import examples

Chunks = list[dict[str, Any]]


def logged(chunks: Chunks) -> tuple[bytes, list[bytes]]:
    """The log of an attempt that published these chunks."""
    encoder = ChunkEncoder()
    items = [encoder.encode_chunk(copy.deepcopy(one)) for one in chunks]
    return encoder.head, items


def published(chunks: Chunks) -> Chunks:
    """The chunks as the log gives them back."""
    head, items = logged(chunks)
    return [decode_item(item, decode_head(head)) for item in items]


def replayed(before: Chunks, again: Chunks) -> Chunks:
    """What a new attempt that says ``again`` adds to ``before``."""
    replay = Replay(*logged(before))
    return [out for one in again for out in replay.feed(one)]


def said(*texts: str) -> Chunks:
    return [chunk(piece(content=text)) for text in texts]


def call(arguments: str | None = None, *, id: str | None = None, name: str | None = None) -> dict[str, Any]:
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    opening = {} if id is None else {"id": id, "type": "function"}
    return chunk(piece(tool_calls=[{"index": 0, **opening, "function": function}]))


# -- Any answer, cut any way


@st.composite
def wholes(draw: st.DrawFn) -> dict[str, Any]:
    whole = draw(completions())
    for choice in whole["choices"]:
        if draw(st.booleans()):
            choice["message"]["x_note"] = draw(texts)
    return whole


def streamed(draw: st.DrawFn, whole: dict[str, Any]) -> Chunks:
    """One way to stream the completion: interleaved, several fields and choices in a chunk, some chunks empty."""
    chunks: Chunks = []
    for one in woven(draw, [pieces_of(draw, choice, False) for choice in whole["choices"]], False):
        last = chunks[-1]["choices"] if chunks else []
        if last and draw(st.booleans()):
            same = next((other for other in last if other["index"] == one["index"]), None)
            if same is None:
                last.append(one)
                continue
            if not same["delta"].keys() & one["delta"].keys() and not (same["logprobs"] and one["logprobs"]):
                same["delta"] |= one["delta"]
                same["logprobs"] = same["logprobs"] or one["logprobs"]
                same["finish_reason"] = one["finish_reason"]
                continue
        chunks.append(chunk(one, system_fingerprint="fp", service_tier="default", usage=None))
        if one["finish_reason"] is None and draw(st.integers(0, 5)) == 0:
            chunks.append(chunk(piece(one["index"], content=None)))
    return [*chunks, chunk(usage=whole["usage"])]


def rerun(draw: st.DrawFn, chunks: Chunks) -> Chunks:
    """The chunks as another run gives them: with other ids, times and numbers; some repeat ids in every fragment."""
    repeat = draw(st.booleans())
    for one in chunks:
        one |= {"id": "chatcmpl-2", "created": 8, "obfuscation": "x"}
        if one.get("usage"):
            one["usage"] = {"prompt_tokens": 1, "completion_tokens": 9, "total_tokens": 10}
        else:
            one["system_fingerprint"] = "other"
        for choice in one["choices"]:
            for fragment in choice["delta"].get("tool_calls", ()):
                if "id" in fragment or repeat:
                    fragment["id"] = f"again_{choice['index']}_{fragment['index']}"
            for entries in (choice["logprobs"] or {}).values():
                for entry in entries or ():
                    entry["logprob"] -= 0.5
    return chunks


def same_part(completion: dict[str, Any]) -> dict[str, Any]:
    """A completion without what differs from run to run."""
    part = {name: completion.get(name) for name in ("choices", "service_tier")}
    for choice in completion["choices"]:
        for entries in (choice["logprobs"] or {}).values():
            for entry in entries or ():
                del entry["logprob"]
        choice["logprobs"] = {k: v for k, v in (choice["logprobs"] or {}).items() if v is not None}
    return part


Runs = tuple[Chunks, Chunks]


@st.composite
def runs(draw: st.DrawFn) -> Runs:
    """What was published of a completion before its attempt was cut off, and all of the next attempt."""
    whole = draw(wholes())
    first = streamed(draw, whole)
    return first[: draw(st.integers(0, len(first)))], rerun(draw, streamed(draw, whole))


@given(runs())
@examples(300)
def test_published_and_replayed_give_one_answer(run: Runs) -> None:
    """What was published and what the replay adds fold into the new attempt's answer, with the first ids of calls."""
    first, again = run
    kept = copy.deepcopy(again)
    replay = Replay(*logged(first))
    added = [out for one in again for out in replay.feed(one)]
    replay.finish()
    assert again == kept

    expected = fold(*again)
    ids = {
        (piece["index"], one["index"]): one["id"]
        for part in first
        for piece in part["choices"]
        for one in piece["delta"].get("tool_calls", ())
        if "id" in one
    }
    for choice in expected["choices"]:
        for at, one in enumerate(choice["message"].get("tool_calls", ())):
            one["id"] = ids.get((choice["index"], at), one["id"])
    assert same_part(fold(*published(first), *copy.deepcopy(added))) == same_part(copy.deepcopy(expected))


@given(runs())
def test_nothing_is_published_twice(run: Runs) -> None:
    """A new attempt that says no more than what is published adds nothing, role, usage and finish included."""
    whole = run[1]
    assert replayed(whole, rerun_of(whole)) == []


def rerun_of(chunks: Chunks) -> Chunks:
    """The same chunks from another run."""
    again = copy.deepcopy(chunks)
    for one in again:
        one |= {"id": "chatcmpl-3", "created": 9, "system_fingerprint": "third", "timings": {"ms": 4}}
        if one.get("usage"):
            one["usage"]["completion_tokens"] += 1
    return again


@given(runs())
def test_what_comes_after_caught_up_may_pass_untouched(run: Runs) -> None:
    """From the moment that a replay has caught up, feeding it changes nothing."""
    first, again = run
    replay = Replay(*logged(first))
    for one in again:
        done = replay.caught_up
        out = replay.feed(one)
        if done:
            assert out == [one]
    assert replay.caught_up


@given(runs(), st.data())
@examples(200)
def test_another_answer_diverges(run: Runs, data: st.DataObject) -> None:
    """Change any published text, token, name, role or end: it diverges, and nothing was published."""
    first, again = run
    changed = copy.deepcopy(first)
    places: list[tuple[dict[str, Any], str]] = []
    for one in changed:
        for choice in one["choices"]:
            if choice["finish_reason"] is not None:
                places.append((choice, "finish_reason"))
            places += [
                (choice["delta"], name) for name, v in choice["delta"].items() if v and isinstance(v, str)
            ]
            for fragment in choice["delta"].get("tool_calls", ()):
                places += [(fragment["function"], k) for k, v in fragment["function"].items() if v]
            for entries in (choice["logprobs"] or {}).values():
                places += [(entry, "token") for entry in entries or ()]
    if not places:
        return
    where, name = data.draw(st.sampled_from(places))
    at = data.draw(st.integers(0, max(0, len(where[name]) - 1)))
    where[name] = where[name][:at] + ("b" if where[name][at : at + 1] == "a" else "a") + where[name][at + 1 :]
    replay = Replay(*logged(changed))
    out: Chunks = []
    with pytest.raises(Diverged):
        for one in again:
            out += replay.feed(one)
        replay.finish()
    assert out == []


@given(st.lists(strange_chunk, max_size=4), st.lists(strange_chunk, max_size=4))
@examples(200)
def test_no_shape_of_a_chunk_breaks_it(first: Chunks, again: Chunks) -> None:
    """Whatever stands in the log and whatever comes, it is taken, or the new attempt diverges."""
    kept = repr(again)
    items = [dumps(one) for one in first]
    replay = Replay(b"{}", items)
    with contextlib.suppress(Diverged):
        for one in again:
            replay.feed(one)
    assert repr(again) == kept
    published_text(b"{}", items)
    for one in again:
        without_role(one)


# -- Single stories


def test_a_chunk_goes_on_in_mid_word() -> None:
    """The rest of a chunk is published from where the published text ends, even inside a word."""
    out = replayed(said("Hello wor"), said("Hel", "lo ", "world", "!"))
    assert [one["choices"][0]["delta"] for one in out] == [{"content": "ld"}, {"content": "!"}]


def test_a_token_cut_by_the_end_of_the_published_text_is_published_once() -> None:
    """Its logprobs item comes whole, with the rest of its text."""
    token = {"token": "world", "logprob": -1.0}
    again = chunk(piece(content="world", logprobs={"content": [token]}))
    (out,) = replayed(said("wor"), [again])
    assert out["choices"][0]["delta"] == {"content": "ld"}
    assert out["choices"][0]["logprobs"] == {"content": [token]}


def test_a_choice_that_runs_ahead_waits_for_the_others() -> None:
    """Nothing of the new attempt is published before all choices have said again what is published."""
    first = [chunk(piece(0, content="a"), piece(1, content="bb"))]
    replay = Replay(*logged(first))
    assert replay.feed(chunk(piece(0, content="a more"))) == []
    assert replay.feed(chunk(piece(1, content="b"))) == []
    assert not replay.caught_up
    out = replay.feed(chunk(piece(1, content="b!")))
    assert [(c["index"], c["delta"]["content"]) for one in out for c in one["choices"]] == [
        (0, " more"),
        (1, "!"),
    ]
    assert replay.caught_up


def test_a_choice_of_which_nothing_is_published_comes_whole() -> None:
    """While another choice is repeated, all of a new one is kept for its readers, in order."""
    out = replayed(said("ab"), [chunk(piece(0, content="a"), piece(1, content="x")), *said("b"), *said("c")])
    assert [(c["index"], c["delta"]["content"]) for one in out for c in one["choices"]] == [
        (1, "x"),
        (0, "c"),
    ]


def test_a_tool_call_keeps_its_published_id() -> None:
    """A provider that repeats a call's id in every fragment has it replaced by the published one to the end."""
    replay = Replay(*logged([call('{"a', id="old", name="f")]))
    out = replay.feed(call('{"a":', id="new", name="f"))
    out += replay.feed(call("1}", id="new", name="f"))
    assert not replay.caught_up
    calls = fold(call('{"a', id="old", name="f"), *out)["choices"][0]["message"]["tool_calls"]
    assert calls == [{"id": "old", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
    assert "new" not in repr(out)
    replay.feed(chunk(piece(finish_reason="tool_calls")))
    assert replay.caught_up


def test_calls_without_an_index_are_told_apart() -> None:
    """Several calls that a provider gives no index, or all the same one, are each compared with their own."""
    for index in ({}, {"index": 0}):

        def two(prefix: str, index: dict[str, int] = index) -> Chunks:
            return [
                chunk(
                    piece(tool_calls=[{**index, "id": prefix + n, "function": {"name": n, "arguments": n}}])
                )
                for n in ("f", "g")
            ]

        assert replayed(two("x"), two("y")) == []
        (out,) = replayed(two("x")[:1], two("y"))
        assert out["choices"][0]["delta"]["tool_calls"][0]["id"] == "yg"
        replay = Replay(*logged(two("x")))
        replay.feed(two("y")[0])
        with pytest.raises(Diverged):
            replay.finish()


def test_the_old_function_call_goes_on() -> None:
    """OpenAI's former function_call is replayed as tool calls are."""
    first = [chunk(piece(function_call={"name": "f", "arguments": "{"}))]
    (out,) = replayed(first, [chunk(piece(function_call={"name": "f", "arguments": "{}"}))])
    assert out["choices"][0]["delta"] == {"function_call": {"arguments": "}"}}


def test_a_shorter_answer_diverges() -> None:
    """A choice that ends before it has said what is published diverges, and so does a stream that just ends."""
    replay = Replay(*logged(said("Hello")))
    replay.feed(said("Hell")[0])
    with pytest.raises(Diverged):
        replay.finish()
    with pytest.raises(Diverged):
        replay.feed(chunk(piece(finish_reason="stop")))


def test_a_longer_answer_than_a_published_end_diverges() -> None:
    """Where the published choice has ended, more text is another answer."""
    with pytest.raises(Diverged):
        replayed([*said("Hello"), chunk(piece(finish_reason="stop"))], said("Hello world"))


def test_an_end_that_was_lost_is_published() -> None:
    """Where only finish_reason and usage are missing, only they are published."""
    end, usage = chunk(piece(finish_reason="stop")), chunk(usage={"total_tokens": 3})
    assert replayed(said("Hello"), [*said("He", "llo"), end, usage]) == [end, usage]
    both = chunk(piece(finish_reason="stop", content="llo"), usage={"total_tokens": 3})
    (out,) = replayed([*said("Hello"), end], [*said("He"), both])
    assert out["choices"] == []
    assert out["usage"] == {"total_tokens": 3}


def test_a_field_whose_last_value_stands_is_published_where_it_never_was() -> None:
    """Such values are no divergence; the one that readers lack comes once."""

    def one(text: str, **fields: Any) -> dict[str, Any]:
        return chunk({**piece(content=text), **fields})

    first = [one("a", stop=1), one("b")]
    assert replayed(first, [one("a", stop=1), one("b", stop=1)]) == []
    (out,) = replayed(first, [one("a", stop=7), one("b", stop=2)])
    assert out["choices"] == [{"index": 0, "delta": {}, "finish_reason": None, "stop": 2}]


def test_an_empty_log_has_caught_up() -> None:
    """Where nothing is published there is nothing to replay."""
    assert Replay(b"{}", []).caught_up


# -- Prefill


def test_the_text_for_a_prefill() -> None:
    """Role and content alone can be continued by a provider that takes a prefill."""
    role = chunk(piece(role="assistant", content=""))
    assert published_text(*logged([role, *said("Hel", "lo")])) == "Hello"
    assert published_text(b"{}", []) == ""
    for more in (
        chunk(piece(1, content="x")),
        chunk(piece(reasoning_content="x")),
        chunk(piece(refusal="x")),
        chunk(piece(content="x", logprobs={"content": []})),
        chunk(piece(finish_reason="length")),
        chunk(piece(content=[{"type": "text", "text": "x"}])),
        call("{"),
    ):
        assert published_text(*logged([role, *said("Hel"), more])) is None


def test_a_continued_answer_has_one_role() -> None:
    """The role of a continuing attempt is dropped, and its chunk where nothing else is in it."""
    assert without_role(chunk(piece(role="assistant", content=""))) is None
    assert without_role(chunk(piece(role="assistant", content=None, refusal=None))) is None
    kept = without_role(chunk(piece(role="assistant", content="lo")))
    assert kept is not None
    assert kept["choices"][0]["delta"] == {"content": "lo"}
    for whole in (
        *said("lo"),
        chunk(piece(finish_reason="stop")),
        chunk(usage={"total_tokens": 3}),
        chunk(piece(1, role="assistant")),
    ):
        assert without_role(whole) == whole


def test_what_the_log_keeps_of_a_text_is_enough() -> None:
    """Lone surrogates and astral characters in a published text are compared as they came."""
    texts = [loads(b'"\\ud83d"'), "e\u0301", "\U0001f600"]
    assert replayed(said(*texts), said("".join(texts))) == []
