"""Scripts whose answer was lost are called again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import redis

from schemas.keys import Keys
from schemas.records import Ended
from schemas.states import State
from stores.outcomes import AcceptResult, Append, Claim, EndResult, Left, NotClaimed, Renewal
from stores.scripts import SKIP
from tests.support.generations import (
    LEASE_MS,
    Room,
    accepted,
    batch,
    ended,
    entries,
    expire_lease,
    ledger,
    log_of,
    now_ms,
    room,
    scores,
)
from tests.support.proxy import proxy
from tests.support.waiting import until

KEYS = Keys(0)

Lossy = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@asynccontextmanager
async def lossy_room(redis_url: str) -> AsyncGenerator[tuple[Room, Lossy]]:
    """A key space behind a proxy, and what makes a call whose first answer is lost."""
    target = urlsplit(redis_url)
    assert target.hostname
    assert target.port
    async with (
        proxy(target.hostname, target.port) as between,
        room(f"redis://127.0.0.1:{between.port}") as space,
    ):

        async def lossy(call: Callable[[], Awaitable[Any]]) -> Any:
            lost = between.lost
            between.lose()
            answer = await call()
            assert between.lost == lost + 1
            return answer

        yield space, lossy


async def test_a_lost_answer_is_given_again(redis_url: str, redis_client: redis.Redis) -> None:
    """Each script, made again because its answer was lost, answers what it had answered and does its work once."""
    async with lossy_room(redis_url) as (space, lossy):
        scripts = space.scripts
        record, unstarted = accepted(), accepted()
        await scripts.accept(unstarted, b"")
        await space.claim(await space.accept())  # all scripts that come first are known to the server by now
        made: AcceptResult = await lossy(lambda: scripts.accept(record, b"x"))
        assert made.fresh
        assert redis_client.get(KEYS.seq("interactive")) == str(made.seq)
        claim: Claim = await lossy(lambda: space.claim(record.id))
        assert (claim.attempt, claim.request) == (1, b"x")
        assert await lossy(lambda: scripts.append(record.id, 1, batch(0, 2))) is Append.OK
        assert await lossy(lambda: scripts.renew(0, {record.id: 1}, lease_ms=LEASE_MS)) == {
            record.id: Renewal.OK
        }
        cancel = ended(record.id, State.CANCELLED)
        assert await lossy(lambda: scripts.cancel(cancel, "interactive")) == "cancelling"
        assert await lossy(lambda: scripts.end(cancel, claim.fence, batch(2))) in (
            EndResult.ENDED,
            EndResult.REPEATED,
        )
        assert (
            await lossy(lambda: scripts.cancel(ended(unstarted.id, State.CANCELLED), "interactive"))
            == "cancelled"
        )
        assert await lossy(lambda: scripts.annotate(record.id, b"{}"))
        assert await lossy(lambda: scripts.lead(0, "ledger", "me", 60_000))
        entry = entries(redis_client, KEYS.ledger)[0][0].encode()
        assert await lossy(lambda: scripts.settle(0, "ledger", "me", [entry], {}))
    assert [row[1].get("c") for row in log_of(redis_client, record.id)] == ['"0"\n"1"', '"2"', None]
    ends = [r.generation for r in ledger(redis_client, KEYS) if isinstance(r, Ended)]
    assert sorted(ends) == sorted([record.id, unstarted.id])


async def test_a_lost_answer_between_attempts(redis_url: str, redis_client: redis.Redis) -> None:
    """What follows a lost or failed attempt happens once; each attempt is in the record once."""
    async with lossy_room(redis_url) as (space, lossy):
        scripts = space.scripts
        warm = await space.running()
        await space.left(warm, pause_ms=1)
        await scripts.requeue(warm, "interactive")
        await scripts.restart(warm, 1)
        await scripts.setback(warm, 1, 0)
        await space.reaped(warm)
        generation = await space.running()
        await scripts.append(generation, 1, batch(0, 2))
        assert await lossy(lambda: space.left(generation, 1, batch(2), failed=True)) in (
            Left.LEFT,
            Left.REPEATED,
        )
        claim: Claim = await lossy(lambda: space.claim(generation))
        assert (claim.attempt, claim.tries) == (2, 1)
        assert await lossy(lambda: scripts.restart(generation, claim.fence)) == 3
        assert await lossy(lambda: scripts.setback(generation, claim.fence, 5))
        expire_lease(redis_client, generation)
        assert await lossy(lambda: space.reaped(generation, 2)) in ("recovering", "held")
        claim = await lossy(lambda: space.claim(generation))
        assert (claim.attempt, claim.skip) == (3, True)
        assert await lossy(lambda: scripts.restart(generation, claim.fence)) == SKIP + 3
        await space.left(generation, 3, pause_ms=1)
        await until(lambda: scores(redis_client, KEYS.parked)[generation] <= now_ms(redis_client))
        seq = int(redis_client.get(KEYS.seq("interactive")) or 0)
        assert await lossy(lambda: scripts.requeue(generation, "interactive")) in (0, seq + 1)
        assert redis_client.get(KEYS.seq("interactive")) == str(seq + 1)
        assert str(redis_client.hget(KEYS.outbox, generation)).startswith(f"interactive {seq + 1} ")
        await scripts.published(generation)
        assert await lossy(lambda: scripts.requeue(generation, "interactive", seq + 1)) in (0, seq + 2)
        assert redis_client.get(KEYS.seq("interactive")) == str(seq + 2)
        assert await lossy(lambda: scripts.cancel(ended(generation), "interactive")) == "completed"
    assert redis_client.hget(KEYS.gen(generation), "crashes") == "1"
    assert [fields["r"] for _, fields in log_of(redis_client, generation) if "r" in fields] == [
        "3",
        str(SKIP + 3),
    ]
    (end,) = [r for r in ledger(redis_client, KEYS) if isinstance(r, Ended)]
    assert [p.number for p in end.past] == [1, 2, 3]


async def test_a_claim_made_again_is_no_second_claim(space: Room, redis_client: redis.Redis) -> None:
    """Two messages for one generation are two calls: the worker that has it does not get it twice."""
    generation = await space.running()
    answer = await space.scripts.claim(generation, queue="interactive", worker="w", lease_ms=LEASE_MS)
    assert answer == NotClaimed("held")
    expire_lease(redis_client, generation)
    await space.reaped(generation)
    assert (await space.claim(generation)).attempt == 2
