"""The engine: URLs, transactions of several writers, errors that say what to change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from schemas.errors import ConfigurationError
from stores.sql import make_engine, reading, writing
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from sqlalchemy import text
from stores.sql import make_engine, writing

engine = make_engine(sys.argv[1])
for _ in range(100):
    with writing(engine) as connection:
        count = connection.scalar(text("SELECT n FROM counter"))
        connection.execute(text("UPDATE counter SET n = :n"), {"n": count + 1})
engine.dispose()
"""

OPENER = """
import sys
from stores.sql import make_engine, reading

engine = make_engine(sys.argv[1])
with reading(engine) as connection:
    assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
engine.dispose()
"""


def together(script: str, *arguments: str, processes: int) -> None:
    """Run the script in several processes at once; all must succeed."""
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    running = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(processes)
    ]
    errors = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(errors)


# ------------------------------------------------------------------------------------------------------ URLs


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_a_postgresql_url_opens_it_with_psycopg(postgres_url: str, scheme: str) -> None:
    engine = make_engine(f"{scheme}:{postgres_url.partition(':')[2]}")
    with reading(engine) as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "30s"
        assert connection.scalar(text("SHOW application_name")) == "tailrace"
    assert engine.driver == "psycopg"
    engine.dispose()


def test_sqlite_is_opened_with_a_write_ahead_log_and_foreign_keys(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    with reading(engine) as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 10_000}
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "sqlite:///PATH"),
        ("books.db", "sqlite:///PATH"),
        ("postgresql://host:port/name", "sqlite:///PATH"),
        ("mysql://root@localhost/books", "mysql://"),
        ("postgresql+asyncpg://localhost/books", "postgresql+asyncpg://"),
        ("sqlite+aiosqlite:///books.db", "sqlite+aiosqlite://"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:////no/such/folder/books.db", "/no/such/folder"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_line(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_engine(url)
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    port = free_port()
    with pytest.raises(ConfigurationError) as caught:
        make_engine(f"postgresql://ada:s3cret@127.0.0.1:{port}/books")
    message = caught.value.message
    assert f"books at 127.0.0.1:{port}" in message
    assert "s3cret" not in message
    assert "\n" not in message


def test_a_wrong_password_is_not_repeated() -> None:
    with PostgresServer(password="right") as server:
        make_engine(server.url()).dispose()
        with pytest.raises(ConfigurationError) as caught:
            make_engine(server.url().replace("right", "wr0ng"))
    assert "password authentication failed" in caught.value.message
    assert "wr0ng" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_database_that_does_not_exist_is_named(postgres_url: str) -> None:
    with pytest.raises(ConfigurationError, match="no_such_books"):
        make_engine(postgres_url.rpartition("/")[0] + "/no_such_books")


def test_files_that_are_no_database_or_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to have the header of one" * 20)
    make_engine(f"sqlite:///{tmp_path}/books.db").dispose()
    for url, says in (
        (f"sqlite:///{tmp_path}", "folder"),
        (f"sqlite:///{tmp_path}/notes.txt", "not a database"),
        (f"sqlite:///file:{tmp_path}/books.db?mode=ro&uri=true", "readonly"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            make_engine(url)


def test_an_engine_can_be_made_while_the_server_is_away() -> None:
    engine = make_engine(f"postgresql://127.0.0.1:{free_port()}/books", connect=False)
    with pytest.raises(OperationalError), reading(engine) as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()


# ---------------------------------------------------------------------------------------------- transactions


def test_processes_that_open_a_new_sqlite_file_at_once_all_succeed(sqlite_url: str) -> None:
    together(OPENER, sqlite_url, processes=6)


def test_sqlite_writers_that_read_first_wait_for_each_other(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE counter (n INTEGER)"))
        connection.execute(text("INSERT INTO counter VALUES (0)"))
    together(WRITER, sqlite_url, processes=4)
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT n FROM counter")) == 400
    engine.dispose()


def test_reading_neither_waits_for_a_writer_nor_stops_one(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE counter (n INTEGER)"))
    with writing(engine) as writer:
        writer.execute(text("INSERT INTO counter VALUES (1)"))
        with reading(engine) as reader:
            assert reader.scalar(text("SELECT count(*) FROM counter")) == 0
    with reading(engine) as reader:
        assert reader.scalar(text("SELECT count(*) FROM counter")) == 1
        with writing(engine) as writer:
            writer.execute(text("INSERT INTO counter VALUES (2)"))
        assert reader.scalar(text("SELECT count(*) FROM counter")) == 1, "a reader sees one state"
    engine.dispose()


def test_a_block_that_raises_writes_nothing(database_url: str) -> None:
    engine = make_engine(database_url)
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE counter (n INTEGER)"))
    with pytest.raises(RuntimeError), writing(engine) as connection:
        connection.execute(text("INSERT INTO counter VALUES (1)"))
        raise RuntimeError
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT count(*) FROM counter")) == 0
    engine.dispose()
