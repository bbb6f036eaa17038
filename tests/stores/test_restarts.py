"""Attempts that begin anew, and indexes that are never used again, also where Redis was set back."""

from __future__ import annotations

import pytest
import redis

from schemas.keys import Keys
from stores.outcomes import Append, Batch, EndResult, Left, Renewal
from stores.scripts import SKIP
from tests.support.generations import (
    HEAD,
    LEASE_MS,
    Room,
    accepted,
    batch,
    ended,
    everything,
    keep,
    last_end,
    listen,
    log_of,
    set_back,
)

KEYS = Keys(0)


# -- Restart


async def test_restart(space: Room, redis_client: redis.Redis) -> None:
    """A marker says where the new attempt's chunks begin; they bring a head of their own."""
    generation = await space.running()
    await space.scripts.append(generation, 1, batch(0, 3))
    assert await space.left(generation) is Left.LEFT
    await space.claim(generation)
    heard = listen(redis_client, KEYS.channel(generation))
    assert await space.scripts.restart(generation, 2) == 3
    held = everything(redis_client)
    assert await space.scripts.restart(generation, 2) == 3
    assert everything(redis_client) == held
    state = await space.log.state(generation)
    assert state is not None
    assert (state.base, state.next, state.head) == (3, 3, b"{}")
    other = Batch(3, 2, b'"3"\n"4"', b'{"top":{},"choice":{}}')
    assert await space.scripts.append(generation, 2, other) is Append.OK
    assert await space.scripts.restart(generation, 2) == 3, "repeated after its attempt went on"
    assert await space.scripts.end(ended(generation), 2) is EndResult.ENDED
    assert [(id, *fields) for id, fields in log_of(redis_client, generation)][1:] == [
        ("3-1", "r"),
        ("5-0", "c"),
        ("5-1", "e"),
    ]
    assert heard()[:2] == ["3-1 r\n3", f'5-0 h\n{other.head.decode()}\n"3"\n"4"']
    assert (last_end(redis_client).base, last_end(redis_client).next) == (3, 5)


async def test_restart_of_nothing(space: Room, redis_client: redis.Redis) -> None:
    """Where no chunk stands since the base there is nothing to abandon, and no marker."""
    generation = await space.running()
    held = everything(redis_client)
    assert await space.scripts.restart(generation, 1) == 0
    assert everything(redis_client) == held
    await space.scripts.append(generation, 1, batch(0, 2))
    for attempt in (1, 2, 3):
        await space.left(generation, attempt)
        await space.claim(generation)
        assert await space.scripts.restart(generation, attempt + 1) == 2
    assert [id for id, _ in log_of(redis_client, generation)] == ["2-0", "2-1"]
    assert await space.scripts.restart(generation, 3) is None
    assert await space.scripts.restart(generation, "4:another") is None
    assert await space.scripts.restart(accepted().id, 1) is None


@pytest.mark.parametrize("published", [0, 3])
async def test_indexes_are_never_used_again(space: Room, redis_client: redis.Redis, published: int) -> None:
    """Where chunks may be lost that somebody has read, every restart goes far ahead; entry ids only grow."""
    generation = await space.running()
    if published:
        await space.scripts.append(generation, 1, batch(0, published))
    expected = published
    for attempt in (1, 2, 3):
        assert await space.left(generation, attempt, skip=True) is Left.LEFT
        claim = await space.claim(generation)
        assert claim.skip
        held = everything(redis_client)
        assert await space.scripts.append(generation, claim.attempt, batch(expected)) is Append.GAP
        assert everything(redis_client) == held, "an attempt that did not restart publishes nothing"
        expected += SKIP
        for _ in range(2):
            assert await space.scripts.restart(generation, claim.attempt) == expected
    chunks = Batch(expected, 1, b'"x"', HEAD)
    assert await space.scripts.append(generation, 4, chunks) is Append.OK
    await space.left(generation, 4)
    assert not (await space.claim(generation)).skip
    await space.scripts.end(ended(generation), 5)
    ids = [tuple(map(int, id.split("-"))) for id, _ in log_of(redis_client, generation)]
    assert ids == sorted(set(ids))
    markers = [fields["r"] for _, fields in log_of(redis_client, generation) if "r" in fields]
    assert markers == [str(published + n * SKIP) for n in (1, 2, 3)]


@pytest.mark.parametrize(("skip", "places"), [(False, ["2-1", "2-2"]), (True, ["2-1", f"{SKIP + 2}-2"])])
async def test_an_end_right_after_a_marker(
    space: Room, redis_client: redis.Redis, skip: bool, places: list[str]
) -> None:
    """An attempt without chunks of its own has its end after the marker."""
    generation = await space.running()
    await space.scripts.append(generation, 1, batch(0, 2))
    await space.left(generation, skip=skip)
    await space.claim(generation)
    base = await space.scripts.restart(generation, 2)
    assert await space.scripts.end(ended(generation), 2) is EndResult.ENDED
    assert [id for id, _ in log_of(redis_client, generation)] == ["2-0", *places]
    assert (last_end(redis_client).base, last_end(redis_client).next) == (base, base)


# -- Setback


async def test_setback(space: Room, redis_client: redis.Redis) -> None:
    """Redis is behind an attempt that it has not had, or whose chunks it lost; the next one goes far ahead."""
    behind, ahead, unheard, unclaimed = [await space.running() for _ in range(4)]
    for generation in (behind, ahead):
        await space.scripts.append(generation, 1, batch(0, 2))
    held = everything(redis_client)
    assert not await space.scripts.setback(behind, 1, 2)
    assert not await space.scripts.setback(behind, 1, 0)
    assert not await space.scripts.setback(unheard, 2, 0), "nobody has read anything"
    assert not await space.scripts.setback(accepted().id, 1, 5)
    assert everything(redis_client) == held
    await space.left(ahead)
    await space.claim(ahead)
    assert not await space.scripts.setback(ahead, 1, 9)
    for _ in range(2):
        assert await space.scripts.setback(behind, 1, 3)
        assert await space.scripts.setback(unclaimed, 2, 1)
    for generation in (behind, unclaimed):
        assert await space.left(generation) is Left.LEFT
        assert (await space.claim(generation)).skip


async def test_a_number_that_was_given_twice(space: Room, redis_client: redis.Redis) -> None:
    """After a rollback two workers have the same number: who has the lost claim can do nothing but tell of it."""
    generation = await space.accept()
    keep(redis_client)
    first = await space.claim(generation)
    assert await space.scripts.append(generation, first.fence, batch(0, 3)) is Append.OK
    set_back(redis_client)
    second = await space.claim(generation, worker="other")
    assert (first.attempt, second.attempt) == (1, 1)
    assert await space.scripts.append(generation, second.fence, batch(0)) is Append.OK
    held = everything(redis_client)
    assert await space.scripts.append(generation, first.fence, batch(1)) is Append.STALE
    assert await space.scripts.append(generation, first.fence, batch(0)) is Append.STALE
    assert await space.scripts.end(ended(generation), first.fence) is EndResult.STALE
    assert await space.left(generation, fence=first.fence) is Left.STALE
    assert await space.scripts.restart(generation, first.fence) is None
    assert await space.scripts.renew(0, {generation: first.fence}, lease_ms=LEASE_MS) == {
        generation: Renewal.LOST
    }
    assert everything(redis_client) == held
    assert await space.scripts.setback(generation, first.fence, 3)
    assert await space.scripts.append(generation, second.fence, batch(1)) is Append.GAP
    assert await space.scripts.end(ended(generation), second.fence, batch(1)) is EndResult.GAP
    assert await space.scripts.end(ended(generation), second.fence) is EndResult.GAP, "whole as it seems"
    assert await space.left(generation, 1, batch(1), fence=second.fence) is Left.GAP
    assert await space.left(generation, fence=second.fence) is Left.LEFT
    third = await space.claim(generation)
    assert third.skip
    assert await space.scripts.restart(generation, third.fence) == SKIP + 1
