"""What a lost worker leaves is finished by another one; no reader sees two attempts spliced, no work runs for ever."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from schemas.keys import Keys
from tests.support.api import Api, asking, ordered
from tests.support.backend import Received
from tests.support.stack import Part, Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

#: One text in two ways to cut it.
TEXT = "The quick brown fox jumps over the lazy dog, again and again and again, until the evening comes. " * 3
WORDS = [word + " " for word in TEXT.split(" ")]
LETTERS = [TEXT[i : i + 3] for i in range(0, len(TEXT), 3)] + [" "]
SLOW = {"interval_ms": 60}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """With two interactive workers, which the tests kill."""
    with Stack(interactive=2) as stack:
        yield stack
        stack.check_balanced()


@pytest.fixture
def api(stack: Stack) -> Iterator[Api]:
    with stack.api() as api:
        yield api


def kill(stack: Stack, completion_id: str) -> None:
    """kill -9 of the process that streams a completion; a worker gets a successor."""
    pid = int(stack.state(completion_id)["worker"].split(":")[1])
    victim = next((part for part in stack.parts.values() if part.process and part.pid == pid), None)
    if victim is None:  # a process that a worker made for this completion alone
        os.kill(pid, signal.SIGKILL)
    else:
        victim.end(signal.SIGKILL)
        victim.start(stack.folder)


def streaming(stack: Stack, completion_id: str, chunks: int = 4) -> None:
    wait_until(lambda: int(stack.state(completion_id).get("next", "0")) >= chunks, what="chunks")


def asked(api: Api) -> list[Received]:
    """The provider's requests that begin with the test's own message."""
    return [r for r in api.backend.completions if r.body["messages"][0]["content"] == api.tenant]


def whole_chunks(indexes: list[int], start: int = 0) -> bool:
    return indexes == list(range(start, start + len(indexes)))


class TestVerifiedReplay:
    def test_a_deterministic_stream_goes_on_without_a_seam(self, stack: Stack, api: Api) -> None:
        """A live reader sees every index once and the whole text, though the second attempt is cut otherwise."""
        orders = [{"pieces": WORDS, **SLOW}, {"pieces": LETTERS, "interval_ms": 5}]
        with api.events(asking(api.tenant, temperature=0, fake=orders)) as stream:
            frames = stream.next(5)
            kill(stack, stream.id)
            frames += stream.rest()
        assert frames[-1].event == "done"
        assert whole_chunks([frame.id or 0 for frame in frames])
        assert "".join(WORDS) == "".join(LETTERS)
        whole = api.follow(stream.id)
        assert whole.text == "".join(WORDS)
        assert whole.frames == frames
        assert len(asked(api)) == 2
        (row,) = stack.settled(stream.id)
        assert (row.status, row.generation and row.generation.attempt) == ("completed", 2)
        assert row.generation
        assert row.generation.base == 0
        stack.forget(stream.id)
        assert api.follow(stream.id).frames == frames

    def test_several_choices_and_tool_calls(self, stack: Stack, api: Api) -> None:
        """Each choice and each call goes on where it was."""
        order = {
            "chunks": 12,
            "tool_calls": True,
            "choices": 2,
            "text": "one two three four five six seven",
            **SLOW,
        }
        with api.events(asking(api.tenant, temperature=0, n=2, fake=order)) as stream:
            frames = stream.next(6)
            kill(stack, stream.id)
            frames += stream.rest()
        assert frames[-1].event == "done"
        whole = api.plain(api.tenant, temperature=0, n=2, fake={**order, "interval_ms": 0}).json()
        stack.settled(stream.id)
        stored = api.stored(stream.id)
        assert stored["choices"] == whole["choices"]

    def test_another_answer_restarts(self, stack: Stack, api: Api) -> None:
        """A provider that isn't deterministic after all: the reader is told, and its chunks are abandoned."""
        orders = [{"pieces": WORDS, **SLOW}, {"chunks": 8}]
        with api.events(asking(api.tenant, temperature=0, fake=orders)) as stream:
            frames = stream.next(5)
            kill(stack, stream.id)
            frames += stream.rest()
        assert frames[-1].event == "error"
        assert frames[-1].data.startswith("restarted: ")
        whole = api.follow(stream.id)
        assert whole.text == ordered(8)
        base = min(whole.chunks)
        assert base >= 5
        (row,) = stack.settled(stream.id)
        assert row.generation
        assert row.generation.base == base


class TestRestart:
    def test_a_sampled_stream_starts_again(self, stack: Stack, api: Api) -> None:
        """Readers of the first attempt are told; whoever comes from the start gets the second one alone."""
        orders = [{"pieces": WORDS, **SLOW}, {"pieces": ["another ", "answer"]}]
        with api.events(asking(api.tenant, temperature=1, fake=orders)) as stream:
            frames = stream.next(5)
            kill(stack, stream.id)
            frames += stream.rest()
        assert frames[-1].event == "error"
        assert "-1" in frames[-1].data
        whole = api.follow(stream.id)
        assert whole.text == "another answer"
        stack.settled(stream.id)
        assert api.stored(stream.id)["choices"][0]["message"]["content"] == "another answer"

    def test_before_the_first_chunk_nobody_notices(self, stack: Stack, api: Api) -> None:
        orders = [{"first_delay_ms": 60_000}, {"chunks": 5}]
        with api.events(asking(api.tenant, temperature=1, fake=orders)) as stream:
            wait_until(lambda: len(asked(api)) == 1, what="request")
            kill(stack, stream.id)
            frames = stream.rest()
        assert frames[-1].event == "done"
        assert whole_chunks([frame.id or 0 for frame in frames])


def choices(**fields: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "fake",
        "choices": [{"index": 0, **fields}],
    }


#: As Azure begins: with a chunk that has no choices.
LATE_ROLE = [
    {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "fake",
        "choices": [],
        "prompt_filter_results": [],
    },
    choices(delta={"role": "assistant", "content": "and "}),
    choices(delta={"content": "the rest"}),
    choices(delta={}, finish_reason="stop"),
]


@pytest.mark.parametrize(
    "rest", [{"pieces": ["and ", "the rest"]}, {"raw_chunks": LATE_ROLE}], ids=["", "late"]
)
def test_prefill_goes_on_from_the_published_text(stack: Stack, api: Api, rest: dict[str, Any]) -> None:
    """The provider is sent what it said, and readers see one answer."""
    orders = [{"pieces": WORDS, **SLOW}, rest]
    body = asking(api.tenant, temperature=1, fake=orders, max_tokens=50) | {"model": "prefills:fake"}
    with api.events(body) as stream:
        frames = stream.next(5)
        kill(stack, stream.id)
        frames += stream.rest()
    assert frames[-1].event == "done"
    assert whole_chunks([frame.id or 0 for frame in frames])
    first, second = asked(api)
    said = second.body["messages"][-1]
    assert said["role"] == "assistant"
    assert said["content"]
    assert api.follow(stream.id).text == said["content"] + "and the rest"
    assert second.body["max_tokens"] < first.body["max_tokens"]
    roles = [frame for frame in frames if "role" in str(frame.data and frame.data["choices"])]
    assert len(roles) == 1


def stop_past_lease(stack: Stack, victim: Part, completion_id: str) -> None:
    """SIGSTOP until another worker has the generation, then SIGCONT."""
    attempt = stack.state(completion_id)["attempt"]
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: stack.state(completion_id)["attempt"] != attempt, what="another attempt")
    finally:
        os.kill(victim.pid, signal.SIGCONT)


def test_a_worker_that_wakes_after_its_lease_writes_nothing(stack: Stack, api: Api) -> None:
    """Its chunks are refused, its end is too, and its provider call is closed."""
    orders = [{"pieces": ["old "] * 400, "interval_ms": 50}, {"pieces": ["new "] * 60, "interval_ms": 50}]
    completion_id = api.background(api.tenant, temperature=1, fake=orders)
    streaming(stack, completion_id)
    stop_past_lease(stack, stack.worker_of(completion_id), completion_id)
    whole = api.follow(completion_id)
    (row,) = stack.settled(completion_id)
    assert row.status == "completed"
    assert api.stored(completion_id)["choices"][0]["message"]["content"] == "new " * 60
    if whole.last.event == "done":  # or it came while the old chunks were all that there was
        assert whole.text == "new " * 60
    first = asked(api)[0]
    api.backend.wait_until(lambda: first.ended == "closed")


def test_a_generation_that_kills_its_worker_ends(stack: Stack, api: Api) -> None:
    """After three workers it has failed, with the reason; what they streamed beside it is whole."""
    poison = api.background(api.tenant, temperature=0, fake={"pieces": WORDS, "interval_ms": 200})
    others = [
        api.background(f"{n}", temperature=0, fake={"chunks": 150, "interval_ms": 100}) for n in range(6)
    ]
    for attempt in ("1", "2", "3"):
        wait_until(
            lambda a=attempt: (
                stack.state(poison).get("attempt") == a and stack.state(poison).get("state") == "leased"
            ),
            what=f"attempt {attempt}",
        )
        kill(stack, poison)
    whole = api.follow(poison)
    assert whole.error.startswith("worker_lost: 3 ")
    for completion_id in others:
        assert api.follow(completion_id).text == ordered(150)
    rows = {row.id: row for row in stack.settled(poison, *others)}
    assert rows[poison].status == "failed"
    assert all(rows[completion_id].status == "completed" for completion_id in others)


def test_a_cancel_while_the_worker_is_dead(stack: Stack, api: Api) -> None:
    completion_id = api.background(api.tenant, fake={"chunks": 100, **SLOW})
    streaming(stack, completion_id)
    kill(stack, completion_id)
    api.post(f"/v1/chat/completions/{completion_id}/cancel")
    (row,) = stack.settled(completion_id)
    assert row.status == "cancelled"
    assert len(asked(api)) == 1


def test_each_attempt_has_its_row(stack: Stack, api: Api) -> None:
    orders = [{"pieces": WORDS, **SLOW}, {"chunks": 3}]
    completion_id = api.background(temperature=1, fake=orders)
    streaming(stack, completion_id)
    kill(stack, completion_id)
    stack.settled(completion_id)
    assert stack.attempts(completion_id) == [(1, "lost"), (2, "completed")]


class TestMessages:
    def test_a_message_that_was_lost_is_put_again(self, stack: Stack, api: Api) -> None:
        """As a worker leaves it that dies with the message in its hands; nothing else is in the queue."""
        (row,) = stack.settled(queued_without_message(stack, api))
        assert row.status == "completed"

    def test_what_never_left_the_outbox_is_put(self, stack: Stack, api: Api) -> None:
        """As a gateway leaves it that dies between its two writes."""
        completion_id = queued_without_message(stack, api, outbox=True)
        (row,) = stack.settled(completion_id)
        assert row.status == "completed"
        assert not stack.redis.hexists(Keys(0).outbox, completion_id)


def queued_without_message(stack: Stack, api: Api, *, outbox: bool = False) -> str:
    """An accepted completion, as a copy of one that is done."""
    done = api.background(api.tenant)
    stack.settled(done)
    state, keys, new = stack.state(done), Keys(0), done[:-4] + ("beef" if outbox else "cafe")
    info, seq = state["info"].replace(done, new), int(stack.redis.incr(keys.seq("interactive")))
    fields: Any = {"v": 1, "state": "queued", "queue": "interactive", "seq": seq, "attempt": 0}
    fields |= {"next": 0, "base": 0, "created_ms": state["created_ms"], "info": info, "call": "call"}
    stack.redis.set(keys.req(new), json.dumps({"params": asking("again"), "targets": [["fake", "fake"]]}))
    stack.redis.xadd(keys.ledger, {"r": info})
    stack.redis.hset(keys.gen(new), mapping=fields)
    stack.redis.zadd(keys.queued("interactive"), {new: seq})
    if outbox:
        stack.redis.hset(keys.outbox, new, f"interactive {seq} {state['created_ms']}")
    return new
