"""A PostgreSQL that stops answering: nobody waits without bound, and few wait at all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from stores.migration import check_schema, migrate
from stores.sql import LOCK_MIGRATION, LOCK_SPACE, make_engine, reading, refusal, writing
from tests.support.postgres import PostgresServer
from tests.support.valkey import wait_until

#: Longer than anything that has a bound, in seconds.
FOREVER = 60


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def engine(server: PostgresServer) -> Iterator[Engine]:
    engine = make_engine(server.create_database(), statement_seconds=1)
    yield engine
    engine.dispose()


def ask(engine: Engine, statement: str = "SELECT 1") -> Any:
    with reading(engine) as connection:
        return connection.exec_driver_sql(statement).scalar()


def test_silence_ends_a_statement_and_opens_no_new_hole(server: PostgresServer, engine: Engine) -> None:
    """Whoever asks a silent server is told; when it speaks again, the next one is answered."""
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(lambda _: ask(engine), range(20))) == [1] * 20
        with server.paused():
            asked = [pool.submit(ask, engine) for _ in range(60)]
            errors = [each.exception(FOREVER) for each in asked]
        assert all(isinstance(error, OperationalError) for error in errors), errors
        assert all(refusal(error) is None for error in errors if isinstance(error, Exception))
    wait_until(lambda: answered(engine), what="answer")
    assert ask(engine) == 1


def answered(engine: Engine) -> bool:
    try:
        return ask(engine) == 1
    except OperationalError:
        return False


def test_silence_in_a_transaction(server: PostgresServer, engine: Engine) -> None:
    """What was begun is not committed, and leaves no locks behind."""
    with writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE t (x int)")
    with pytest.raises(OperationalError), writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        with server.paused():
            connection.exec_driver_sql("INSERT INTO t VALUES (2)")
    wait_until(lambda: answered(engine), what="answer")
    wait_until(lambda: ask(engine, "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass") == 0)
    assert ask(engine, "SELECT count(*) FROM t") == 0


def test_a_long_statement_is_the_servers_to_end(engine: Engine) -> None:
    """Its own time limit comes first, and the connection stays."""
    with reading(engine) as connection:
        with pytest.raises(OperationalError, match="statement timeout"):
            connection.exec_driver_sql("SELECT pg_sleep(30)")
        connection.rollback()
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1


def test_a_migration_waits_as_long_as_it_takes(server: PostgresServer, engine: Engine) -> None:
    """It has no time limit, neither ours nor the server's."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' "
        "AND query_start < now() - interval '3 seconds'"
    )
    with ThreadPoolExecutor(1) as pool, server.connect(engine.url.database or "") as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", (LOCK_SPACE, LOCK_MIGRATION))
        migrating = pool.submit(migrate, engine)
        wait_until(lambda: ask(engine, waiting) == 1, what="migration that waits for long")
        other.execute("SELECT pg_advisory_unlock(%s, %s)", (LOCK_SPACE, LOCK_MIGRATION))
        migrating.result(FOREVER)
    check_schema(engine)
