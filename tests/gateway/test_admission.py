"""Near Redis's memory limit, or far behind with the books, nothing new is accepted, and all else goes on."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from schemas.keys import Keys
from stores.sql import writing
from tests.support.api import CHAT, Api, asking, error_of, ordered, text_of
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

#: Records that may wait for SQL, in these tests.
LIMIT = 30
BALLAST = "ballast"
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def narrow_stack() -> Iterator[Stack]:
    with Stack(settings={"LEDGER_LIMIT": str(LIMIT)}) as stack:
        yield stack
        stack.check_balanced()


@pytest.fixture
def ballast(narrow_stack: Stack) -> Iterator[None]:
    """Valkey at 90% of its memory, until the key is deleted."""
    redis = narrow_stack.redis
    used = int(redis.info("memory")["used_memory"])
    limit = used + 64 * MEGABYTE
    redis.config_set("maxmemory", limit)
    redis.setrange(BALLAST, limit * 9 // 10 - used, "x")
    try:
        yield
    finally:
        redis.delete(BALLAST)
        redis.config_set("maxmemory", 0)
        wait_until(lambda: narrow_stack.admission() == "open", what="open admission")


def refused(answer: httpx.Response, why: str) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    error = error_of(answer)
    assert error["code"] == "unavailable"
    assert why in error["message"]


def nothing_new(api: Api, why: str) -> None:
    """On all ways in."""
    stream = asking("new", stream=True)
    refused(api.plain("new"), why)
    refused(api.plain("new", headers={"Prefer": "respond-async"}), why)
    refused(api.plain("new", headers={"Idempotency-Key": "never seen"}), why)
    refused(api.post(CHAT, json=stream), why)
    refused(api.post(f"/api/v1/llm{CHAT.removeprefix('/v1')}/stream", json=stream), why)
    assert not api.provider_requests("new")


def test_near_the_memory_limit(narrow_stack: Stack, request: pytest.FixtureRequest) -> None:
    """Running streams finish, readers read and resume, cancels cancel; once there is room, work comes in again."""
    stack = narrow_stack
    with stack.api() as api:
        done = api.seed("before", headers={"Idempotency-Key": "before"})
        endless = api.background("endless", fake={"chunks": 100_000, "interval_ms": 20})
        with api.events(asking("running", fake={"chunks": 200, "interval_ms": 10})) as stream:
            frames = stream.next(3)
            request.getfixturevalue("ballast")
            wait_until(lambda: stack.admission() != "open", what="closed admission")
            assert "memory" in stack.admission()
            nothing_new(api, "memory")
            assert api.follow(done.id, after=4).frames == done.frames[5:]
            resumed = api.seed("before", headers={"x-last-chunk-index": "-1"})
            assert (resumed.id, resumed.frames) == (done.id, done.frames)
            adopted = api.plain("before", headers={"Idempotency-Key": "before"})
            assert adopted.headers["x-completion-id"] == done.id
            assert api.post(f"{CHAT}/{endless}/cancel").status_code == 200
            frames += stream.rest()
        assert text_of([f.data for f in frames]) == ordered(200)
        stack.settled(stream.id, endless)
        assert stack.admission() != "open"
        stack.redis.delete(BALLAST)
        wait_until(lambda: api.plain("after").status_code == 200, what="open admission")
        assert stack.admission() == "open"


def test_a_gateway_that_starts_full_is_closed_from_its_first_request(
    narrow_stack: Stack, ballast: None
) -> None:
    """And its readiness, which load balancers ask, is that of a gateway for readers."""
    port = free_port()
    narrow_stack.add_gateway("late", port)
    with narrow_stack.api() as api:
        api.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        refused(api.plain("new"), "memory")
    narrow_stack.remove("late")


def test_far_behind_with_the_books(narrow_stack: Stack) -> None:
    """While the ledger has more records than the setting allows, nothing new comes in; then it does again."""
    stack = narrow_stack
    with stack.api() as api:
        api.plain()
        ids: list[str] = []
        with writing(stack.engine):  # nobody else can write
            while True:
                answer = api.plain("fill")
                if answer.status_code != 200:
                    break
                ids.append(answer.headers["x-completion-id"])
            refused(answer, "behind")
            assert stack.redis.xlen(Keys(0).ledger) > LIMIT
            nothing_new(api, "behind")
            assert api.stored(ids[0])["status"] == "completed"
        stack.settled(*ids)
        wait_until(lambda: api.plain("after").status_code == 200, what="open admission")
