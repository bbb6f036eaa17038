"""Batches in SQL: what their rows count, who may write them, how they are cancelled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, func, insert, select, update

from schemas.batches import BatchStatus, Row, SliceRange, SliceState, Stopped
from schemas.errors import Conflict
from schemas.ids import new_batch_id, new_completion_id
from schemas.tables import batch_rows, batch_slices, batches, usage
from stores.batches import Batches, BatchRow, Lost
from stores.migration import migrate
from stores.sql import make_engine, writing

DAY_MS = 86_400_000


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    migrate(database_url)
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def books(engine: Engine) -> Batches:
    return Batches(engine)


def a_batch(**fields: Any) -> BatchRow:
    known: dict[str, Any] = {
        "id": new_batch_id(),
        "tenant": "acme",
        "key_id": "key_1",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "max_concurrency": 10,
        "max_error_rate": 0.5,
        "created_ms": 1000,
        "expires_ms": 1000 + DAY_MS,
    }
    return BatchRow(**(known | fields))


def rows(count: int, first: int = 0) -> list[Row]:
    return [
        Row(n, n + 1, f"row-{n}", new_completion_id(), "f" * 64, None, None, None, b'{"model":"m"}')
        for n in range(first, first + count)
    ]


def row_count(engine: Engine, batch: BatchRow) -> int:
    with engine.connect() as connection:
        counted = select(func.count()).where(batch_rows.c.batch_id == batch.id)
        return connection.scalar(counted) or 0


def test_a_batch_is_found_by_its_tenant_and_its_end_user_alone(books: Batches) -> None:
    batch = a_batch(end_user="ann", metadata={"run": "1"}, errors=[{"code": "x", "line": 1}])
    assert books.add(batch)
    assert books.get("acme", batch.id) == batch
    assert books.get("acme", batch.id, end_user="ann") == batch
    assert books.get("acme", batch.id, end_user="bob") is None
    assert books.get("other", batch.id) is None
    assert books.get("acme", "batch_\0") is None


def test_an_id_is_taken_once(books: Batches) -> None:
    batch = a_batch()
    assert books.add(batch)
    assert not books.add(msgspec.structs.replace(batch, tenant="other"))
    assert books.get("acme", batch.id) == batch


def test_batches_are_listed_newest_first_in_pages(books: Batches) -> None:
    made = [a_batch(created_ms=1000 + n // 2, end_user="ann" if n % 2 else None) for n in range(5)]
    for batch in [*made, a_batch(tenant="other")]:
        books.add(batch)
    newest = sorted(made, key=lambda b: (b.created_ms, b.id), reverse=True)
    assert books.list("acme", limit=3) == newest[:3]
    assert books.list("acme", after=newest[2].id, limit=3) == newest[3:]
    assert books.list("acme", after="batch_unknown", limit=3) == []
    assert books.list("acme", end_user="ann", limit=9) == [b for b in newest if b.end_user == "ann"]


def test_counts_are_those_of_slices_that_are_done_and_of_rows_that_ended_in_others(
    books: Batches, engine: Engine
) -> None:
    batch = a_batch(token="t", cost_nano=None)
    books.add(batch)
    made = rows(400)
    books.insert_rows(batch.id, "t", made)
    ranges = [SliceRange(first, first + 100, "local") for first in range(0, 400, 100)]
    books.in_progress(batch.id, "t", slices=ranges, model="m", now_ms=2000)
    done = {"state": SliceState.DONE.value, "completed": 90, "failed": 10, "prompt_tokens": 900}
    done |= {"completion_tokens": 450, "cached_tokens": 5, "reasoning_tokens": 2, "cost_nano": 1_000}
    dealt = {"state": SliceState.DEALT.value, "token": "w"}
    back = {"state": SliceState.READY.value, "token": "w"}
    with writing(engine) as connection:
        for first, change in ((0, done), (100, dealt), (200, back)):
            of = (batch_slices.c.batch_id == batch.id) & (batch_slices.c.first == first)
            connection.execute(update(batch_slices).where(of).values(change))
        ends = [(150, "completed", 7), (151, "failed", None), (250, "cancelled", 3)]
        for n, status, cost in [*ends, (0, "completed", 1), (350, "completed", 9)]:
            record = dict.fromkeys((c.name for c in usage.c if not c.nullable), "x") | {
                "completion_id": made[n].completion_id, "status": status, "cost_nano": cost, "estimated": False,
                "prompt_tokens": 10, "completion_tokens": 5, "reasoning_tokens": 1, "cached_tokens": 4,
                "attempts": 1, "duration_ms": 1, "created_ms": 1, "batch_id": batch.id,
            }  # fmt: skip
            connection.execute(insert(usage).values(record))
    found = books.get("acme", batch.id)
    assert found is not None
    counts = books.counts(found)
    assert (counts.total, counts.completed, counts.failed) == (400, 91, 12)
    assert (counts.prompt_tokens, counts.completion_tokens) == (930, 465)
    assert (counts.reasoning_tokens, counts.cached_tokens, counts.cost_nano) == (5, 17, 1_010)
    with writing(engine) as connection:
        final = {"ended_ms": 9, "completed": 399, "failed": 1, "cost_nano": 5}
        connection.execute(update(batches).where(batches.c.id == batch.id).values(final))
    found = books.get("acme", batch.id)
    assert found is not None
    counts = books.counts(found)
    assert (counts.completed, counts.failed, counts.cost_nano) == (399, 1, 5)


def test_validation_starts_again_without_the_rows_of_an_earlier_one(books: Batches, engine: Engine) -> None:
    batch = a_batch(token="first")
    books.add(batch)
    books.insert_rows(batch.id, "first", rows(50))
    with writing(engine) as connection:
        connection.execute(update(batches).where(batches.c.id == batch.id).values(token="second"))
    with pytest.raises(Lost):
        books.insert_rows(batch.id, "first", rows(1, first=50))
    with pytest.raises(Lost):
        books.renew_validation(batch.id, "first", 1)
    with pytest.raises(Lost):
        books.failed(batch.id, "first", errors=[], now_ms=1)
    with pytest.raises(Lost):
        books.in_progress(batch.id, "first", slices=[SliceRange(0, 1, "p")], model=None, now_ms=1)
    assert row_count(engine, batch) == 50
    assert books.begin_validation(batch.id, "second").token == "second"
    assert row_count(engine, batch) == 0


def test_cancelling_ends_a_validation_at_once_and_stops_what_runs(books: Batches, engine: Engine) -> None:
    validating, running, over = a_batch(token="t", until_ms=5), a_batch(token="t"), a_batch(token="t")
    for batch in (validating, running, over):
        books.add(batch)
        books.insert_rows(batch.id, "t", rows(2))
    for batch in (running, over):
        books.in_progress(batch.id, "t", slices=[SliceRange(0, 2, "p")], model=None, now_ms=2)
    with writing(engine) as connection:
        completed = {"status": BatchStatus.COMPLETED.value, "ended_ms": 3}
        connection.execute(update(batches).where(batches.c.id == over.id).values(completed))
    cancelled = books.cancel("acme", validating.id, 7)
    assert cancelled is not None
    assert cancelled == books.get("acme", validating.id)
    assert (cancelled.status, cancelled.ended_ms, cancelled.token) == (BatchStatus.CANCELLED, 7, None)
    with pytest.raises(Lost):
        books.insert_rows(validating.id, "t", rows(1, first=2))
    stopping = books.cancel("acme", running.id, 8)
    assert stopping is not None
    assert (stopping.status, stopping.stopped) == (BatchStatus.CANCELLING, Stopped.CANCELLED)
    assert stopping.ended_ms is None
    assert books.cancel("acme", running.id, 9) == stopping
    with pytest.raises(Conflict):
        books.cancel("acme", over.id, 9)
    assert books.cancel("other", running.id, 9) is None
    assert books.drop_unused_rows() == 2
    assert [row_count(engine, b) for b in (validating, running, over)] == [0, 2, 2]
