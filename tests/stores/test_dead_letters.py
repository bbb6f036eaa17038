"""Records that can't be entered: put aside with the reason, in nobody's way, and entered once they can be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from schemas.keys import Keys
from schemas.records import Accepted, Ended, StoredLog, decode_record
from schemas.states import State
from stores.books import Books
from stores.ledger import BATCH, ROLE, WAITING_TTL_MS, Ledger, retry_dead
from stores.migration import migrate
from stores.sql import is_sqlite, make_engine, refusal, writing
from tests.support.generations import HEAD, Room, accepted, batch, ended, entries, ledger, texts
from tests.support.house import ledger_of

KEYS = Keys(0)
#: What a test's database refuses, as a model's name.
REFUSED = "refused"


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
async def leader(space: Room, books: Books) -> Ledger:
    ledger = ledger_of(space.redis, books)
    assert await ledger.lead(0)
    return ledger


def refuse(engine: Engine, table: str, condition: str) -> None:
    """From now on the database refuses new rows of the table for which the condition holds."""
    with writing(engine) as connection:
        if is_sqlite(engine):
            body = f"WHEN {condition} BEGIN SELECT RAISE(ABORT, 'not that one'); END"
            connection.exec_driver_sql(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} {body}")
        else:
            connection.exec_driver_sql(
                "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'not that one'; END $$"
            )
            connection.exec_driver_sql(
                f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW WHEN ({condition}) "
                "EXECUTE FUNCTION refuse()"
            )


def relent(engine: Engine, table: str) -> None:
    with writing(engine) as connection:
        connection.exec_driver_sql("DROP TRIGGER refuse" + ("" if is_sqlite(engine) else f" ON {table}"))


async def run_dry(leader: Ledger) -> None:
    while await leader.drain(0):
        pass


def dead(client: redis.Redis) -> list[tuple[str, str]]:
    """The dead letters: what each is and why."""
    return [(fields.get("r", ""), fields["error"]) for _, fields in entries(client, KEYS.dead)]


def assert_in_the_books(books: Books, id: str, items: list[bytes]) -> None:
    row = books.completion(id)
    assert row is not None
    assert row.status is State.COMPLETED
    assert row.usage is not None
    assert books.stored_log(id) == StoredLog(HEAD, b"\n".join(items), 0, len(items))


async def test_a_refused_acceptance(
    space: Room,
    leader: Ledger,
    books: Books,
    engine: Engine,
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others are entered, an error is logged, and later the refused one is entered too, with its text."""
    refuse(engine, "completions", f"NEW.model = '{REFUSED}'")
    before = [await space.finished(texts(0, 2)) for _ in range(20)]
    bad = await space.finished(texts(0, 3), accepted(model=REFUSED, metadata={"a": "word of the user's"}))
    after = [await space.finished(texts(0, 2)) for _ in range(20)]
    with caplog.at_level(logging.ERROR, "tailrace.ledger"):
        await run_dry(leader)
    for id in (*before, *after):
        assert_in_the_books(books, id, texts(0, 2))
        assert 0 < redis_client.pttl(KEYS.gen(id)) < WAITING_TTL_MS / 2
    assert books.completion(bad) is None
    [(record, why)] = dead(redis_client)
    assert decode_record(record) == (await state_of(space, bad))
    assert "not that one" in why
    [logged] = [r.getMessage() for r in caplog.records]
    assert bad in logged
    assert "--retry-dead" in logged
    assert "word of the user's" not in why + logged
    assert redis_client.pttl(KEYS.log(bad)) > WAITING_TTL_MS / 2

    relent(engine, "completions")
    assert await retry_dead(space.redis, 0) == 1
    assert not redis_client.exists(KEYS.dead)
    await run_dry(leader)
    assert_in_the_books(books, bad, texts(0, 3))
    assert 0 < redis_client.pttl(KEYS.log(bad)) < WAITING_TTL_MS / 2
    assert await retry_dead(space.redis, 0) == 0


async def state_of(space: Room, id: str) -> Accepted:
    state = await space.log.state(id)
    assert state is not None
    return state.info


@pytest.mark.parametrize(
    ("table", "condition"),
    [("generations", f"NEW.model = '{REFUSED}'"), ("results", "NEW.next = 4")],
)
async def test_a_refused_end(
    space: Room,
    leader: Ledger,
    books: Books,
    engine: Engine,
    redis_client: redis.Redis,
    table: str,
    condition: str,
) -> None:
    """A generation whose end or text is refused keeps its keys, for readers and for the next try."""
    refuse(engine, table, condition)
    bad = await space.running()
    await space.scripts.end(ended(bad, model=REFUSED), 1, batch(0, 4))
    good = await space.finished(texts(0, 2))
    await run_dry(leader)
    assert_in_the_books(books, good, texts(0, 2))
    row = books.completion(bad)
    assert row is not None
    assert row.status is State.QUEUED
    assert redis_client.pttl(KEYS.gen(bad)) == redis_client.pttl(KEYS.log(bad)) == -1
    [(record, _)] = dead(redis_client)
    buried = decode_record(record)
    assert isinstance(buried, Ended)
    assert buried.generation == bad

    assert await retry_dead(space.redis, 0) == 1  # too early
    await run_dry(leader)
    assert len(dead(redis_client)) == 1
    relent(engine, table)
    assert await retry_dead(space.redis, 0) == 1
    await run_dry(leader)
    assert_in_the_books(books, bad, texts(0, 4))
    assert redis_client.pttl(KEYS.gen(bad)) > 0


async def test_many_refused(
    space: Room, leader: Ledger, books: Books, engine: Engine, redis_client: redis.Redis
) -> None:
    """Wherever they stand in a batch, and however many there are."""
    refuse(engine, "completions", f"NEW.model = '{REFUSED}'")
    models = [REFUSED, REFUSED, *(REFUSED if n % 7 == 0 else "fine" for n in range(30)), REFUSED]
    records = [accepted(model=model) for model in models]
    for record in records:
        await space.accept(record)
    await run_dry(leader)
    assert len(dead(redis_client)) == models.count(REFUSED)
    assert [books.completion(r.id) is None for r in records] == [m == REFUSED for m in models]
    relent(engine, "completions")
    assert await retry_dead(space.redis, 0) == models.count(REFUSED)
    await run_dry(leader)
    assert all(books.completion(r.id) for r in records)


@pytest.mark.redis_keys(allow=["dead"])
async def test_what_is_no_record(
    space: Room, leader: Ledger, books: Books, redis_client: redis.Redis, redis_url: str
) -> None:
    """An entry that can't be decoded is put aside whole."""
    strange: list[dict[Any, Any]] = [
        {"r": "{"},
        {"r": '{"t":"unheard-of"}'},
        {"x": "1", "y": "2"},
        {"r": b"\xff"},
    ]
    for fields in strange:
        redis_client.xadd(KEYS.ledger, fields)
    good = await space.finished(texts(0, 2))
    await run_dry(leader)
    assert_in_the_books(books, good, texts(0, 2))
    assert ledger(redis_client, KEYS) == []
    with redis.Redis.from_url(redis_url) as raw:
        found = [
            fields for _, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", raw.xrange(KEYS.dead))
        ]
    assert [f.pop(b"error")[:12] for f in found] == [b"not a record"] * len(strange)
    assert found == [
        {k.encode(): v if isinstance(v, bytes) else v.encode() for k, v in fields.items()}
        for fields in strange
    ]


async def test_records_of_a_later_version(
    space: Room, leader: Ledger, books: Books, redis_client: redis.Redis
) -> None:
    """They stay for a process that knows them, even where they fill whole batches, and stop nothing behind them."""
    later = ['{"t":"accepted","id":7,"v":2}', '{"t":"unheard-of","v":9}']
    for n in range(BATCH + 10):
        redis_client.xadd(KEYS.ledger, {"r": later[n % 2]})
    good = await space.finished(texts(0, 2))
    await run_dry(leader)
    await run_dry(leader)
    assert_in_the_books(books, good, texts(0, 2))
    assert [fields["r"] for _, fields in entries(redis_client, KEYS.ledger)] == later * (BATCH // 2 + 5)
    assert not redis_client.exists(KEYS.dead)
    redis_client.delete(KEYS.ledger)


async def test_a_log_that_can_not_be_read(
    space: Room, leader: Ledger, books: Books, redis_client: redis.Redis
) -> None:
    """A generation whose keys are damaged stops no other."""
    damaged, overwritten = await space.finished(texts(0, 2)), await space.finished(texts(0, 2))
    redis_client.hset(KEYS.gen(damaged), "next", "many")
    log = cast("bytes", redis_client.dump(KEYS.log(overwritten)))
    redis_client.set(KEYS.log(overwritten), "something else")
    good = await space.finished(texts(0, 2))
    await run_dry(leader)
    assert_in_the_books(books, good, texts(0, 2))
    assert [("can't be read" in why) for _, why in dead(redis_client)] == [True, True]
    redis_client.hset(KEYS.gen(damaged), "next", "2")
    redis_client.restore(KEYS.log(overwritten), 0, log, replace=True)
    assert await retry_dead(space.redis, 0) == 2
    await run_dry(leader)
    for id in (damaged, overwritten):
        assert_in_the_books(books, id, texts(0, 2))


@pytest.mark.parametrize("lock", ["other", None])
async def test_one_who_no_longer_leads_buries_nothing(
    space: Room, leader: Ledger, books: Books, engine: Engine, redis_client: redis.Redis, lock: str | None
) -> None:
    """Whose lock is gone by the time that it knows what is refused leaves all of it to the leader there is."""
    refuse(engine, "completions", f"NEW.model = '{REFUSED}'")
    await space.accept(accepted(model=REFUSED))
    good = await space.accept()
    if lock is None:
        redis_client.delete(KEYS.lock(ROLE))
    else:
        redis_client.set(KEYS.lock(ROLE), lock, px=60_000)
    assert await leader.drain(0) == 0
    assert len(ledger(redis_client, KEYS)) == 2
    assert not redis_client.exists(KEYS.dead)
    relent(engine, "completions")
    other = ledger_of(space.redis, books, token="other")
    assert await other.lead(0)
    assert await other.drain(0) == 2
    assert books.completion(good) is not None


async def test_a_database_without_our_tables_refuses_nothing(
    space: Room, leader: Ledger, books: Books, engine: Engine, redis_client: redis.Redis
) -> None:
    """What is wrong with the database is no fault of the records: they wait."""
    good = await space.finished(texts(0, 2))
    with writing(engine) as connection:
        connection.exec_driver_sql("ALTER TABLE attempts RENAME TO elsewhere")
    with pytest.raises(SQLAlchemyError) as raised:
        await leader.drain(0)
    assert refusal(raised.value) is None
    assert len(ledger(redis_client, KEYS)) == 2
    with writing(engine) as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO attempts")
    await run_dry(leader)
    assert_in_the_books(books, good, texts(0, 2))


async def test_a_value_beyond_an_index(
    space: Room, leader: Ledger, engine: Engine, books: Books, redis_client: redis.Redis
) -> None:
    """PostgreSQL calls a value that is too long for an index an operational error; it is one of the data."""
    with writing(engine) as connection:
        connection.exec_driver_sql("CREATE INDEX too_small ON completions (resolved_model)")
    noise = "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(9000))
    long = accepted(resolved_model=noise)
    await space.accept(long)
    good = await space.finished(texts(0, 2))
    await run_dry(leader)
    assert_in_the_books(books, good, texts(0, 2))
    assert len(dead(redis_client)) == (0 if is_sqlite(engine) else 1)
    with writing(engine) as connection:
        connection.exec_driver_sql("DROP INDEX too_small")
    await retry_dead(space.redis, 0)
    await run_dry(leader)
    assert books.completion(long.id) is not None
