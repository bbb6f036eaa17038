"""The scripts that end a generation, and those around them: what each does and refuses."""

from __future__ import annotations

import time

import msgspec
import pytest
import redis

from schemas.errors import Failure
from schemas.keys import Keys
from schemas.records import Accepted, Ended, Usage
from schemas.states import State
from stores.outcomes import Append, Batch, EndResult, NotClaimed, Rank, Renewal
from tests.support.generations import (
    HEAD,
    LEASE_MS,
    LOST,
    Room,
    accepted,
    batch,
    ended,
    entries,
    everything,
    expire_lease,
    kinds,
    ledger,
    listen,
    log_of,
    texts,
)

KEYS = Keys(0)

# -- End


async def test_end(space: Room, redis_client: redis.Redis) -> None:
    """The end carries the last chunks, closes the log, records what happened and drops what nobody needs any more."""
    generation = await space.running()
    heard = listen(redis_client, KEYS.channel(generation))
    await space.scripts.append(generation, 1, batch(0, 2))
    usage = Usage(prompt_tokens=3, completion_tokens=4)
    assert (
        await space.scripts.end(ended(generation, usage=usage, finish_reasons=["stop"]), 1, batch(2))
        is EndResult.ENDED
    )
    assert log_of(redis_client, generation)[1:] == [
        ("3-0", {"c": '"2"'}),
        ("3-1", {"e": '{"state":"completed"}'}),
    ]
    assert heard()[1:] == ['3-0 c\n"2"', '3-1 e\n{"state":"completed"}']
    state = await space.log.state(generation)
    assert state is not None
    assert state.ended
    assert (state.state, state.next) == (State.COMPLETED, 3)
    record = ledger(redis_client, KEYS)[-1]
    assert isinstance(record, Ended)
    times = record.created_ms, record.leased_ms or 0, record.first_chunk_ms or 0, record.ended_ms
    assert list(times) == sorted(times)
    assert 0 not in times
    assert record == ended(
        generation,
        usage=usage,
        finish_reasons=["stop"],
        attempt=1,
        next=3,
        created_ms=state.created_ms,
        leased_ms=state.leased_ms,
        started_ms=state.leased_ms,
        first_chunk_ms=record.first_chunk_ms,
        ended_ms=state.ended_ms,
    )
    assert kinds(redis_client) == {"partitions", "gen", "log", "ledger", "seq"}
    fields = redis_client.hkeys(KEYS.gen(generation))
    assert not {"cancel", "worker", "past", "skip"} & set(fields)


@pytest.mark.parametrize("chunks", [0, 2])
async def test_an_end_alone(space: Room, redis_client: redis.Redis, chunks: int) -> None:
    """All chunks may come with the end, head and first-chunk time too; and an end may have no chunk at all."""
    generation = await space.running()
    await space.scripts.end(ended(generation), 1, batch(0, chunks) if chunks else Batch(0, 0, b""))
    record = ledger(redis_client, KEYS)[-1]
    assert isinstance(record, Ended)
    assert record.next == chunks
    assert (record.first_chunk_ms is not None) is bool(chunks)
    state = await space.log.state(generation)
    assert state is not None
    assert state.head == (HEAD if chunks else b"{}")
    _, found, more = await space.log.read(generation, -1)
    assert [item for entry in found for item in entry.items] == texts(0, chunks)
    assert found[-1].end is not None
    assert not more


async def test_what_can_not_be_ended(space: Room, redis_client: redis.Redis) -> None:
    """A second end, one of another attempt or call and one with a gap write nothing; the same again says so."""
    done = await space.running()
    failed = ended(done, State.FAILED, failure=LOST)
    await space.scripts.append(done, 1, batch(0, 2))
    await space.scripts.end(failed, 1, batch(2))
    queued, running = await space.accept(), await space.running()
    await space.scripts.append(running, 1, batch(0, 2))
    held = everything(redis_client)
    outcomes = [
        await space.scripts.end(failed, 1, batch(2)),
        await space.scripts.end(ended(done), 1, batch(2)),
        await space.scripts.end(ended(done, State.FAILED), 2),
        await space.scripts.end(failed, "1:another"),
        await space.scripts.end(ended(running), "1:another"),
        await space.scripts.end(ended(queued), 0),
        await space.scripts.end(ended(running), 1, batch(3)),
        await space.scripts.end(ended(running), 1, batch(1, 2)),
        await space.scripts.end(ended(running), 2),
        await space.scripts.end(ended(accepted().id), 1),
    ]
    assert outcomes == [
        EndResult.REPEATED,
        *[EndResult.STALE] * 5,
        *[EndResult.GAP] * 2,
        *[EndResult.STALE] * 2,
    ]
    assert everything(redis_client) == held
    assert (
        await space.scripts.end(ended(running), 1, batch(1)) is EndResult.ENDED
    )  # the append's answer was lost
    state = await space.log.state(running)
    assert state is not None
    assert state.next == 2


async def test_the_reaper_ends_expired_leases_alone(space: Room, redis_client: redis.Redis) -> None:
    """With ``expired_only`` a live lease is left alone; an expired one ends, and its holder can end it no more."""
    generation = await space.running()
    lost = ended(generation, State.FAILED, failure=LOST)
    assert await space.scripts.end(lost, 1, expired_only=True) is EndResult.STALE
    expire_lease(redis_client, generation)
    assert await space.scripts.renew(0, {generation: 1}, lease_ms=LEASE_MS) == {generation: Renewal.OK}
    assert await space.scripts.end(lost, 1, expired_only=True) is EndResult.STALE
    expire_lease(redis_client, generation)
    assert await space.scripts.end(lost, 1, expired_only=True) is EndResult.ENDED
    assert await space.scripts.end(ended(generation), 1, batch(0)) is EndResult.STALE
    assert await space.scripts.append(generation, 1, batch(0)) is Append.STALE
    assert await space.scripts.renew(0, {generation: 1}, lease_ms=LEASE_MS) == {generation: Renewal.LOST}


async def test_any_words_of_a_provider_can_end_a_generation(space: Room, redis_client: redis.Redis) -> None:
    """Half a surrogate pair, U+0000 or quotes in an error message don't leave a generation without an end."""
    generation = await space.running()
    failure = Failure("x", 'a "quoted" \ud83d word, \x00, \n and é')
    assert (
        await space.scripts.end(
            ended(generation, State.FAILED, failure=failure, finish_reasons=["\udfff"]), 1
        )
        is EndResult.ENDED
    )
    record = ledger(redis_client, KEYS)[-1]
    assert isinstance(record, Ended)
    assert record.failure is not None
    assert record.failure.message == 'a "quoted" \ufffd word, \x00, \n and é'
    assert record.finish_reasons == ["\ufffd"]
    state = await space.log.state(generation)
    assert state is not None
    assert state.end is not None
    assert state.end.error == msgspec.to_builtins(record.failure)


# -- Cancel


async def test_cancel_before_the_start(space: Room, redis_client: redis.Redis) -> None:
    """Queued work ends where it stands: the log has its end, the books their record, and no worker gets it."""
    record = accepted()
    await space.scripts.accept(record, b"")
    heard = listen(redis_client, KEYS.channel(record.id))
    cancel = ended(record.id, State.CANCELLED)
    assert await space.scripts.cancel(cancel, "interactive") == "cancelled"
    assert heard() == ['0-1 e\n{"state":"cancelled"}']
    assert [type(r) for r in ledger(redis_client, KEYS)] == [Accepted, Ended]
    final = ledger(redis_client, KEYS)[-1]
    assert isinstance(final, Ended)
    assert (final.attempt, final.next, final.leased_ms) == (0, 0, None)
    assert final.ended_ms >= final.created_ms > 0
    assert kinds(redis_client) == {"partitions", "gen", "log", "ledger", "seq"}
    held = everything(redis_client)
    assert await space.scripts.cancel(cancel, "interactive") == "cancelled"
    answer = await space.scripts.claim(record.id, queue="interactive", worker="w", lease_ms=LEASE_MS)
    assert answer == NotClaimed("ended")
    assert everything(redis_client) == held


async def test_cancel_of_running_work(space: Room, redis_client: redis.Redis) -> None:
    """Its worker is told at once, and again with every append and renewal until it ends."""
    generation = await space.running()
    told = listen(redis_client, KEYS.control)
    cancel = ended(generation, State.CANCELLED)
    assert await space.scripts.cancel(cancel, "interactive") == "cancelling"
    assert told() == [f"cancel {generation} 1"]
    assert await space.scripts.append(generation, 1, batch(0)) is Append.CANCEL_ASKED
    assert await space.scripts.append(generation, 1, batch(0)) is Append.CANCEL_ASKED
    assert await space.scripts.renew(0, {generation: 1}, lease_ms=LEASE_MS) == {
        generation: Renewal.CANCEL_ASKED
    }
    state = await space.log.state(generation)
    assert state is not None
    assert state.cancelling
    assert await space.scripts.end(cancel, 1) is EndResult.ENDED
    assert await space.scripts.cancel(cancel, "interactive") == "cancelled"
    assert [r.state for r in ledger(redis_client, KEYS) if isinstance(r, Ended)] == ["cancelled"]


async def test_cancel_of_what_is_over(space: Room, redis_client: redis.Redis) -> None:
    """An answer that is whole stays whole, and what isn't there stays away."""
    done = await space.finished(texts(0, 2))
    held = everything(redis_client)
    assert await space.scripts.cancel(ended(done, State.CANCELLED), "interactive") == "ended"
    assert await space.scripts.cancel(ended(accepted().id, State.CANCELLED), "interactive") == "gone"
    assert everything(redis_client) == held


# -- Annotate, lead, settle


async def test_annotate(space: Room, redis_client: redis.Redis) -> None:
    """Metadata can be replaced as long as Redis has the completion, and then never makes one up."""
    generation = await space.accept(accepted(metadata={"a": "1"}))
    assert await space.scripts.annotate(generation, b'{"b":"2"}')
    state = await space.log.state(generation)
    assert state is not None
    assert state.info.metadata == {"b": "2"}
    assert await space.scripts.annotate(generation, b"null")
    state = await space.log.state(generation)
    assert state is not None
    assert state.info.metadata is None
    held = everything(redis_client)
    assert not await space.scripts.annotate(accepted().id, b"{}")
    assert everything(redis_client) == held


async def test_lead(space: Room, redis_client: redis.Redis) -> None:
    """One process leads a role in a partition; it stays the leader while it says so, and for its time after that."""
    assert await space.scripts.lead(0, "ledger", "a", 60_000)
    assert not await space.scripts.lead(0, "ledger", "b", 60_000)
    assert await space.scripts.lead(0, "reaper", "b", 60_000)
    redis_client.pexpire(KEYS.lock("ledger"), 1000)
    assert await space.scripts.lead(0, "ledger", "a", 60_000)
    assert 59_000 < redis_client.pttl(KEYS.lock("ledger")) <= 60_000
    assert await space.scripts.lead(0, "ledger", "a", 1)
    deadline = time.monotonic() + 5
    while not await space.scripts.lead(0, "ledger", "b", 60_000):
        assert time.monotonic() < deadline
    assert not await space.scripts.lead(0, "ledger", "a", 60_000)


async def test_leaders_have_ranks(space: Room) -> None:
    """A candidate that goes before the leader takes its lock, and isn't robbed of it in turn."""
    assert await space.scripts.lead(0, "ledger", "streams", 60_000, Rank.SECOND)
    assert not await space.scripts.lead(0, "ledger", "others", 60_000, Rank.SECOND)
    assert await space.scripts.lead(0, "ledger", "bulk", 60_000, Rank.FIRST)
    assert not await space.scripts.lead(0, "ledger", "streams", 60_000, Rank.SECOND)
    assert not await space.scripts.lead(0, "ledger", "more", 60_000, Rank.FIRST)
    assert await space.scripts.lead(0, "ledger", "bulk", 60_000, Rank.FIRST)


async def test_settle(space: Room, redis_client: redis.Redis) -> None:
    """What the books have leaves the ledger, and keys get the time that they have left; again changes nothing."""
    done, other = await space.finished(texts(0, 2)), await space.finished(texts(0, 2))
    rows = [row[0].encode() for row in entries(redis_client, KEYS.ledger)]
    ttls = {KEYS.gen(done): 60_000, KEYS.log(done): 30_000}
    assert await space.scripts.lead(0, "ledger", "me", 60_000)
    for _ in range(2):
        assert await space.scripts.settle(0, "ledger", "me", rows[:2], ttls)
        assert [row[0].encode() for row in entries(redis_client, KEYS.ledger)] == rows[2:]
        assert 59_000 < redis_client.pttl(KEYS.gen(done)) <= 60_000
        assert 29_000 < redis_client.pttl(KEYS.log(done)) <= 30_000
        assert redis_client.pttl(KEYS.gen(other)) == -1


async def test_settle_is_the_leaders(space: Room, redis_client: redis.Redis) -> None:
    """A process that lost its lock, or never had it, removes nothing."""
    done = await space.finished(texts(0, 2))
    rows = [row[0].encode() for row in entries(redis_client, KEYS.ledger)]
    held = everything(redis_client)
    assert not await space.scripts.settle(0, "ledger", "me", rows, {KEYS.gen(done): 1})
    await space.scripts.lead(0, "ledger", "other", 60_000)
    assert not await space.scripts.settle(0, "ledger", "me", rows, {KEYS.gen(done): 1})
    redis_client.delete(KEYS.lock("ledger"), KEYS.rank("ledger"), KEYS.heard)
    assert everything(redis_client) == held
    assert redis_client.pttl(KEYS.gen(done)) == -1
