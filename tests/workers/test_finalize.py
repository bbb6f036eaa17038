"""The files of a batch: whole or not there, whoever is stopped or takes it over meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, update

from schemas.settings import Settings
from schemas.tables import batch_rows, batch_slices, batches
from stores.batch_ends import BatchEnds
from stores.books import Books
from stores.files import Files
from stores.migration import migrate
from stores.sql import make_engine, reading, writing
from stores.storage import Storage, open_storage
from tests.support.api import asking
from tests.support.batches import put_batch
from tests.support.entered import LOG, accepted, ended
from workers.bulk.finalize import Finalizing

NOW = 1_800_000_000_000
ROWS = 450


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = make_engine(sqlite_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(Settings(files=str(tmp_path / "files")))


@pytest.fixture
def batch(engine: Engine) -> str:
    """Whose rows have all been answered, but for the last one."""
    bodies = [asking(f"{n}", store=n != 3) for n in range(ROWS)]
    id = put_batch(engine, bodies, tenant="acme")
    with writing(engine) as connection:
        connection.execute(update(batch_slices).values(state="done"))
        connection.execute(update(batches).values(finalizing_ms=NOW, token="first", status="finalizing"))
        ids = list(connection.scalars(select(batch_rows.c.completion_id).order_by(batch_rows.c.n)))
    records = [record for id in ids[:-1] for record in (accepted(id), ended(id))]
    Books(engine).apply(records, dict.fromkeys(ids[:-1], LOG))
    return id


def finalizing(engine: Engine, storage: Storage, stopping: Callable[[], bool] = lambda: False) -> Finalizing:
    ends, files, books = BatchEnds(engine), Files(engine), Books(engine)
    return Finalizing(ends, files, books, storage, clock=lambda: NOW, stopping=stopping)


def retoken(engine: Engine, token: str) -> None:
    with writing(engine) as connection:
        connection.execute(update(batches).values(token=token))


def check(engine: Engine, storage: Storage, id: str) -> None:
    with reading(engine) as connection:
        row = connection.execute(select(batches).where(batches.c.id == id)).one()
        ids = list(connection.scalars(select(batch_rows.c.completion_id).order_by(batch_rows.c.n)))
    assert (row.status, row.completed, row.failed) == ("completed", ROWS - 1, 1)
    listed = {file.id: file.bytes for file in Files(engine).list("acme")}
    assert listed.keys() == {row.output_file_id, row.error_file_id}
    with storage.read(row.output_file_id) as file:
        text = file.read()
    assert listed[row.output_file_id] == len(text)
    names = [json.loads(line)["custom_id"] for line in text.splitlines()]
    assert names == [f"row-{n}" for n in range(ROWS - 1)]
    books = Books(engine)
    assert books.stored_log(ids[3]) is None
    assert books.stored_log(ids[4]) == LOG


def test_who_is_stopped_leaves_nothing_and_the_next_one_writes_all(
    engine: Engine, storage: Storage, batch: str
) -> None:
    asked = iter([False, True])
    assert finalizing(engine, storage, lambda: next(asked)).run(batch, "first") == "lost"
    assert Files(engine).list("acme") == []
    retoken(engine, "second")
    assert finalizing(engine, storage).run(batch, "first") == "lost"
    assert finalizing(engine, storage).run(batch, "second") == "completed"
    check(engine, storage, batch)


def test_who_died_after_the_files_were_there_is_followed_by_one_who_ends_the_batch(
    engine: Engine, storage: Storage, batch: str
) -> None:
    """Text that was to be kept no longer has gone, and the files have it."""
    asked = iter([False] * 4 + [True])
    assert finalizing(engine, storage, lambda: next(asked)).run(batch, "first") == "lost"
    assert len(Files(engine).list("acme")) == 2
    retoken(engine, "second")
    assert finalizing(engine, storage).run(batch, "second") == "completed"
    check(engine, storage, batch)


def test_who_lost_the_batch_while_it_wrote_leaves_nothing(
    engine: Engine, storage: Storage, batch: str
) -> None:
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        if asked == 4:  # the last look, before the files are there
            retoken(engine, "second")
        return False

    assert finalizing(engine, storage, stopping).run(batch, "first") == "lost"
    assert Files(engine).list("acme") == []
    assert finalizing(engine, storage).run(batch, "second") == "completed"
    check(engine, storage, batch)
