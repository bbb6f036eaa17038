"""An interactive request that joins bulk work promotes it: it goes before other bulk work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from producers.submit import Caller
from schemas.caching import CachePolicy
from schemas.keys import Keys
from tests.support.api import Api, asking
from tests.support.bulk import submitted
from tests.support.stack import Stack
from tests.support.valkey import wait_until

KEYS = Keys(0)
SHARED = CachePolicy(reads=True, writes=True, joins=True)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One call of the provider ``single`` goes at once."""
    with Stack(providers={"single": {"max_concurrency": 1, "bulk_share": 1.0}}) as stack:
        yield stack
        stack.check_balanced()


def bulk(stack: Stack, api: Api, body: dict[str, Any]) -> str:
    return submitted(stack, body, caller=Caller(api.tenant, "key_bulk"), policy=SHARED)


def test_queued_work_leaves_the_bulk_queue(stack: Stack) -> None:
    """While nobody takes bulk work. Its own message, which comes later, does nothing."""
    with stack.api() as api, stack.paused("bulk"):
        body = asking(api.tenant, temperature=0)
        id = bulk(stack, api, body)
        assert stack.state(id)["queue"] == "bulk"
        answer = api.plain(**body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-cache"] == "join"
        assert stack.redis.zcard(KEYS.queued("bulk")) == 0
    rows = stack.settled(id, answer.headers["x-completion-id"])
    assert {row.generation_id for row in rows} == {id}
    assert len(api.provider_requests(api.tenant)) == 1
    wait_until(lambda: stack.queue_length("bulk") == 0, what="empty queue")


def test_work_that_waits_for_a_permit_goes_first(stack: Stack) -> None:
    """The last of ten in line is the next one that the provider sees."""
    with stack.api() as api:
        running = api.background("running", model="single:fake", fake={"chunks": 40, "interval_ms": 100})
        wait_until(lambda: stack.state(running).get("state") == "leased", what="stream")
        bodies = [asking(f"{api.tenant} {n}", model="single:fake", temperature=0) for n in range(10)]
        ids = [bulk(stack, api, body) for body in bodies]
        wait_until(lambda: all(stack.state(id)["state"] == "parked" for id in ids), what="a line")
        answer = api.plain(**bodies[-1])
        assert answer.headers["x-cache"] == "join"
        stack.settled(running, *ids, answer.headers["x-completion-id"])
    contents = [call.prompt for call in stack.backend.completions]
    asked = [content for content in contents if content.startswith(api.tenant)]
    assert asked[0] == f"{api.tenant} 9"
    assert sorted(asked) == sorted(f"{api.tenant} {n}" for n in range(10))


def test_a_join_of_bulk_work_promotes_nothing(stack: Stack) -> None:
    with stack.api() as api, stack.paused("bulk"):
        body = asking(api.tenant, temperature=0)
        first, second = bulk(stack, api, body), bulk(stack, api, body)
        assert stack.state(first)["queue"] == "bulk"
        assert stack.redis.zcard(KEYS.queued("bulk")) == 1
    assert {row.generation_id for row in stack.settled(first, second)} == {first}
