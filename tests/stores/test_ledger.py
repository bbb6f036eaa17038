"""From the ledger into the books: in bulk, as often as need be, and only by the partition's leader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import pytest
import redis
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError

from schemas.errors import Failure
from schemas.keys import Keys
from schemas.records import Record, StoredLog, Usage
from schemas.states import Queue, State
from schemas.tables import attempts
from stores.books import Applied, Books
from stores.chunklog import PAGE
from stores.flights import Flights
from stores.ledger import BATCH, ROLE, Ledger
from stores.migration import migrate
from stores.rows import CacheRow
from stores.sql import make_engine, reading
from tests.support.entered import contents
from tests.support.generations import (
    HEAD,
    Room,
    accepted,
    batch,
    ended,
    entries,
    expire_lease,
    ledger,
    past,
    room,
    texts,
)
from tests.support.house import ledger_of

KEYS = Keys(0)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def books(engine: Engine) -> Books:
    return Books(engine)


@pytest.fixture
async def leader(space: Room, books: Books) -> AsyncIterator[Ledger]:
    ledger = ledger_of(space.redis, books)
    assert await ledger.lead(0)
    yield ledger
    while await ledger.drain(0):
        pass


def ttl(client: redis.Redis, key: str) -> int:
    """In milliseconds; -1 is none."""
    return client.pttl(key)


class Crash(BaseException):
    pass


class Watched(Books):
    """Calls ``before`` ahead of each transaction, and ``after`` when it is committed."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.before = self.after = lambda: None

    def apply(
        self, records: Sequence[Record], logs: Mapping[str, StoredLog], cached: Sequence[CacheRow] = ()
    ) -> Applied:
        self.before()
        applied = super().apply(records, logs, cached)
        self.after()
        return applied


def crash() -> None:
    raise Crash


# -- Draining


async def test_an_empty_ledger(leader: Ledger) -> None:
    """Where there is nothing to enter, nothing happens."""
    assert await leader.drain(0) == 0


async def test_from_acceptance_to_the_books(
    space: Room, leader: Ledger, books: Books, redis_client: redis.Redis
) -> None:
    """What was accepted is in the books as queued; when it has ended, with its text, its usage and its end."""
    record = accepted(end_user="ada", metadata={"run": "7"})
    await space.accept(record)
    assert await leader.drain(0) == 1
    row = books.completion(record.id)
    assert row is not None
    assert (row.status, row.end_user, row.metadata) == (State.QUEUED, "ada", {"run": "7"})
    assert ledger(redis_client, KEYS) == []
    assert ttl(redis_client, KEYS.gen(record.id)) == -1

    await space.claim(record.id)
    log = [b'"\\u0000"', b'"\\ud83d"', *texts(2, 2 * PAGE)]
    for first in range(len(log)):
        await space.scripts.append(record.id, 1, batch(first, items=[log[first]]))
    used = Usage(prompt_tokens=3, completion_tokens=len(log))
    await space.scripts.end(ended(record.id, usage=used, finish_reasons=["stop"]), 1)
    state = await space.log.state(record.id)
    assert state is not None
    assert await leader.drain(0) == 1
    row = books.completion(record.id)
    assert row is not None
    assert row.generation is not None
    assert row.usage is not None
    assert (row.status, row.ended_ms) == (State.COMPLETED, state.ended_ms)
    assert (row.generation.attempt, row.generation.base, row.generation.next) == (1, 0, len(log))
    assert row.usage.tokens == used
    assert books.stored_log(record.id) == StoredLog(HEAD, b"\n".join(log), 0, len(log))
    assert await leader.drain(0) == 0


async def test_ends_of_all_kinds(space: Room, leader: Ledger, books: Books, engine: Engine) -> None:
    """Failed, cancelled and empty generations are settled too, each with what there was of it."""
    failure = Failure("provider_error", "No \x00 and half \ud83d.", status=429, provider_status=429)
    failed, cancelled, empty = await space.running(), await space.accept(), await space.finished([])
    await space.scripts.append(failed, 1, batch(0, 2))
    await space.scripts.end(ended(failed, State.FAILED, failure=failure), 1)
    await space.scripts.cancel(ended(cancelled, State.CANCELLED), "interactive")
    assert await leader.drain(0) == 6
    rows = {id: books.completion(id) for id in (failed, cancelled, empty)}
    assert [row and row.status for row in rows.values()] == [State.FAILED, State.CANCELLED, State.COMPLETED]
    assert [row and row.usage and row.usage.attempts for row in rows.values()] == [1, 0, 1]
    assert len(contents(engine)["usage"]) == 3
    assert books.stored_log(failed) == StoredLog(HEAD, b'"0"\n"1"', 0, 2)
    assert books.stored_log(cancelled) is None
    assert books.stored_log(empty) is None
    row = rows[failed]
    assert row is not None
    assert row.generation is not None
    assert row.generation.failure is not None
    assert row.generation.failure.message == "No \ufffd and half \ufffd."


async def test_attempts_on_the_way(
    space: Room, leader: Ledger, books: Books, engine: Engine, redis_client: redis.Redis
) -> None:
    """Each attempt of a generation is in the books, when it began and ended, also where the last one only waited."""
    done, cancelled = await space.running(), await space.running()
    used = Usage(prompt_tokens=5, completion_tokens=2)
    for generation in (done, cancelled):
        expire_lease(redis_client, generation)
        assert await space.reaped(generation) == "recovering"
        await space.claim(generation)
    await space.scripts.end(ended(done), 2, batch(0, 2))
    await space.left(cancelled, 2, batch(0, 2), record=past(2, "failed", usage=used), pause_ms=60_000)
    await space.scripts.cancel(ended(cancelled, State.CANCELLED), "interactive")
    assert await leader.drain(0) == 4
    with reading(engine) as connection:
        rows = connection.execute(select(attempts).order_by(attempts.c.number)).mappings().all()
    found = {g: [row for row in rows if row["generation_id"] == g] for g in (done, cancelled)}
    assert [(row["number"], row["state"]) for row in found[done]] == [(1, "lost"), (2, "completed")]
    assert [(row["number"], row["state"]) for row in found[cancelled]] == [(1, "lost"), (2, "failed")]
    for tried in found.values():
        times = [tried[i][name] for i in (0, 1) for name in ("started_ms", "ended_ms")]
        assert times == sorted(times)
        assert times[0] > 0
    row = books.completion(cancelled)
    assert row is not None
    assert row.usage is not None
    assert (row.usage.attempts, row.usage.tokens) == (2, used)
    assert books.stored_log(cancelled) == StoredLog(HEAD, b'"0"\n"1"', 0, 2)


async def test_text_that_is_not_to_be_kept(
    space: Room, leader: Ledger, books: Books, engine: Engine, redis_client: redis.Redis
) -> None:
    """With ``store: false`` the usage is kept and none of the text, not even for a moment."""
    secret = b'"a word that stays out of the books"'
    generation = await space.finished([secret], accepted(store=False))
    assert await leader.drain(0) == 2
    assert books.stored_log(generation) is None
    held = contents(engine)
    assert held["results"] == []
    assert len(held["usage"]) == 1
    assert "stays out" not in repr(held)
    assert ttl(redis_client, KEYS.log(generation)) > 0


async def test_more_records_than_a_batch(space: Room, leader: Ledger, engine: Engine) -> None:
    """A long ledger is entered batch by batch, an acceptance and its end in different ones too."""
    number = BATCH // 2 + 30
    records = [accepted() for _ in range(number)]
    await asyncio.gather(*(space.accept(record) for record in records))

    async def run(id: str) -> None:
        await space.claim(id)
        await space.scripts.end(ended(id), 1, batch(0, 2))

    await asyncio.gather(*(run(record.id) for record in records))
    assert [await leader.drain(0) for _ in range(3)] == [BATCH, 2 * number - BATCH, 0]
    held = contents(engine)
    assert [len(held[name]) for name in ("completions", "generations", "results", "usage")] == [number] * 4


async def test_each_partition_for_itself(
    redis_url: str, redis_client: redis.Redis, books: Books, engine: Engine
) -> None:
    """Draining one partition enters its records and no others'."""
    async with room(redis_url, partitions=4) as space:
        ids = [await space.finished(texts(0, 2)) for _ in range(20)]
        drain = ledger_of(space.redis, books)
        for partition in range(4):
            mine = {id for id in ids if space.redis.partition(id) == partition}
            assert await drain.lead(partition)
            assert await drain.drain(partition) == 2 * len(mine)
            assert {row[0] for row in contents(engine)["results"]} >= mine
        assert {row[0] for row in contents(engine)["results"]} == set(ids)
        assert not any(entries(redis_client, keys.ledger) for keys in space.redis.keyspace)


# -- Times to live


async def test_times_to_live(space: Room, books: Books, redis_client: redis.Redis) -> None:
    """Settled keys live on for the time of their queue; those in flight have no time."""
    interactive = await space.finished(texts(0, 2))
    bulk = await space.finished(texts(0, 2), accepted(queue=Queue.BULK.value))
    running = await space.running()
    drain = ledger_of(space.redis, books, interactive=3600, bulk=5)
    assert await drain.lead(0)
    assert await drain.drain(0) == 5
    for id, least, most in ((interactive, 3_500_000, 3_600_000), (bulk, 1, 5_000)):
        for key in (KEYS.gen(id), KEYS.log(id)):
            assert least <= ttl(redis_client, key) <= most
    assert ttl(redis_client, KEYS.gen(running)) == -1


async def test_only_what_is_committed_gets_a_time_to_live(
    space: Room, engine: Engine, redis_client: redis.Redis
) -> None:
    """Until the transaction is committed nothing of it leaves Redis or is about to; when it fails, nothing does."""
    watched = Watched(engine)
    drain = ledger_of(space.redis, watched)
    assert await drain.lead(0)
    generation = await space.finished(texts(0, 3))
    keys = [KEYS.gen(generation), KEYS.log(generation)]
    seen: list[tuple[list[int], int]] = []

    def look() -> None:
        seen.append(([ttl(redis_client, key) for key in keys], len(entries(redis_client, KEYS.ledger))))

    def refuse() -> None:
        raise OperationalError("COMMIT", {}, Exception("no room"))

    watched.before = refuse
    with pytest.raises(OperationalError):
        await drain.drain(0)
    look()
    watched.before = watched.after = look
    assert await drain.drain(0) == 2
    assert seen == [([-1, -1], 2)] * 3
    assert all(ttl(redis_client, key) > 0 for key in keys)


# -- Crashes and fences


async def test_a_crash_between_commit_and_settle(
    space: Room, books: Books, engine: Engine, redis_client: redis.Redis
) -> None:
    """Records that are in SQL and still in the ledger are entered again, which changes nothing but the ledger."""
    ids = [await space.finished(texts(0, 3)), await space.accept(), await space.running()]
    await space.scripts.end(ended(ids[2], State.FAILED), 1, batch(0, 1))
    crashing = Watched(engine)
    crashing.after = crash
    drain = ledger_of(space.redis, crashing)
    assert await drain.lead(0)
    with pytest.raises(Crash):
        await drain.drain(0)
    held = contents(engine)
    assert len(held["usage"]) == 2
    records = ledger(redis_client, KEYS)
    assert len(records) == 5
    assert ttl(redis_client, KEYS.gen(ids[0])) == -1
    await space.scripts.cancel(ended(ids[1], State.CANCELLED), "interactive")  # life goes on meanwhile
    again = ledger_of(space.redis, books)
    assert await again.lead(0)
    assert await again.drain(0) == 6
    after = contents(engine)
    assert len(after["usage"]) == 3
    unchanged = {name: [row for row in rows if row in after[name]] for name, rows in held.items()}
    assert unchanged["usage"] == held["usage"]
    assert unchanged["results"] == held["results"]
    assert unchanged["generations"] == held["generations"]
    assert ledger(redis_client, KEYS) == []
    assert ttl(redis_client, KEYS.gen(ids[0])) > 0


async def test_one_who_no_longer_leads(
    space: Room, books: Books, engine: Engine, redis_client: redis.Redis
) -> None:
    """Whose lock went to another while it wrote may not settle: records stay, keys too, for the new leader."""
    generation = await space.finished(texts(0, 3))
    slow = Watched(engine)

    def taken() -> None:
        redis_client.set(KEYS.lock(ROLE), "other", px=60_000)

    slow.after = taken
    one, other = ledger_of(space.redis, slow), ledger_of(space.redis, books, token="other")
    assert await one.lead(0)
    assert not await other.lead(0)
    assert await one.drain(0) == 0
    assert len(ledger(redis_client, KEYS)) == 2
    assert ttl(redis_client, KEYS.gen(generation)) == -1
    assert not await one.lead(0)
    held = contents(engine)
    assert await other.drain(0) == 2
    assert contents(engine) == held
    assert ledger(redis_client, KEYS) == []
    assert ttl(redis_client, KEYS.gen(generation)) > 0


async def test_two_who_drain_at_once(space: Room, engine: Engine, redis_client: redis.Redis) -> None:
    """Whoever drains beside the leader does no harm: the books are the same, and the ledger is empty once."""
    for _ in range(20):
        await space.finished(texts(0, 2))
    drains = [ledger_of(space.redis, Books(engine), token=token) for token in ("one", "two")]
    assert [await drain.lead(0) for drain in drains] == [True, False]
    assert await asyncio.gather(*(drain.drain(0) for drain in drains)) == [40, 0]
    held = contents(engine)
    assert [len(held[name]) for name in ("completions", "generations", "results", "usage")] == [20] * 4
    assert ledger(redis_client, KEYS) == []


async def test_a_log_that_is_gone(
    space: Room, leader: Ledger, books: Books, redis_client: redis.Redis
) -> None:
    """A record whose generation Redis lost is entered all the same, without a text."""
    generation = await space.finished(texts(0, 2))
    await Flights(space.redis).drop(generation, generation)
    assert await leader.drain(0) == 2
    row = books.completion(generation)
    assert row is not None
    assert row.status is State.COMPLETED
    assert books.stored_log(generation) is None
    assert not redis_client.exists(KEYS.gen(generation))


async def test_a_connection_that_was_cut(space: Room, books: Books, redis_client: redis.Redis) -> None:
    """A drain whose connection is cut goes on over a new one."""
    await space.finished(texts(0, 2))
    drain = ledger_of(space.redis, books)
    assert await drain.lead(0)
    redis_client.client_kill_filter(skipme=True)
    assert await drain.drain(0) == 2
