"""The budget of a key: what is in flight is reserved, what is in the books is spent, over several processes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import insert

from schemas.errors import LimitReached
from schemas.ids import new_completion_id
from schemas.keys import Keys
from schemas.tables import usage
from stores.apikeys import ApiKey
from stores.books import Books
from stores.keylimits import KeyLimits
from stores.migration import migrate
from stores.sql import make_engine, writing
from tests.support.generations import Room, accepted, ended


def key(**limits: int) -> ApiKey:
    return ApiKey("key_1", "acme", "test", "", False, 0, None, **limits)  # type: ignore[arg-type]


@pytest.fixture
def books(sqlite_url: str) -> Iterator[Books]:
    engine = make_engine(sqlite_url)
    migrate(engine)
    yield Books(engine)
    engine.dispose()


def book(books: Books, completion: str, cost: int, created_ms: int | None = None) -> None:
    """A usage record as the ledger enters it."""
    row = dict.fromkeys(
        (
            "prompt_tokens",
            "completion_tokens",
            "reasoning_tokens",
            "cached_tokens",
            "attempts",
            "duration_ms",
        ),
        0,
    )
    names = {"model": "m", "provider": "p", "resolved_model": "m", "cache": "bypass", "status": "completed"}
    with writing(books.engine) as connection:
        connection.execute(
            insert(usage).values(
                **row,
                **names,
                completion_id=completion,
                tenant="acme",
                key_id="key_1",
                estimated=False,
                cost_nano=cost,
                created_ms=created_ms or int(time.time() * 1000),
            )
        )


async def let_in(limits: KeyLimits, caller: ApiKey, completion: str, cost: int) -> bool:
    try:
        await limits.admit(caller, completion, tokens=0, size=0, cost_nano=cost)
    except LimitReached as error:
        assert error.code == "insufficient_quota"
        return False
    return True


def stale(client: redis.Redis) -> None:
    """As when a while has passed since the books were last looked at."""
    client.hset(Keys(0).keylimit("key_1", "state"), "looked", 0)


async def test_a_budget_is_not_overshot_by_more_than_was_in_flight(
    space: Room, books: Books, redis_client: redis.Redis
) -> None:
    """Whatever they cost in the end, and in whatever order two gateways let them in and the books learn of them."""
    budget, estimated = 10_000, 100
    caller = key(budget_nano=budget)
    gateways = [KeyLimits(space.redis, books, window_ms=60_000) for _ in range(2)]
    open_: list[str] = []
    spent = 0
    for _ in range(400):
        if open_ and random.random() < 0.5:
            id = open_.pop(random.randrange(len(open_)))
            cost = random.randint(0, 3 * estimated)
            await space.scripts.cancel(ended(id), "interactive")
            book(books, id, cost)
            spent += cost
        else:
            if random.random() < 0.3:
                stale(redis_client)
            id = new_completion_id()
            if await let_in(random.choice(gateways), caller, id, estimated):
                await space.accept(accepted(id))
                open_.append(id)
        stale(redis_client)
        if await let_in(gateways[0], caller, probe := new_completion_id(), estimated):
            assert spent + estimated * len(open_) + estimated <= budget, (
                "spent and reserved are within the budget"
            )
            await space.accept(accepted(probe))
            open_.append(probe)
    for id in open_:
        await space.scripts.cancel(ended(id), "interactive")
        book(books, id, estimated)
    assert not await let_in(gateways[1], caller, new_completion_id(), estimated)


async def test_a_row_is_charged_once_and_waits_for_what_is_under_way(space: Room, books: Books) -> None:
    """However often it is begun; with nothing under way that could leave room, the budget is spent."""
    caller, limits = key(budget_nano=1_000, rpm=1), KeyLimits(space.redis, books, window_ms=60_000)
    first, second = new_completion_id(), new_completion_id()
    for _ in range(3):
        assert await limits.charge(caller, first, cost_nano=600)
    assert not await limits.charge(caller, second, cost_nano=600)
    await space.accept(accepted(first))
    await space.scripts.cancel(ended(first), "interactive")
    book(books, first, 500)
    with pytest.raises(LimitReached) as spent:
        await limits.charge(caller, second, cost_nano=600)
    assert spent.value.code == "insufficient_quota"
    assert await limits.charge(caller, second, cost_nano=500)


async def test_what_is_spent_is_rebuilt_from_the_books(
    space: Room, books: Books, redis_client: redis.Redis
) -> None:
    """Where Redis has nothing of it; other months and other keys don't count."""
    now = int(time.time() * 1000)
    book(books, "last-year", 5_000, now - 366 * 86_400_000)
    book(books, "earlier", 900, now)
    caller, limits = key(budget_nano=1_000), KeyLimits(space.redis, books, window_ms=60_000)
    assert not await let_in(limits, caller, "a", 101)
    assert await let_in(limits, caller, "b", 100)
    redis_client.flushall()
    assert await let_in(limits, caller, "c", 100)
    assert not await let_in(limits, caller, "d", 1)


async def test_the_keys_of_a_limit_have_a_ttl(space: Room, books: Books, redis_client: redis.Redis) -> None:
    caller = key(rpm=5, tpm=5, concurrent=5, queued=5, queued_bytes=5, budget_nano=5)
    await KeyLimits(space.redis, books, window_ms=60_000).admit(caller, "a", tokens=1, size=1, cost_nano=1)
    names = [name for name in redis_client.scan_iter() if ":keylimit:" in name]
    assert len(names) == 5
    assert all(redis_client.ttl(name) > 0 for name in names)
