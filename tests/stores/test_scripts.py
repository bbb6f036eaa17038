"""The scripts of a generation's life, one by one: what each does and refuses, and that a second call does nothing."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import redis

from schemas.errors import Failure, Unavailable
from schemas.keys import Keys
from schemas.records import Accepted, Ended, Usage
from schemas.states import State
from stores.scripts import AcceptResult, Append, Batch, Claim, EndResult, NotClaimed, Rank, Renewal
from tests.conftest import StartValkey
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
    kinds,
    ledger,
    room,
    scores,
    texts,
)
from tests.support.proxy import proxy

KEYS = Keys(0)
TWO_ENDS = [State.COMPLETED, State.FAILED]


def now_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000


def expire_lease(client: redis.Redis, generation: str) -> None:
    """As if the lease had been given long ago."""
    assert client.zadd(KEYS.lease, {generation: 1}, xx=True, ch=True) == 1


def listen(client: redis.Redis, channel: str) -> Callable[[], list[str]]:
    """Subscribes; the function gives all messages so far."""
    subscription: Any = client.pubsub()
    subscription.ssubscribe(channel)
    assert subscription.get_sharded_message(timeout=5)["type"] == "ssubscribe"

    def messages() -> list[str]:
        found: list[str] = []
        while message := subscription.get_sharded_message(timeout=0.05):
            found.append(message["data"])
        return found

    return messages


def log_of(client: redis.Redis, generation: str) -> list[tuple[str, dict[str, str]]]:
    return entries(client, KEYS.log(generation))


# -- Accept


async def test_accept(space: Room, redis_client: redis.Redis) -> None:
    """Acceptance writes state, request, outbox, place in the queue and ledger record, at the server's time."""
    record = accepted(metadata={"a": "b"})
    before = now_ms(redis_client)
    result = await space.scripts.accept(record, b'{"work":1}')
    assert result.fresh
    assert before <= result.created_ms <= now_ms(redis_client)
    state = await space.log.state(record.id)
    assert state is not None
    assert (state.state, state.attempt, state.next, state.base) == (State.QUEUED, 0, 0, 0)
    assert state.info == msgspec.structs.replace(record, created_ms=result.created_ms)
    assert ledger(redis_client, KEYS) == [state.info]
    assert redis_client.get(KEYS.req(record.id)) == '{"work":1}'
    assert redis_client.hgetall(KEYS.outbox) == {record.id: f"interactive {result.seq}"}
    assert scores(redis_client, KEYS.queued("interactive")) == {record.id: result.seq}
    await space.scripts.published(record.id)
    await space.scripts.published(record.id)
    assert not redis_client.exists(KEYS.outbox)


async def test_accept_again(space: Room, redis_client: redis.Redis) -> None:
    """The same id a second time is told what the first was told and changes nothing, whatever became of it since."""
    record = accepted()
    first = await space.scripts.accept(record, b"1")
    again = msgspec.structs.replace(first, fresh=False)
    held = everything(redis_client)
    assert await space.scripts.accept(accepted(record.id, tenant="other"), b"2") == again
    assert everything(redis_client) == held
    await space.claim(record.id)
    await space.scripts.end(ended(record.id), 1)
    held = everything(redis_client)
    assert await space.scripts.accept(record, b"3") == again
    assert everything(redis_client) == held


async def test_messages_are_numbered_by_queue(space: Room) -> None:
    """Each queue counts its own messages from 1, without gaps."""
    numbers = [
        (queue, (await space.scripts.accept(accepted(queue=queue), b"")).seq)
        for queue in ("interactive", "bulk", "interactive", "bulk", "interactive")
    ]
    assert numbers == [("interactive", 1), ("bulk", 1), ("interactive", 2), ("bulk", 2), ("interactive", 3)]


async def test_a_deadline_counts_from_acceptance(space: Room) -> None:
    """A timeout becomes a deadline on the server's clock; without one there is none."""
    record, without = accepted(), accepted()
    result = await space.scripts.accept(record, b"", timeout_ms=2500)
    await space.scripts.accept(without, b"")
    states = [await space.log.state(r.id) for r in (record, without)]
    assert [s and s.info.deadline_ms for s in states] == [result.created_ms + 2500, None]


async def test_what_a_full_server_refuses(start_valkey: StartValkey) -> None:
    """At maxmemory nothing new is accepted, not even in part; all that was accepted goes on to its end."""
    server = start_valkey()
    async with room(server.url) as space:
        running, queued = await space.running(), await space.accept()
        with server.client() as client:
            client.config_set("maxmemory", 1)
            held = everything(client)
            with pytest.raises(Unavailable, match="no memory") as refusal:
                await space.scripts.accept(accepted(), b"")
            assert refusal.value.retry_after == 30
            assert everything(client) == held
        assert await space.scripts.append(running, 1, batch(0, 3)) is Append.OK
        assert await space.scripts.renew(0, {running: 1}, lease_ms=LEASE_MS) == {running: Renewal.OK}
        assert await space.scripts.annotate(running, b"{}")
        assert (await space.claim(queued)).attempt == 1
        assert await space.scripts.cancel(ended(queued, State.CANCELLED), "interactive") == "cancelling"
        assert await space.scripts.end(ended(running), 1, batch(3)) is EndResult.ENDED
        assert await space.scripts.lead(0, "ledger", "me", 1000)
        assert await space.scripts.settle(
            0, "ledger", "me", [], {KEYS.gen(running): 1000, KEYS.log(running): 1000}
        )


# -- Claim


async def test_claim(space: Room, redis_client: redis.Redis) -> None:
    """The first claim gives attempt 1, the request, and a lease from now on; the work leaves the queue."""
    record = accepted()
    made = await space.scripts.accept(record, b'{"work":1}')
    await space.scripts.published(record.id)
    before = now_ms(redis_client)
    claim = await space.claim(record.id, lease_ms=5000, seq=made.seq)
    assert claim == Claim(record.id, 1, 0, 0, made.created_ms, b'{"work":1}', claim.info)
    assert msgspec.json.decode(claim.info)["id"] == record.id
    expiry = scores(redis_client, KEYS.lease)[record.id]
    assert before + 5000 <= expiry <= now_ms(redis_client) + 5000
    assert not redis_client.exists(KEYS.queued("interactive"))
    state = await space.log.state(record.id)
    assert state is not None
    assert state.state is State.LEASED
    assert state.leased_ms is not None
    assert before <= state.leased_ms <= now_ms(redis_client)


async def test_what_can_not_be_claimed(space: Room, redis_client: redis.Redis) -> None:
    """A message that finds a live lease, an end, a newer version or nothing at all does nothing."""

    async def reason(generation: str, worker: str = "w") -> str:
        held = everything(redis_client)
        answer = await space.scripts.claim(generation, queue="interactive", worker=worker, lease_ms=LEASE_MS)
        assert isinstance(answer, NotClaimed)
        assert everything(redis_client) == held
        return answer.reason

    held, done, gone = await space.running(), await space.finished(texts(0, 2)), accepted().id
    assert await reason(held) == "held"
    assert await reason(held, "another") == "held"
    assert await reason(done) == "ended"
    assert await reason(gone) == "gone"
    newer = await space.accept()
    redis_client.hset(KEYS.gen(newer), "v", 2)
    assert await reason(newer) == "newer"


async def test_work_that_is_gone_leaves_the_queue(space: Room, redis_client: redis.Redis) -> None:
    """A place in the queue whose state is gone is cleared by whoever comes for it."""
    generation = await space.accept()
    redis_client.delete(KEYS.gen(generation), KEYS.req(generation))
    answer = await space.scripts.claim(generation, queue="interactive", worker="w", lease_ms=LEASE_MS)
    assert answer == NotClaimed("gone")
    assert not redis_client.exists(KEYS.queued("interactive"))


async def test_an_expired_lease_can_be_claimed(space: Room, redis_client: redis.Redis) -> None:
    """The next attempt has the next number and goes on at the log's tail; queue and creation time stay."""
    generation = await space.running()
    first = await space.log.state(generation)
    await space.scripts.append(generation, 1, batch(0, 4))
    expire_lease(redis_client, generation)
    claim = await space.claim(generation, worker="other")
    assert (claim.attempt, claim.next, claim.base) == (2, 4, 0)
    assert claim.request == b'{"v":1}'
    second = await space.log.state(generation)
    assert first is not None
    assert second is not None
    assert (second.created_ms, second.leased_ms) == (first.created_ms, first.leased_ms)
    assert await space.scripts.append(generation, 1, batch(4)) is Append.STALE
    assert await space.scripts.append(generation, 2, batch(4)) is Append.OK


async def test_the_watermark_only_rises(space: Room, redis_client: redis.Redis) -> None:
    """Taking a message advances its queue's mark to its number, also where there is nothing to do, and never back."""
    generation = await space.accept()
    for seq, mark in ((5, "5"), (3, "5"), (9, "9"), (0, "9")):
        await space.scripts.claim(generation, queue="interactive", worker="w", lease_ms=LEASE_MS, seq=seq)
        assert redis_client.get(KEYS.mark("interactive")) == mark
    await space.scripts.claim(accepted().id, queue="bulk", worker="w", lease_ms=LEASE_MS, seq=2)
    assert redis_client.get(KEYS.mark("bulk")) == "2"


# -- Renew


async def test_renew(space: Room, redis_client: redis.Redis) -> None:
    """One call renews what is still held, tells of cancels, and says which leases are another's by now."""
    held, cancelled, taken, over, late = [await space.running() for _ in range(5)]
    await space.scripts.cancel(ended(cancelled, State.CANCELLED), "interactive")
    expire_lease(redis_client, taken)
    await space.claim(taken)
    await space.scripts.end(ended(over), 1)
    expire_lease(redis_client, late)
    asked = dict.fromkeys([held, cancelled, taken, over, late, accepted().id], 1)
    before = now_ms(redis_client)
    answers = await space.scripts.renew(0, asked, lease_ms=90_000)
    assert list(answers) == list(asked)
    assert list(answers.values()) == [
        Renewal.OK,
        Renewal.CANCEL_ASKED,
        Renewal.LOST,
        Renewal.LOST,
        Renewal.OK,  # expired, but nobody has taken it
        Renewal.LOST,
    ]
    leases = scores(redis_client, KEYS.lease)
    assert {name for name, expiry in leases.items() if expiry >= before + 90_000} == {held, cancelled, late}
    assert set(leases) == {held, cancelled, late, taken}


async def test_renew_nothing(space: Room) -> None:
    """A process that holds nothing may say so."""
    assert await space.scripts.renew(0, {}, lease_ms=LEASE_MS) == {}


# -- Append


async def test_append(space: Room, redis_client: redis.Redis) -> None:
    """Each append is an entry, named after the index of its last chunk, and a message on the channel."""
    generation = await space.running()
    heard = listen(redis_client, KEYS.channel(generation))
    before = now_ms(redis_client)
    assert await space.scripts.append(generation, 1, batch(0, 3)) is Append.OK
    assert await space.scripts.append(generation, 1, batch(3)) is Append.OK
    assert log_of(redis_client, generation) == [("3-0", {"c": '"0"\n"1"\n"2"'}), ("4-0", {"c": '"3"'})]
    assert heard() == [f'3-0 h\n{HEAD.decode()}\n"0"\n"1"\n"2"', '4-0 c\n"3"']
    state = await space.log.state(generation)
    assert state is not None
    assert (state.next, state.head) == (4, HEAD)
    first_chunk = int(redis_client.hget(KEYS.gen(generation), "first_chunk_ms") or 0)
    assert before <= first_chunk <= now_ms(redis_client)


async def test_what_can_not_be_appended(space: Room, redis_client: redis.Redis) -> None:
    """Stale attempts, gaps and overlaps are refused, repeats do nothing, and none of them writes or rings."""
    generation = await space.running()
    await space.scripts.append(generation, 1, batch(0, 3))
    await space.scripts.append(generation, 1, batch(3, 2))
    queued, done = await space.accept(), await space.finished(texts(0, 2))
    held = everything(redis_client)
    heard = listen(redis_client, KEYS.channel(generation))
    outcomes = [
        await space.scripts.append(generation, 1, batch(3, 2)),
        await space.scripts.append(generation, 1, batch(0, 3)),
        await space.scripts.append(generation, 1, batch(0, 5)),
        await space.scripts.append(generation, 1, batch(4, 2)),
        await space.scripts.append(generation, 1, batch(6)),
        await space.scripts.append(generation, 0, batch(5)),
        await space.scripts.append(generation, 2, batch(5)),
        await space.scripts.append(queued, 0, batch(0)),
        await space.scripts.append(done, 1, batch(2)),
        await space.scripts.append(done, 1, batch(0)),
        await space.scripts.append(accepted().id, 1, batch(0)),
    ]
    assert outcomes == [
        *[Append.OK] * 3,
        *[Append.GAP] * 2,
        *[Append.STALE] * 6,
    ]
    assert everything(redis_client) == held
    assert heard() == []


async def test_many_logs_in_one_call(space: Room, redis_client: redis.Redis) -> None:
    """Logs that share a call don't share its outcome: each is appended to, or refused, by itself."""
    one, two, three = [await space.running() for _ in range(3)]
    await space.scripts.cancel(ended(two, State.CANCELLED), "interactive")
    codes = await space.scripts.append_all(
        0,
        [
            (one, 1, batch(0, 2)),
            (two, 1, batch(0, 1)),
            (three, 7, batch(0, 1)),
            (one, 1, batch(2, 1)),
            (one, 1, batch(9)),
        ],
    )
    assert codes == [Append.OK, Append.CANCEL_ASKED, Append.STALE, Append.OK, Append.GAP]
    assert [len(log_of(redis_client, g)) for g in (one, two, three)] == [2, 1, 0]
    assert await space.scripts.append_all(0, []) == []


async def test_any_bytes_are_kept(space: Room) -> None:
    """Items are bytes: whatever they hold but a line feed comes back."""
    generation = await space.running()
    items = [bytes(b for b in range(256) if b != 10), b"\r", "é\u2028😀".encode(), b"x" * 1_000_000]
    await space.scripts.append(generation, 1, Batch(0, len(items), b"\n".join(items), HEAD))
    _, found, _ = await space.log.read(generation, -1)
    assert [item for entry in found for item in entry.items] == items


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
        first_chunk_ms=record.first_chunk_ms,
        ended_ms=state.ended_ms,
    )
    assert kinds(redis_client) == {"partitions", "gen", "log", "ledger", "seq"}
    fields = redis_client.hkeys(KEYS.gen(generation))
    assert not {"cancel", "worker", "call"} & set(fields)


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
    """A second end, one of another attempt and one with a gap write nothing; the same end again says so."""
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
        await space.scripts.end(ended(queued), 0),
        await space.scripts.end(ended(running), 1, batch(3)),
        await space.scripts.end(ended(running), 1, batch(1, 2)),
        await space.scripts.end(ended(running), 2),
        await space.scripts.end(ended(accepted().id), 1),
    ]
    assert outcomes == [
        EndResult.REPEATED,
        *[EndResult.STALE] * 3,
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
    redis_client.delete(KEYS.lock("ledger"), KEYS.rank("ledger"))
    assert everything(redis_client) == held
    assert redis_client.pttl(KEYS.gen(done)) == -1


# -- Lost answers


async def test_a_lost_answer_is_given_again(redis_url: str, redis_client: redis.Redis) -> None:
    """Each script, made again because its answer was lost, answers what it had answered and does its work once."""
    target = urlsplit(redis_url)
    assert target.hostname
    assert target.port
    async with (
        proxy(target.hostname, target.port) as between,
        room(f"redis://127.0.0.1:{between.port}") as space,
    ):
        scripts = space.scripts
        record, unstarted = accepted(), accepted()
        await scripts.accept(unstarted, b"")
        await space.claim(await space.accept())  # all scripts that come first are known to the server by now

        async def lossy(call: Callable[[], Awaitable[Any]]) -> Any:
            lost = between.lost
            between.lose()
            answer = await call()
            assert between.lost == lost + 1
            return answer

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
        assert await lossy(lambda: scripts.end(cancel, 1, batch(2))) in (EndResult.ENDED, EndResult.REPEATED)
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


async def test_a_claim_made_again_is_no_second_claim(space: Room, redis_client: redis.Redis) -> None:
    """Two messages for one generation are two calls: the worker that has it does not get it twice."""
    generation = await space.running()
    answer = await space.scripts.claim(generation, queue="interactive", worker="w", lease_ms=LEASE_MS)
    assert answer == NotClaimed("held")
    expire_lease(redis_client, generation)
    assert (await space.claim(generation)).attempt == 2
