"""Limits of an API key and answers that are shared: what the provider is not asked for counts for no limit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from schemas.keys import Keys
from tests.support.api import CHAT, Api
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

DETERMINISTIC: dict[str, Any] = {"temperature": 0}
PRICED = {"prices": {"*": {"input": 0, "output": 1_000_000}}}


@pytest.fixture(scope="module")
def limited() -> Iterator[Stack]:
    with Stack(settings={"KEY_CACHE_SECONDS": "0"}, providers={"priced": PRICED}) as stack:
        yield stack
        stack.check_balanced()


def caller(stack: Stack, tenant: str, **limits: int) -> Api:
    """A client whose new key has limits."""
    _, key = stack.keys.create("limited", tenant, limits=limits)
    return Api(stack.url, key, tenant=tenant, backend=stack.backend)


def flights(stack: Stack) -> list[str]:
    return [*stack.redis.scan_iter(Keys(0).flight("*"))]


@pytest.fixture
def tenant(limited: Stack) -> str:
    return limited.tenant()


def test_hits_take_none(limited: Stack, tenant: str) -> None:
    """A key whose limit is reached still has what is there."""
    with caller(limited, tenant, rpm=1) as api:
        answers = [api.plain(tenant, **DETERMINISTIC) for _ in range(4)]
        assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit", "hit", "hit"]
        assert "x-ratelimit-remaining-requests" not in answers[1].headers
        assert api.plain("another").status_code == 429


def test_joins_take_none(limited: Stack, tenant: str) -> None:
    """Of many equal requests at once one counts, and that one alone has to be within the limits."""
    with caller(limited, tenant, rpm=1, concurrent=1) as api, ThreadPoolExecutor(8) as pool:
        slow = {"chunks": 40, "interval_ms": 50}
        answers = [*pool.map(lambda _: api.seed(tenant, fake=slow, **DETERMINISTIC), range(8))]
        assert {answer.last.event for answer in answers} == {"done"}
        assert sorted(answer.headers["x-cache"] for answer in answers).count("miss") == 1
        assert len(api.provider_requests(tenant)) == 1


def test_they_cost_a_budget_nothing(limited: Stack, tenant: str) -> None:
    """The first answer takes all of it."""
    with caller(limited, tenant, budget_nano=20 * 10**9) as api:
        first = api.plain(tenant, model="priced:fake", max_tokens=10, **DETERMINISTIC)
        assert first.headers["x-cache"] == "miss", first.text
        limited.settled(first.json()["id"])
        again = [api.plain(tenant, model="priced:fake", max_tokens=10, **DETERMINISTIC) for _ in range(3)]
        assert [answer.headers["x-cache"] for answer in again] == ["hit"] * 3
        rows = limited.settled(*(answer.json()["id"] for answer in again))
        assert [(row.usage.cost_nano, row.usage.saved_nano) for row in rows if row.usage] == [
            (0, 10 * 10**9)
        ] * 3


def test_a_refused_request_holds_nobody_up(limited: Stack, tenant: str) -> None:
    """It leaves no flight behind that others would wait for, and its Idempotency-Key is free for another request."""
    key = {"Idempotency-Key": "once"}
    with caller(limited, tenant, rpm=1) as spent, caller(limited, tenant) as free:
        assert spent.plain("first").status_code == 200
        wait_until(lambda: not flights(limited), what="the end of other tests' flights")
        assert spent.plain(tenant, headers=key, **DETERMINISTIC).status_code == 429
        assert not flights(limited)
        answer = free.plain("something else", headers=key)
        assert answer.status_code == 200, answer.text
        assert free.plain(tenant, **DETERMINISTIC).headers["x-cache"] == "miss"
        assert spent.plain(tenant, **DETERMINISTIC).headers["x-cache"] in ("hit", "join")


def test_a_miss_that_may_ask_nobody_frees_its_key(limited: Stack, tenant: str) -> None:
    headers = {"Idempotency-Key": "once", "Cache-Control": "only-if-cached"}
    with caller(limited, tenant) as api:
        assert api.plain(tenant, headers=headers, **DETERMINISTIC).status_code == 504
        answer = api.plain("another request", headers={"Idempotency-Key": "once"})
        assert answer.status_code == 200, answer.text


def test_a_flight_ends_with_its_answer(limited: Stack, tenant: str) -> None:
    with caller(limited, tenant, rpm=5) as api:
        api.plain(tenant, **DETERMINISTIC)
        wait_until(lambda: not flights(limited), what="the flight's end")


def test_who_has_left_is_not_there_any_more(limited: Stack, tenant: str) -> None:
    """A cancelled completion is open no longer for its key, though its generation goes on for another one."""
    slow = {"chunks": 900, "interval_ms": 100}
    with caller(limited, tenant, concurrent=1) as creator, caller(limited, tenant) as other:
        first = creator.background(tenant, fake=slow, **DETERMINISTIC)
        joined = other.background(tenant, fake=slow, **DETERMINISTIC)
        assert creator.plain("another").status_code == 429
        assert creator.post(f"{CHAT}/{first}/cancel").status_code == 200
        assert creator.plain("another").status_code == 200
        assert other.stored(joined)["status"] == "in_progress"
        other.post(f"{CHAT}/{joined}/cancel")
        assert {row.generation_id for row in limited.settled(first, joined)} == {first}
