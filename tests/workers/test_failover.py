"""An alias's next provider answers where one doesn't; nobody switches after the first chunk; the records say who."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import select

from schemas.keys import Keys
from schemas.tables import attempts, usage
from tests.support.api import Api, asking, error_of, ordered
from tests.support.backend import Backend
from tests.support.stack import AGAIN, Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

NEVER = {"failures": 0}
SECOND = {"pieces": ["from ", "the ", "second"]}
SLOW = {"chunks": 40, "interval_ms": 60}


@pytest.fixture(scope="module")
def backends() -> Iterator[tuple[Backend, Backend]]:
    with Backend() as first, Backend() as second:
        yield first, second


@pytest.fixture(scope="module")
def stack(backends: tuple[Backend, Backend]) -> Iterator[Stack]:
    """Two workers, and the alias ``both``."""
    first, second = backends
    providers: dict[str, dict[str, Any]] = {
        "one": {"base_url": first.url, "retry": AGAIN, "timeout": {"connect": 5, "first_chunk": 1}},
        "shy": {"base_url": first.url, "retry": AGAIN},
        "patient": {"base_url": first.url, "retry": AGAIN},
        "two": {"base_url": second.url, "retry": AGAIN},
    }
    aliases = {
        "both": ["one:fake", "two:fake-b"],
        "half": ["one:not-there", "two:fake-b"],
        "resting": ["shy:fake", "two:fake-b"],
        "other": ["patient:fake", "two:fake-b"],
    }
    fields = {name: {**provider, "circuit": NEVER} for name, provider in providers.items()}
    with Stack(interactive=2, providers=fields, aliases=aliases) as stack:
        yield stack
        stack.check_balanced()


@pytest.fixture
def api(stack: Stack, backends: tuple[Backend, Backend]) -> Iterator[Api]:
    for backend in backends:
        backend.reset()
    with stack.api() as api:
        yield api


@pytest.fixture
def first(backends: tuple[Backend, Backend]) -> Backend:
    return backends[0]


@pytest.fixture
def second(backends: tuple[Backend, Backend]) -> Backend:
    return backends[1]


def tried(stack: Stack, completion_id: str) -> list[tuple[str, str, str]]:
    """Provider, model and state of each attempt in the books."""
    stack.settled(completion_id)
    columns = (attempts.c.provider, attempts.c.model, attempts.c.state)
    with stack.engine.connect() as connection:
        rows = connection.execute(
            select(*columns).where(attempts.c.generation_id == completion_id).order_by(attempts.c.number)
        )
        return [(row.provider, row.model, row.state) for row in rows]


def charged(stack: Stack, completion_id: str) -> tuple[str, str, str]:
    """Provider, model and status of the usage record."""
    columns = (usage.c.provider, usage.c.resolved_model, usage.c.status)
    with stack.engine.connect() as connection:
        row = connection.execute(select(*columns).where(usage.c.completion_id == completion_id)).one()
        return row.provider, row.resolved_model, row.status


def who(chunk: dict[str, Any]) -> tuple[str, str]:
    return chunk["resolved_provider"], chunk["resolved_model"]


FAILURES: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "503": {"status": 503},
    "429": {"status": 429},
    "out of money": {"status": 429, "error": {"message": "pay", "code": "insufficient_quota"}},
    "wrong key": {"status": 401},
    "dropped": {"drop": True},
    "stalled": {"first_delay_ms": 60_000},
    "truncated": {"cut_at_byte": 0},
    "error event": {"raw": 'data: {"error": {"message": "busy", "type": "server_error", "code": 503}}\n\n'},
    "garbage": {"raw": "data: nonsense\n\n"},
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_the_next_one_answers(
    stack: Stack, api: Api, first: Backend, second: Backend, failure: dict[str, Any]
) -> None:
    """The reader sees an answer and no error; everybody who tells says who it was, live and later."""
    first.script(failure)
    second.script(SECOND)
    whole = api.seed(model="both")
    assert (whole.text, whole.last.event) == ("from the second", "done")
    assert {who(chunk) for chunk in whole.chunks.values()} == {("two", "fake-b")}
    assert (len(first.completions), len(second.completions)) == (1, 1)
    assert second.completions[0].body["model"] == "fake-b"
    assert tried(stack, whole.id) == [("one", "fake", "failed"), ("two", "fake-b", "completed")]
    assert charged(stack, whole.id) == ("two", "fake-b", "completed")
    stored = api.stored(whole.id)
    assert (who(stored), stored["model"]) == (("two", "fake-b"), "both")
    assert api.follow(whole.id).frames == whole.frames
    stack.forget(whole.id)
    assert who(api.stored(whole.id)) == ("two", "fake-b")
    assert api.follow(whole.id).frames == whole.frames


def test_what_another_one_answers_is_shared_by_nobody(
    stack: Stack, api: Api, first: Backend, second: Backend
) -> None:
    """An equal request asks the first one again, while that answer comes and when it is there."""
    first.script({"status": 500}, {"status": 500})
    second.script({**SECOND, "interval_ms": 500}, SECOND)
    with api.events(asking(model="both", temperature=0)) as running:
        running.next(1)
        meanwhile = api.plain(model="both", temperature=0)
        assert who(meanwhile.json()) == ("two", "fake-b")
        running.rest()
    after = api.plain(model="both", temperature=0)
    assert who(after.json()) == ("one", "fake")
    hit = api.plain(model="both", temperature=0)
    outcomes = [answer.headers["x-cache"] for answer in (running, meanwhile, after, hit)]
    assert outcomes == ["miss", "miss", "miss", "hit"]
    assert (len(first.completions), len(second.completions)) == (3, 2)
    stack.settled(running.id, meanwhile.json()["id"])
    stack.forget_hot()
    assert who(api.plain(model="both", temperature=0).json()) == ("one", "fake")
    assert len(first.completions) == 3


def test_who_has_joined_before_stays(stack: Stack, api: Api, first: Backend, second: Backend) -> None:
    """And is told who answered."""
    first.script({"status": 500, "headers_delay_ms": 8000})
    second.script(SECOND)
    body = asking(api.tenant, model="other", temperature=0)
    with api.events(body) as creator, api.events(body) as joined:
        assert (creator.headers["x-cache"], joined.headers["x-cache"]) == ("miss", "join")
        for stream in (creator, joined):
            chunks = [frame.data for frame in stream.rest() if frame.event == "message"]
            assert {who(chunk) for chunk in chunks} == {("two", "fake-b")}
    assert len(second.completions) == 1
    rows = stack.settled(creator.id, joined.id)
    assert {row.generation_id for row in rows} == {creator.id}
    stack.forget(creator.id, joined.id)
    assert who(api.stored(joined.id)) == ("two", "fake-b")


def test_nobody_listens(api: Api, first: Backend, second: Backend) -> None:
    with first.down():
        answer = api.plain(model="both")
    assert answer.status_code == 200
    assert who(answer.json()) == ("two", "fake-b")
    assert len(second.completions) == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_request_at_fault_is_not_passed_on(api: Api, first: Backend, second: Backend, status: int) -> None:
    first.script({"status": status})
    answer = api.plain(model="both")
    assert answer.status_code == status
    assert (len(first.completions), len(second.completions)) == (1, 0)


def test_when_all_have_failed_they_are_asked_again(
    stack: Stack, api: Api, first: Backend, second: Backend
) -> None:
    """From the first one on, after a pause; a try is once through the list."""
    first.script({"status": 500}, {"drop": True})
    second.script({"status": 502}, {"status": 503})
    whole = api.seed(model="both")
    assert (whole.text, whole.last.event) == (ordered(), "done")
    failed = [("one", "fake", "failed"), ("two", "fake-b", "failed")]
    assert tried(stack, whole.id) == [*failed, *failed, ("one", "fake", "completed")]
    assert {who(chunk) for chunk in whole.chunks.values()} == {("one", "fake")}


def test_tries_have_a_cap(stack: Stack, api: Api, first: Backend, second: Backend) -> None:
    """The last failure is the answer."""
    first.script(*[{"status": 500}] * 9)
    second.script(*[{"status": 503, "error": {"message": "no more"}}] * 9)
    answer = api.plain(model="both")
    assert answer.status_code == 502
    assert error_of(answer)["message"] == "no more"
    assert (len(first.completions), len(second.completions)) == (AGAIN["tries"], AGAIN["tries"])
    completion_id = answer.headers["x-completion-id"]
    assert len(tried(stack, completion_id)) == 2 * AGAIN["tries"]
    assert charged(stack, completion_id) == ("two", "fake-b", "failed")


def test_who_wants_to_be_left_alone_is_passed_over(api: Api, first: Backend, second: Backend) -> None:
    """``Retry-After`` of one provider holds up nobody who can be served by the next."""
    first.script({"status": 429, "headers": {"retry-after": "20"}})
    second.script({"status": 500, "headers": {"retry-after": "1"}})
    answer = api.plain(model="resting")
    assert who(answer.json()) == ("two", "fake-b")
    assert (len(first.completions), len(second.completions)) == (1, 2)


@pytest.mark.parametrize("temperature", [0, 1])
def test_nobody_switches_after_the_first_chunk(
    stack: Stack, api: Api, first: Backend, second: Backend, temperature: int
) -> None:
    first.script({"chunks": 20, "cut_at_byte": 1500})
    whole = api.seed(model="both", temperature=temperature)
    if temperature:
        assert whole.error.startswith("restarted: ")
    final = api.follow(whole.id)
    assert (len(first.completions), len(second.completions)) == (2, 0)
    assert {who(chunk) for chunk in final.chunks.values()} == {("one", "fake")}
    assert next(state for _, _, state in tried(stack, whole.id)) == "failed"


class TestKilled:
    """kill -9 of the worker whose attempt came after a failover."""

    def kill(self, stack: Stack, completion_id: str) -> None:
        victim = stack.worker_of(completion_id)
        victim.end(signal.SIGKILL)
        victim.start(stack.folder)

    @pytest.mark.parametrize("temperature", [0, 1])
    def test_after_chunks_the_same_provider_goes_on(
        self, stack: Stack, api: Api, first: Backend, second: Backend, temperature: int
    ) -> None:
        """Though the first one would answer by now. A sampled answer restarts, and tells who says it all the same."""
        first.script({"status": 500})
        second.script(SLOW, {**SLOW, "interval_ms": 1})
        with api.events(asking(model="both", temperature=temperature)) as stream:
            frames = stream.next(5)
            self.kill(stack, stream.id)
            frames += stream.rest()
        assert frames[-1].event == ("error" if temperature else "done")
        whole = api.follow(stream.id)
        assert whole.text == ordered(40)
        assert {who(chunk) for chunk in whole.chunks.values()} == {("two", "fake-b")}
        assert (len(first.completions), len(second.completions)) == (1, 2)
        two = ("two", "fake-b")
        assert tried(stack, stream.id) == [("one", "fake", "failed"), (*two, "lost"), (*two, "completed")]

    def test_before_them_the_list_starts_again(
        self, stack: Stack, api: Api, first: Backend, second: Backend
    ) -> None:
        """The books have the attempt that was lost with the provider that it had asked."""
        first.script({"status": 500})
        second.script({"first_delay_ms": 60_000})
        with api.events(asking(model="both")) as stream:
            wait_until(lambda: len(second.completions) == 1, what="failover")
            self.kill(stack, stream.id)
            frames = stream.rest()
        assert frames[-1].event == "done"
        assert {who(frame.data) for frame in frames[:-1]} == {("one", "fake")}
        assert tried(stack, stream.id) == [
            ("one", "fake", "failed"),
            ("two", "fake-b", "lost"),
            ("one", "fake", "completed"),
        ]


def test_a_cancel_is_heard_between_two_providers(
    stack: Stack, api: Api, first: Backend, second: Backend
) -> None:
    first.script({"headers_delay_ms": 60_000})
    second.script({"first_delay_ms": 60_000})
    completion_id = api.background(model="both")
    wait_until(lambda: len(second.completions) == 1, what="failover")
    assert api.post(f"/v1/chat/completions/{completion_id}/cancel").status_code == 200
    (row,) = stack.settled(completion_id)
    assert (row.status, row.generation and row.generation.provider) == ("cancelled", "two")


class TestCatalog:
    def test_a_model_that_the_first_one_lacks(self, api: Api, first: Backend, second: Backend) -> None:
        assert who(api.plain(model="half").json()) == ("two", "fake-b")
        assert (len(first.completions), len(second.completions)) == (0, 1)

    def test_a_first_one_that_was_never_there(self, backends: tuple[Backend, Backend]) -> None:
        """Its list can't be had."""
        with ExitStack() as exit:
            providers = {
                "gone": {"base_url": "http://127.0.0.1:9/v1", "timeout": {"connect": 1}},
                "two": {"base_url": backends[1].url},
            }
            stack = exit.enter_context(Stack(providers=providers, aliases={"both": ["gone:x", "two:fake-b"]}))
            api = exit.enter_context(stack.api())
            assert who(api.plain(model="both").json()) == ("two", "fake-b")


def test_nothing_is_written_where_providers_answer(stack: Stack, api: Api) -> None:
    """An alias's first target that answers leaves nothing of all this in Redis."""
    whole = api.seed(model="both")
    assert whole.last.event == "done"
    assert "target" not in stack.state(whole.id)
    assert '"by"' not in stack.state(whole.id)["head"]
    assert not stack.redis.exists(Keys(0).circuit("one"))
