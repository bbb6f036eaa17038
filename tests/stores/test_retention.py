"""Old completions, batches and files go, with their texts; usage stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, update

from schemas.ids import new_batch_id, new_file_id
from schemas.records import Attempted
from schemas.settings import Settings
from schemas.tables import (
    attempts,
    batch_rows,
    batch_slices,
    batches,
    completions,
    generations,
    results,
    usage,
)
from stores import files as stored_files
from stores import retention
from stores.books import Books
from stores.cache import Cache
from stores.files import FileRow, Files
from stores.migration import migrate
from stores.retention import GRACE_MS, prune, prune_batches
from stores.rows import CacheRow
from stores.sql import make_engine, reading, writing
from stores.storage import Storage, open_storage
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


def enter_batch(engine: Engine, rows: int = 0, /, **fields: Any) -> str:
    """A batch of T0 that has not ended, with rows and slices."""
    id = new_batch_id()
    batch = {
        "id": id,
        "tenant": "acme",
        "key_id": "key_1",
        "endpoint": "/v1/chat/completions",
        "input_file_id": new_file_id(),
        "status": "in_progress",
        "completion_window": "24h",
        "max_concurrency": 1,
        "max_error_rate": 0.5,
        **dict.fromkeys(COUNTS, 0),
        "created_ms": T0,
        "expires_ms": T0,
        **fields,
    }
    texts = ("custom_id", "completion_id", "fingerprint")
    row = {"batch_id": id, "line": 1, **dict.fromkeys(texts, "x"), "body": b"{}"}
    part = {
        "batch_id": id,
        "provider": "local",
        "state": "ready",
        "concurrency": 0,
        **dict.fromkeys(COUNTS, 0),
    }
    part.pop("total")
    with writing(engine) as connection:
        connection.execute(insert(batches).values(batch))
        for n in range(rows):
            connection.execute(insert(batch_rows).values(row | {"n": n}))
        for n in range(0, rows, 2):
            connection.execute(insert(batch_slices).values(part | {"first": n, "beyond": n + 2}))
    return id


COUNTS = (
    *("total", "completed", "failed"),
    *("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens"),
)


def batches_of(engine: Engine) -> dict[str, tuple[int, int]]:
    """Batches with their numbers of rows and slices."""
    with reading(engine) as connection:
        rows = Counter(connection.scalars(select(batch_rows.c.batch_id)))
        slices = Counter(connection.scalars(select(batch_slices.c.batch_id)))
        return {id: (rows[id], slices[id]) for id in connection.scalars(select(batches.c.id))}


class TestBatches:
    def test_those_that_ended_before_go_with_their_rows(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In any number of transactions; what has not ended stays, however old it is."""
        monkeypatch.setattr(retention, "BATCH_ROWS", 3)
        for rows in (0, 1, 3, 8):
            enter_batch(engine, rows, ended_ms=LATER - 1)
        kept = {enter_batch(engine, 8, ended_ms=LATER): (8, 4), enter_batch(engine, 7): (7, 4)}
        assert prune_batches(engine, LATER) == 4
        assert batches_of(engine) == kept
        assert prune_batches(engine, LATER) == 0

    def test_completions_of_one_that_has_not_ended_stay(self, books: Books, engine: Engine) -> None:
        """Until it has."""
        id, batch = at(T0, 1), enter_batch(engine)
        books.apply([accepted(id, created_ms=T0, batch_id=batch), ended(id)], {id: LOG})
        enter(books, T0, 2)
        assert prune(engine, LATER) == 1
        assert books.stored_log(id) == LOG
        with writing(engine) as connection:
            connection.execute(update(batches).values(ended_ms=LATER))
        assert prune(engine, LATER) == 1
        assert books.stored_log(id) is None


class TestFiles:
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(Settings(home=tmp_path))

    @pytest.fixture
    def files(self, engine: Engine) -> Files:
        return Files(engine, clock=lambda: LATER)

    def test_old_and_expired_ones_go_with_their_bytes(
        self, files: Files, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stored_files, "BATCH", 2)
        for _ in range(5):
            keep_file(files, storage, created_ms=T0)
        for _ in range(3):
            keep_file(files, storage, created_ms=LATER, expires_ms=LATER - HOUR - 1)
        kept = {
            keep_file(files, storage, created_ms=LATER),
            keep_file(files, storage, created_ms=LATER, expires_ms=LATER - HOUR + 1),
            keep_file(files, storage, created_ms=LATER, expires_ms=LATER + 1),
        }
        assert files.clean(storage) == 3
        assert files.clean(storage, LATER) == 5
        assert {path.name for path in (tmp_path / "files").iterdir()} == kept
        assert len(files.list("acme")) == 2
        assert files.clean(storage, LATER) == 0

    def test_what_an_open_batch_has_stays(self, files: Files, storage: Storage, engine: Engine) -> None:
        """Expired or old: its input, and what it has written."""
        names = ("input_file_id", "output_file_id", "error_file_id")
        made = {name: keep_file(files, storage, created_ms=T0, expires_ms=T0) for name in names}
        enter_batch(engine, 0, **made)
        other = keep_file(files, storage, created_ms=T0)
        assert files.clean(storage, LATER) == 1
        for id in made.values():
            assert storage.size(id) == 2
        with pytest.raises(FileNotFoundError):
            storage.size(other)
        with writing(engine) as connection:
            connection.execute(update(batches).values(ended_ms=LATER))
        assert files.clean(storage, LATER) == 3

    def test_one_that_is_announced_is_there_when_it_is_published(
        self, files: Files, storage: Storage, engine: Engine
    ) -> None:
        """One that never is goes, bytes and row; whoever comes so late is told."""
        row = file_row(created_ms=LATER)
        with storage.write(row.id) as out:
            out.write(b"hi")
            files.announce(row)
            assert files.get("acme", row.id) is None
        assert files.list("acme") == []
        assert files.clean(storage) == 0
        assert files.publish(row)
        assert files.get("acme", row.id) == row
        lost = file_row(created_ms=LATER)
        with storage.write(lost.id):
            files.announce(lost)
        later = Files(engine, clock=lambda: LATER + HOUR + 1)
        assert later.clean(storage) == 1
        assert not later.publish(lost)
        assert [file.id for file in later.list("acme")] == [row.id]
        with pytest.raises(FileNotFoundError):
            storage.size(lost.id)

    def test_a_storage_of_others_is_known(self, files: Files, storage: Storage, tmp_path: Path) -> None:
        """So that no row goes without its bytes."""
        other = open_storage(Settings(home=tmp_path / "other"))
        assert not files.are_elsewhere(other)
        keep_file(files, storage, created_ms=T0)
        assert files.are_elsewhere(other)
        assert not files.are_elsewhere(other, "another tenant")
        assert not files.are_elsewhere(storage)


HOUR = 3600 * 1000


def file_row(**fields: Any) -> FileRow:
    return FileRow(
        id=new_file_id(), tenant="acme", key_id="key_1", purpose="batch", filename="x", bytes=2, **fields
    )


def keep_file(files: Files, storage: Storage, **fields: Any) -> str:
    row = file_row(**fields)
    with storage.write(row.id) as out:
        out.write(b"hi")
    files.add(row)
    return row.id


def test_the_command(books: Books, engine: Engine, database_url: str, tmp_path: Path) -> None:
    """Days from the command line before those of the environment; without either it is wrong usage."""
    enter(books, T0)
    enter_batch(engine, ended_ms=T0)
    storage = open_storage(Settings(files=str(tmp_path / "files")))
    for _ in range(2):
        keep_file(Files(engine), storage, created_ms=T0)
    settings = {"DATABASE_URL": database_url, "FILES": str(tmp_path / "files")}
    assert "--older-than" in complaint(run("prune", settings=settings), 2)
    elsewhere = run("prune", "--older-than", "1", settings={**settings, "FILES": str(tmp_path / "other")})
    assert "TAILRACE_FILES" in complaint(elsewhere, 1)
    done = run("prune", "--older-than", "36500", settings={**settings, "RETENTION_DAYS": "1"})
    none = "0 completions, 0 batches and 0 files removed\n"
    assert (done.returncode, done.stdout) == (0, none), done.stderr
    done = run("prune", settings={**settings, "RETENTION_DAYS": "30"})
    all = "1 completions, 1 batches and 2 files removed\n"
    assert (done.returncode, done.stdout) == (0, all), done.stderr
    assert counts(engine)["usage"] == 1
    assert [*(tmp_path / "files").iterdir()] == []
