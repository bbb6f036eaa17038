"""The scripts of a generation's life, one by one: what each does and refuses, and that a second call does nothing.

Here from acceptance to the last append; ``test_ends.py`` and ``test_attempts.py`` have the others.
"""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import redis

from schemas.errors import Unavailable
from schemas.keys import Keys
from schemas.states import State
from stores.outcomes import Append, Batch, Claim, Crashes, EndResult, Left, NotClaimed, Renewal
from stores.scripts import SKIP
from tests.conftest import StartValkey
from tests.support.generations import (
    HEAD,
    LEASE_MS,
    Room,
    accepted,
    batch,
    ended,
    everything,
    expire_lease,
    kinds,
    ledger,
    listen,
    log_of,
    now_ms,
    room,
    scores,
    texts,
)
from tests.support.waiting import until

KEYS = Keys(0)


def _due(client: redis.Redis, generation: str) -> bool:
    return scores(client, KEYS.parked)[generation] <= now_ms(client)


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
    assert redis_client.hgetall(KEYS.outbox) == {record.id: f"interactive {result.seq} {result.created_ms}"}
    assert scores(redis_client, KEYS.queued("interactive")) == {record.id: result.seq}
    await space.scripts.published(record.id)
    await space.scripts.published(record.id)
    assert not redis_client.exists(KEYS.outbox, KEYS.deadlines)


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


async def test_a_deadline_counts_from_acceptance(space: Room, redis_client: redis.Redis) -> None:
    """A timeout becomes a deadline on the server's clock, and is watched; without one there is none."""
    record, without = accepted(), accepted()
    result = await space.scripts.accept(record, b"", timeout_ms=2500)
    await space.scripts.accept(without, b"")
    states = [await space.log.state(r.id) for r in (record, without)]
    assert [s and s.info.deadline_ms for s in states] == [result.created_ms + 2500, None]
    assert scores(redis_client, KEYS.deadlines) == {record.id: result.created_ms + 2500}
    again = await space.scripts.accept(accepted(record.id), b"", timeout_ms=9000)
    assert not again.fresh
    assert scores(redis_client, KEYS.deadlines) == {record.id: result.created_ms + 2500}


async def test_what_a_full_server_refuses(start_valkey: StartValkey) -> None:
    """At maxmemory nothing new is accepted, not even in part; all that was accepted goes on to its end."""
    server = start_valkey()
    async with room(server.url) as space:
        running, queued, lost, retried = await space.running(), *[await space.accept() for _ in range(3)]
        await space.claim(lost)
        await space.claim(retried)
        with server.client() as client:
            expire_lease(client, lost)
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
        await space.scripts.append(lost, 1, batch(0, 3))
        assert await space.reaped(lost, skip=True) == "recovering"
        assert (await space.claim(lost)).attempt == 2
        assert await space.scripts.restart(lost, 2) == 3 + SKIP
        assert await space.left(retried, pause_ms=1) is Left.LEFT
        while not await space.scripts.requeue(retried, "interactive"):
            await asyncio.sleep(0.001)
        assert await space.scripts.setback(retried, 2, 1)
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
    assert claim == Claim(record.id, 1, 0, 0, made.created_ms, b'{"work":1}', claim.info, call=claim.call)
    assert claim.fence == f"1:{claim.call}"
    assert claim.call
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
    """A message that finds a lease, a pause, an end, a newer version or nothing at all does nothing."""

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
    expired, parked = await space.running(), await space.running()
    expire_lease(redis_client, expired)
    assert await reason(expired) == "held", "the reaper's, with whatever follows from a lost worker"
    await space.left(parked, pause_ms=60_000)
    assert await reason(parked) == "parked"
    newer = await space.accept()
    redis_client.hset(KEYS.gen(newer), "v", 2)
    assert await reason(newer) == "newer"


async def test_work_that_is_gone_leaves_the_queue(space: Room, redis_client: redis.Redis) -> None:
    """What is left of work whose state is gone is cleared by whoever comes for it, wherever it waited."""
    record, recovering, suspect = accepted(), await space.running(), await space.running()
    await space.scripts.accept(record, b"")
    await space.left(recovering)
    expire_lease(redis_client, suspect)
    await space.reaped(suspect, crashes=Crashes(2))
    assert scores(redis_client, KEYS.recovery).keys() == {recovering}
    assert scores(redis_client, KEYS.suspects).keys() == {suspect}
    for generation in (record.id, recovering, suspect):
        redis_client.delete(KEYS.gen(generation))
        answer = await space.scripts.claim(generation, queue="interactive", worker="w", lease_ms=LEASE_MS)
        assert answer == NotClaimed("gone")
    assert kinds(redis_client) == {"partitions", "ledger", "seq"}


async def test_the_next_attempt(space: Room, redis_client: redis.Redis) -> None:
    """It has the next number, the log as it stands and what is known of earlier ones; creation and first claim stay."""
    generation = await space.running()
    first = await space.log.state(generation)
    await space.scripts.append(generation, 1, batch(0, 4))
    assert await space.left(generation, pause_ms=1, failed=True, skip=True) is Left.LEFT
    await until(lambda: _due(redis_client, generation))
    assert await space.scripts.requeue(generation, "interactive")
    claim = await space.claim(generation, worker="other")
    assert (claim.attempt, claim.next, claim.base, claim.head) == (2, 4, 0, HEAD)
    assert (claim.request, claim.tries, claim.skip) == (b'{"v":1}', 1, True)
    assert claim.waited_ms > 0
    assert await space.scripts.restart(generation, 2) == SKIP + 4
    assert not redis_client.exists(KEYS.recovery, KEYS.suspects, KEYS.parked, KEYS.outbox)
    second = await space.log.state(generation)
    assert first is not None
    assert second is not None
    assert (second.created_ms, second.leased_ms) == (first.created_ms, first.leased_ms)
    assert await space.scripts.append(generation, 1, batch(4)) is Append.STALE
    assert await space.scripts.append(generation, 2, batch(SKIP + 4)) is Append.OK


async def test_a_claim_out_of_recovery(space: Room, redis_client: redis.Redis) -> None:
    """Work that waits for another attempt is in one set, and a claim takes it from there; also with an old message."""
    recovering, suspect = await space.running(), await space.running()
    for generation, crashes in ((recovering, Crashes(3)), (suspect, Crashes(2))):
        expire_lease(redis_client, generation)
        assert await space.reaped(generation, crashes=crashes) == "recovering"
    assert (await space.claim(recovering)).attempt == 2
    assert (await space.claim(suspect, seq=2)).attempt == 2
    assert not redis_client.exists(KEYS.recovery, KEYS.suspects)


async def test_the_watermark_only_rises(space: Room, redis_client: redis.Redis) -> None:
    """Taking a message, a probe too, advances its queue's mark to its number, also where there is nothing to do."""
    generation = await space.accept()
    for seq, mark in ((5, "5"), (3, "5"), (9, "9"), (0, "9")):
        await space.scripts.claim(generation, queue="interactive", worker="w", lease_ms=LEASE_MS, seq=seq)
        assert redis_client.get(KEYS.mark("interactive")) == mark
    await space.scripts.claim(accepted().id, queue="bulk", worker="w", lease_ms=LEASE_MS, seq=2)
    assert redis_client.get(KEYS.mark("bulk")) == "2"
    for seq, mark in ((1, "2"), (7, "7"), (7, "7")):
        await space.scripts.mark(0, "bulk", seq)
        assert redis_client.get(KEYS.mark("bulk")) == mark


# -- Renew


async def test_renew(space: Room, redis_client: redis.Redis) -> None:
    """One call renews what is still held, tells of cancels, and says which leases are another's by now."""
    held, cancelled, taken, over, late = [await space.running() for _ in range(5)]
    await space.scripts.cancel(ended(cancelled, State.CANCELLED), "interactive")
    expire_lease(redis_client, taken)
    await space.reaped(taken)
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
