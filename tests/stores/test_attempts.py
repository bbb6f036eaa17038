"""The scripts between two attempts at a generation: what each does and refuses, and what the next attempt finds."""

from __future__ import annotations

import re
from typing import Any

import pytest
import redis

from schemas.keys import Keys
from schemas.records import Accepted, Ended, Usage
from schemas.states import State
from stores.outcomes import Append, Calm, Crashes, EndResult, Left, Renewal
from tests.support.generations import (
    LEASE_MS,
    LOST,
    Room,
    accepted,
    batch,
    ended,
    everything,
    expire_lease,
    kinds,
    last_end,
    ledger,
    listen,
    log_of,
    now_ms,
    past,
    scores,
    texts,
    waits_in,
)
from tests.support.waiting import until

KEYS = Keys(0)


async def lose(space: Room, client: redis.Redis, generation: str, attempt: int, **options: Any) -> None:
    """An attempt's worker dies."""
    expire_lease(client, generation)
    assert await space.reaped(generation, attempt, **options) == "recovering"


async def due(space: Room, client: redis.Redis, generation: str) -> int:
    """Let a parked generation's time come, and put it into its queue again; the message's number."""
    await until(lambda: scores(client, KEYS.parked)[generation] <= now_ms(client))
    return await space.scripts.requeue(generation, "interactive")


# -- Reap


async def test_reap(space: Room, redis_client: redis.Redis) -> None:
    """A lost attempt's generation waits for the next one; its worker can write nothing more, and all are told."""
    generation = await space.running()
    await space.scripts.append(generation, 1, batch(0, 2))
    expire_lease(redis_client, generation)
    told = listen(redis_client, KEYS.control)
    before = now_ms(redis_client)
    assert await space.reaped(generation) == "recovering"
    assert told() == ["recover"]
    state = await space.log.state(generation)
    assert state is not None
    assert (state.state, state.attempt, state.next) == (State.QUEUED, 1, 2)
    assert waits_in(redis_client, generation) == {"recovery"}
    assert before <= scores(redis_client, KEYS.recovery)[generation] <= now_ms(redis_client)
    held = everything(redis_client)
    assert await space.reaped(generation) == "held"
    assert await space.scripts.append(generation, 1, batch(2)) is Append.STALE
    assert await space.scripts.end(ended(generation), 1) is EndResult.STALE
    assert await space.scripts.restart(generation, 1) is None
    assert await space.scripts.renew(0, {generation: 1}, lease_ms=LEASE_MS) == {generation: Renewal.LOST}
    assert await space.left(generation) is Left.REPEATED
    assert everything(redis_client) == held


async def test_what_is_not_reaped(space: Room, redis_client: redis.Redis) -> None:
    """A lease that lives, or was renewed, another attempt's, and work that nobody holds are left alone."""
    live, renewed, taken = [await space.running() for _ in range(3)]
    queued = await space.accept()
    expire_lease(redis_client, renewed)
    await space.scripts.renew(0, {renewed: 1}, lease_ms=LEASE_MS)
    await lose(space, redis_client, taken, 1)
    await space.claim(taken)
    expire_lease(redis_client, taken)
    done = await space.finished(texts(0, 1))
    held = everything(redis_client)
    answers = [
        await space.reaped(live),
        await space.reaped(renewed),
        await space.reaped(taken, 1),
        await space.reaped(queued, 0),
        await space.reaped(done),
    ]
    assert answers == ["held"] * 5
    assert await space.reaped(accepted().id) == "gone"
    assert everything(redis_client) == held


async def test_leases_that_nobody_can_hold(space: Room, redis_client: redis.Redis) -> None:
    """A lease on what is gone or not leased is dropped; leased work without any lease is reaped."""
    gone, done, bare = accepted().id, await space.finished(texts(0, 1)), await space.running()
    redis_client.zrem(KEYS.lease, bare)
    redis_client.zadd(KEYS.lease, {gone: 1, done: 1})
    assert await space.reaped(gone) == "gone"
    assert await space.reaped(done) == "held"
    assert not redis_client.exists(KEYS.lease)
    assert await space.reaped(bare) == "recovering"


async def test_nothing_is_reaped_after_an_outage(space: Room, redis_client: redis.Redis) -> None:
    """Leases run out while nobody reaches Redis: their holders first get the time to renew them."""
    calm = Calm(lasts_ms=10_000, gap_ms=6_000)

    async def reaped() -> str:
        return await space.reaped(generation, calm=calm)

    def heard(ago: int, since: int) -> None:
        now = now_ms(redis_client)
        redis_client.hset(KEYS.heard, mapping={"at": now - ago, "since": now - since})

    async def lead(token: str) -> None:
        await space.scripts.lead(0, "ledger", token, 60_000, calm=calm)

    generation = await space.running()
    expire_lease(redis_client, generation)
    assert await reaped() == "early"  # nobody was ever heard
    await lead("a")
    assert await reaped() == "early"
    heard(ago=1_000, since=3_000)
    assert await reaped() == "early"
    heard(ago=7_000, since=60_000)  # an outage, before anybody has noticed its end
    assert await reaped() == "early"
    await lead("b")  # who doesn't lead is heard, too
    assert await reaped() == "early"
    heard(ago=1_000, since=20_000)
    await lead("b")
    assert redis_client.pttl(KEYS.heard) > 0
    assert await reaped() == "recovering"


async def test_too_many_crashes(space: Room, redis_client: redis.Redis) -> None:
    """The last but one crash makes a suspect, the last one is for the reaper to end, and says so until that is done."""
    generation = await space.running()
    await lose(space, redis_client, generation, 1)
    await space.claim(generation)
    await lose(space, redis_client, generation, 2)
    assert waits_in(redis_client, generation) == {"suspects"}
    await space.claim(generation)
    assert await space.left(generation, 3) is Left.LEFT, "a release is no crash"
    assert waits_in(redis_client, generation) == {"suspects"}
    await space.claim(generation)
    expire_lease(redis_client, generation)
    held = everything(redis_client)
    for _ in range(2):
        assert await space.reaped(generation, 4) == "crashed"
    assert everything(redis_client) == held
    lost = ended(generation, State.FAILED, failure=LOST)
    assert await space.scripts.end(lost, 4, expired_only=True) is EndResult.ENDED
    record = last_end(redis_client)
    assert (record.attempt, [p.number for p in record.past]) == (4, [1, 2, 3])
    assert [p.state for p in record.past] == ["lost", "lost", "released"]


async def test_one_crash_may_be_too_many(space: Room, redis_client: redis.Redis) -> None:
    """With one crash allowed there is no second attempt; with two, the second is a suspect's."""
    one, two = await space.running(), await space.running()
    for generation in (one, two):
        expire_lease(redis_client, generation)
    assert await space.reaped(one, crashes=Crashes(1)) == "crashed"
    assert await space.reaped(two, crashes=Crashes(2)) == "recovering"
    assert waits_in(redis_client, two) == {"suspects"}


async def test_a_cancel_whose_worker_died(space: Room, redis_client: redis.Redis) -> None:
    """It is no work to recover: the reaper ends it as cancelled, with the attempt that ran."""
    generation = await space.running()
    cancel = ended(generation, State.CANCELLED)
    await space.scripts.cancel(cancel, "interactive")
    expire_lease(redis_client, generation)
    held = everything(redis_client)
    assert await space.reaped(generation) == "cancelled"
    assert everything(redis_client) == held
    assert await space.scripts.end(cancel, 1, expired_only=True) is EndResult.ENDED
    assert (last_end(redis_client).state, last_end(redis_client).past) == ("cancelled", [])


# -- Leave


async def test_release(space: Room, redis_client: redis.Redis) -> None:
    """A worker that stops leaves its last chunks, and the generation waits for another one at once."""
    generation = await space.running()
    await space.scripts.append(generation, 1, batch(0, 2))
    heard, told = listen(redis_client, KEYS.channel(generation)), listen(redis_client, KEYS.control)
    assert await space.left(generation, 1, batch(2)) is Left.LEFT
    assert (heard(), told()) == (['3-0 c\n"2"'], ["recover"])
    assert waits_in(redis_client, generation) == {"recovery"}
    held = everything(redis_client)
    assert await space.left(generation, 1, batch(2)) is Left.REPEATED
    assert everything(redis_client) == held
    claim = await space.claim(generation)
    assert (claim.attempt, claim.next, claim.tries, claim.skip) == (2, 3, 0, False)
    held = everything(redis_client)
    assert await space.left(generation, 1, batch(3)) is Left.STALE
    assert everything(redis_client) == held


async def test_park(space: Room, redis_client: redis.Redis) -> None:
    """A failed try waits until its time, which is the server's; tries are counted, and no crash."""
    generation = await space.running()
    told = listen(redis_client, KEYS.control)
    before = now_ms(redis_client)
    used = Usage(prompt_tokens=7)
    record = past(1, "failed", usage=used)
    assert await space.left(generation, pause_ms=60_000, failed=True, record=record, fence=1) is Left.LEFT
    assert before + 60_000 <= scores(redis_client, KEYS.parked)[generation] <= now_ms(redis_client) + 60_000
    assert waits_in(redis_client, generation) == {"parked"}
    assert told() == []
    state = await space.log.state(generation)
    assert state is not None
    assert state.state is State.PARKED
    held = everything(redis_client)
    assert await space.left(generation, pause_ms=60_000, failed=True) is Left.REPEATED
    assert await space.reaped(generation) == "held"
    assert everything(redis_client) == held
    assert redis_client.hget(KEYS.gen(generation), "tries") == "1"
    assert not redis_client.hexists(KEYS.gen(generation), "crashes")
    assert await space.scripts.cancel(ended(generation, State.CANCELLED), "interactive") == "cancelled"
    (tried,) = last_end(redis_client).past
    assert (tried.state, tried.usage) == ("failed", used)


async def test_what_can_not_be_left(space: Room, redis_client: redis.Redis) -> None:
    """Work of others, of nobody and with a gap; and where a cancel is asked for, the worker is to end it."""
    cancelled, running, queued = await space.running(), await space.running(), await space.accept()
    done = await space.finished(texts(0, 2))
    await space.scripts.append(running, 1, batch(0, 2))
    await space.scripts.cancel(ended(cancelled, State.CANCELLED), "interactive")
    held = everything(redis_client)
    outcomes = [
        await space.left(cancelled, 1, batch(0)),
        await space.left(running, 1, batch(3)),
        await space.left(running, 2),
        await space.left(running, fence="1:another"),
        await space.left(queued, 1),
        await space.left(done),
        await space.left(accepted().id),
    ]
    assert outcomes == [Left.CANCEL_ASKED, Left.GAP, *[Left.STALE] * 5]
    assert everything(redis_client) == held


# -- Requeue


async def test_parked_work_is_due(space: Room, redis_client: redis.Redis) -> None:
    """Not before its time; then it has a new number, a place in its queue and an outbox entry, and again nothing."""
    early, generation = await space.running(), await space.running()
    await space.left(early, pause_ms=60_000)
    await space.left(generation, pause_ms=1)
    held = everything(redis_client)
    assert await space.scripts.requeue(early, "interactive") == 0
    assert everything(redis_client) == held
    before = now_ms(redis_client)
    assert await due(space, redis_client, generation) == 3
    assert waits_in(redis_client, generation) == {"queued:interactive", "outbox"}
    entry = redis_client.hget(KEYS.outbox, generation)
    found = re.fullmatch(r"interactive 3 (\d+)", str(entry))
    assert found
    assert before <= int(found[1]) <= now_ms(redis_client)
    assert scores(redis_client, KEYS.queued("interactive"))[generation] == 3
    held = everything(redis_client)
    assert await space.scripts.requeue(generation, "interactive") == 0
    assert everything(redis_client) == held
    assert (await space.claim(generation, seq=3)).attempt == 2
    assert waits_in(redis_client, generation) == {"lease"}


async def test_a_lost_message(space: Room, redis_client: redis.Redis) -> None:
    """Queued work gets another message in place of the one that was lost; in place of any other it does not."""
    record = accepted()
    made = await space.scripts.accept(record, b"")
    await space.scripts.published(record.id)
    held = everything(redis_client)
    for lost in (made.seq + 1, 99):
        assert await space.scripts.requeue(record.id, "interactive", lost) == 0
    assert everything(redis_client) == held
    assert await space.scripts.requeue(record.id, "interactive", made.seq) == made.seq + 1
    held = everything(redis_client)
    assert await space.scripts.requeue(record.id, "interactive", made.seq) == 0
    assert everything(redis_client) == held
    assert waits_in(redis_client, record.id) == {"queued:interactive", "outbox"}
    assert (await space.claim(record.id, seq=made.seq)).attempt == 1, "the old message was only late"


async def test_what_is_not_requeued(space: Room, redis_client: redis.Redis) -> None:
    """What a worker has, what waits to be recovered, what is over."""
    running, recovering, done = await space.running(), await space.running(), await space.finished([])
    await space.left(recovering)
    held = everything(redis_client)
    for generation in (running, recovering, done):
        seq = int(redis_client.hget(KEYS.gen(generation), "seq") or 0)
        assert await space.scripts.requeue(generation, "interactive") == 0
        assert await space.scripts.requeue(generation, "interactive", seq) == 0
    assert everything(redis_client) == held


async def test_places_of_what_is_gone(space: Room, redis_client: redis.Redis) -> None:
    """Whoever comes for it clears them."""
    gone = accepted().id
    redis_client.zadd(KEYS.parked, {gone: 1})
    redis_client.zadd(KEYS.queued("interactive"), {gone: 1})
    redis_client.zadd(KEYS.deadlines, {gone: 1})
    assert await space.scripts.requeue(gone, "interactive") == 0
    assert await space.scripts.requeue(gone, "interactive", 1) == 0
    assert await space.scripts.cancel(ended(gone, State.FAILED), "interactive") == "gone"
    assert kinds(redis_client) == {"partitions"}


# -- The books of it


async def test_the_record_has_every_attempt(space: Room, redis_client: redis.Redis) -> None:
    """However each one ended; each with its own times, and the generation with the first claim's."""
    record = accepted()
    await space.scripts.accept(record, b"", timeout_ms=60_000)
    generation = record.id
    await space.claim(generation)
    await lose(space, redis_client, generation, 1)
    await space.claim(generation)
    await space.left(
        generation, 2, record=past(2, "failed", model='a "quoted" \ud83d'), pause_ms=1, failed=True
    )
    await due(space, redis_client, generation)
    await space.claim(generation)
    await space.left(generation, 3)
    await space.claim(generation)
    await space.scripts.end(ended(generation), 4)
    assert not any(waits_in(redis_client, generation) - {f"gen:{generation}"})
    end = last_end(redis_client)
    assert [(p.number, p.state) for p in end.past] == [(1, "lost"), (2, "failed"), (3, "released")]
    assert end.past[1].model == 'a "quoted" \ufffd'
    moments = [end.created_ms, end.leased_ms or 0]
    for attempt in end.past:
        moments += [attempt.started_ms or 0, attempt.ended_ms]
    moments += [end.started_ms or 0, end.ended_ms]
    assert 0 not in moments
    assert moments == sorted(moments)
    assert end.leased_ms == end.past[0].started_ms


@pytest.mark.parametrize("where", ["recovery", "suspects", "parked", "queued:interactive"])
async def test_what_ends_while_it_waits(space: Room, redis_client: redis.Redis, where: str) -> None:
    """Cancelled or past its deadline, wherever it waits for another attempt: it leaves every set."""
    record = accepted()
    await space.scripts.accept(record, b"", timeout_ms=60_000)
    await space.claim(record.id)
    await space.scripts.append(record.id, 1, batch(0, 2))
    deadline = ended(record.id, State.FAILED, failure=LOST)
    assert await space.scripts.cancel(deadline, "interactive") == "leased"
    match where:
        case "recovery":
            await space.left(record.id)
        case "suspects":
            expire_lease(redis_client, record.id)
            await space.reaped(record.id, crashes=Crashes(2))
        case _:
            await space.left(record.id, pause_ms=1)
    if where == "queued:interactive":
        await due(space, redis_client, record.id)
    assert where in waits_in(redis_client, record.id)
    assert await space.scripts.cancel(deadline, "interactive") == "failed"
    assert kinds(redis_client) == {"partitions", "gen", "log", "ledger", "seq"}
    held = everything(redis_client)
    assert await space.scripts.cancel(deadline, "interactive") == "failed"
    assert await space.scripts.cancel(ended(record.id, State.CANCELLED), "interactive") == "ended"
    assert await space.scripts.requeue(record.id, "interactive") == 0
    assert await space.left(record.id) is Left.STALE
    assert everything(redis_client) == held
    assert log_of(redis_client, record.id)[-1][0] == "2-1"
    end = last_end(redis_client)
    assert (end.attempt, end.next, [p.number for p in end.past]) == (1, 2, [1])
    assert [type(r) for r in ledger(redis_client, KEYS)] == [Accepted, Ended]


# -- Failover


async def test_failover(space: Room, redis_client: redis.Redis) -> None:
    """The next attempt is the same worker's, under the same lease; the one that failed is on record, and its number
    writes nothing more."""
    generation = await space.accept()
    claim = await space.claim(generation)
    assert claim.target is None
    lease = scores(redis_client, KEYS.lease)
    answer = await space.scripts.failover(claim, ("other", "m"), past(1, "failed"), call="c2")
    assert answer is not None
    assert (answer.attempt, answer.fence, answer.target) == (2, "2:c2", ("other", "m"))
    held = everything(redis_client)
    assert await space.scripts.failover(claim, ("other", "m"), past(1, "failed"), call="c2") == answer
    assert everything(redis_client) == held, "called again, because its answer was lost"
    assert await space.scripts.append(generation, claim.fence, batch(0)) is Append.STALE
    assert await space.scripts.failover(claim, ("third", "m"), past(1, "failed"), call="c3") is None
    assert await space.scripts.append(generation, answer.fence, batch(0)) is Append.OK
    assert scores(redis_client, KEYS.lease) == lease
    state = await space.log.state(generation)
    assert state is not None
    assert (state.provider, state.model, state.attempt) == ("other", "m", 2)
    await lose(space, redis_client, generation, 2, record=past(2, "lost"))
    again = await space.claim(generation)
    assert (again.attempt, again.tries, again.target) == (3, 0, ("other", "m"))
    assert await space.scripts.end(ended(generation), 3, batch(1)) is EndResult.ENDED
    record = last_end(redis_client)
    assert [(p.number, p.state) for p in record.past] == [(1, "failed"), (2, "lost")]


async def test_a_cancel_comes_before_a_failover(space: Room) -> None:
    """What would ask another provider is told to end; nothing has changed for it."""
    generation = await space.accept()
    claim = await space.claim(generation)
    await space.scripts.cancel(ended(generation, State.CANCELLED), "interactive")
    answer = await space.scripts.failover(claim, ("other", "m"), past(1, "failed"), call="c2")
    assert answer is not None
    assert answer.attempt == 0
    assert await space.scripts.end(ended(generation, State.CANCELLED), claim.fence) is EndResult.ENDED


async def test_another_target_without_a_call(space: Room, redis_client: redis.Redis) -> None:
    """An attempt that has asked nobody stays the same one. Parked without a call it leaves no record, and its number to
    the next attempt, in whose name it can write nothing."""
    generation = await space.accept()
    claim = await space.claim(generation)
    turned = await space.scripts.failover(claim, ("other", "m"), None, call="c2")
    assert turned is not None
    assert (turned.attempt, turned.fence) == (1, claim.fence)
    left = await space.scripts.leave(generation, None, crashes=Crashes(3), fence=claim.fence, pause_ms=1)
    assert left is Left.LEFT
    await due(space, redis_client, generation)
    again = await space.claim(generation)
    assert (again.attempt, again.tries) == (1, 0)
    assert await space.scripts.append(generation, claim.fence, batch(0)) is Append.STALE
    assert await space.scripts.end(ended(generation), again.fence) is EndResult.ENDED
    record = last_end(redis_client)
    assert (record.attempt, record.past) == (1, [])
