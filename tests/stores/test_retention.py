"""Old completions go, with their texts; their usage stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, func, select

from schemas.records import Attempted
from schemas.tables import attempts, completions, generations, results, usage
from stores import retention
from stores.books import Books
from stores.cache import Cache
from stores.migration import migrate
from stores.retention import GRACE_MS, prune
from stores.rows import CacheRow
from stores.sql import make_engine, reading
from tests.support.entered import LOG, T0, accepted, ended
from tests.tailrace.command import complaint, run

LATER = T0 + 10 * GRACE_MS


def at(ms: int, number: int = 0) -> str:
    """An id of that time."""
    return f"chatcmpl-{ms:012x}7000{number:016x}"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def books(engine: Engine) -> Books:
    return Books(engine)


def enter(books: Books, ms: int, number: int = 0) -> str:
    """A completion of that time with an answer and two attempts."""
    id = at(ms, number)
    past = [Attempted(number=1, provider="local", model="smollm2", state="failed", ended_ms=ms)]
    end = ended(id, created_ms=ms, ended_ms=ms + 100, attempt=2, past=past)
    books.apply([accepted(id, created_ms=ms), end], {id: LOG})
    return id


def counts(engine: Engine) -> dict[str, int]:
    with reading(engine) as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in (completions, generations, results, attempts, usage)
        }


def test_what_is_older_goes_and_the_rest_stays(
    books: Books, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any number of transactions; the usage of all of them stays."""
    monkeypatch.setattr(retention, "BATCH", 3)
    for number in range(10):
        enter(books, T0, number)
    kept = [enter(books, LATER + number, number) for number in range(2)]
    assert prune(engine, LATER) == 10
    assert counts(engine) == {"completions": 2, "generations": 2, "results": 2, "attempts": 4, "usage": 12}
    assert books.completion(at(T0)) is None
    assert all(books.stored_log(id) == LOG for id in kept)
    assert prune(engine, LATER) == 0


def test_an_answer_stays_while_a_later_completion_points_to_it(books: Books, engine: Engine) -> None:
    """A hit of a later day has its text and its attempts until it is old itself."""
    first, hit = enter(books, T0), at(LATER, 1)
    books.apply([accepted(hit, first, created_ms=LATER, cache="hit")], {})
    assert prune(engine, LATER) == 1
    assert books.completion(first) is None
    assert books.completion(hit) is not None
    assert books.stored_log(first) == LOG
    assert prune(engine, LATER + 3 * GRACE_MS) == 1
    assert counts(engine) == {"completions": 0, "generations": 0, "results": 0, "attempts": 0, "usage": 2}


def test_a_generation_stays_a_day_longer_than_its_text(books: Books, engine: Engine) -> None:
    """A hit that was accepted just before is settled all the same."""
    first = enter(books, T0)
    assert prune(engine, T0 + 1000) == 1
    assert counts(engine) == {"completions": 0, "generations": 1, "results": 0, "attempts": 2, "usage": 1}
    books.apply([accepted(at(T0 + 999, 1), first, created_ms=T0 + 999, cache="hit")], {})
    row = books.completion(at(T0 + 999, 1))
    assert row is not None
    assert row.status.ended


def test_the_cache_loses_what_goes(books: Books, engine: Engine) -> None:
    """And whoever keeps copies of it is told; what a later completion points to stays in the cache."""
    entered: dict[str, str] = {}
    for number, fingerprint in enumerate(("a" * 64, "b" * 64, "c" * 64)):
        id = entered[fingerprint] = at(T0, number)
        record = accepted(id, fingerprint=fingerprint, cache="miss")
        books.apply([record, ended(id)], {id: LOG}, [CacheRow(record, T0 + 100, LATER + 20 * GRACE_MS)])
    hit = accepted(at(LATER, 9), entered["b" * 64], created_ms=LATER, cache="hit", fingerprint="b" * 64)
    books.apply([hit], {})
    told: list[str] = []
    assert prune(engine, LATER, told.extend) == 3
    assert sorted(told) == ["a" * 64, "c" * 64]
    cache = Cache(engine, clock=lambda: LATER)
    assert [cache.find("acme", print) is not None for print in entered] == [False, True, False]


def test_what_has_not_ended_stays(books: Books, engine: Engine) -> None:
    """However old it is; and what was deleted goes."""
    books.apply([accepted(at(T0, 1), created_ms=T0)], {})
    deleted = enter(books, T0, 2)
    assert books.delete(deleted)
    assert prune(engine, LATER) == 1
    assert books.unsettled(LATER)[0].id == at(T0, 1)
    assert counts(engine)["completions"] == 1


def test_the_command(books: Books, engine: Engine, database_url: str) -> None:
    """Days from the command line before those of the environment; without either it is wrong usage."""
    enter(books, T0)
    settings = {"DATABASE_URL": database_url}
    assert "--older-than" in complaint(run("prune", settings=settings), 2)
    done = run("prune", "--older-than", "36500", settings={**settings, "RETENTION_DAYS": "1"})
    assert (done.returncode, done.stdout) == (0, "0 completions removed\n"), done.stderr
    done = run("prune", settings={**settings, "RETENTION_DAYS": "30"})
    assert (done.returncode, done.stdout) == (0, "1 completions removed\n"), done.stderr
    assert counts(engine)["usage"] == 1
