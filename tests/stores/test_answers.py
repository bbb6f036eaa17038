"""Rows that the cache answers by the page: what the books have of them is what they have of any other hit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from schemas.records import Accepted, StoredLog, Usage
from schemas.tables import batch_rows, batch_slices, batches, cache, completions, usage
from stores.answers import Answers, Take
from stores.books import Books
from stores.cache import Cache
from stores.flights import Result
from stores.migration import migrate
from stores.rows import CacheRow
from stores.slices import RowAsked, Slice, Slices
from stores.sql import make_engine, writing
from tests.support.batches import put_batch
from tests.support.generations import accepted, ended

T0 = 1_800_000_000_000
HOUR = 3_600_000
TENANT = "acme"
#: Rows of the batch, and of a slice.
ROWS, SLICE = 60, 10


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    migrate(database_url)
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def rows_of(engine: Engine, batch: str) -> list[Any]:
    with engine.connect() as connection:
        return list(
            connection.execute(
                select(batch_rows).where(batch_rows.c.batch_id == batch).order_by(batch_rows.c.n)
            )
        )


def batch_of(engine: Engine, *, distinct: int = ROWS) -> str:
    bodies = [
        {"model": "fake:m", "messages": [{"role": "user", "content": f"{n % distinct}"}]} for n in range(ROWS)
    ]
    return put_batch(engine, bodies, tenant=TENANT, slice_rows=SLICE)


def keep(engine: Engine, fingerprints: set[str], *, at: int = T0) -> dict[str, str]:
    """Results for these, an hour's; their generations."""
    made: dict[str, str] = {}
    for fingerprint in sorted(fingerprints):
        record = accepted(tenant=TENANT, fingerprint=fingerprint, cache="miss", created_ms=at)
        end = ended(
            record.id, next=1, attempt=1, created_ms=at, started_ms=at, ended_ms=at, finish_reasons=["stop"],
            usage=Usage(7, 3),
        )  # fmt: skip
        log = StoredLog(b"{}", b'"hi"', 0, 1)
        Books(engine).apply([record, end], {record.id: log}, [CacheRow(record, at, at + HOUR)])
        made[fingerprint] = record.id
    return made


def held(engine: Engine, batch: str) -> Slice:
    """The batch's first slice, in somebody's hands."""
    first = (batch_slices.c.batch_id == batch, batch_slices.c.first == 0)
    with writing(engine) as connection:
        connection.execute(update(batch_slices).where(*first).values(state="dealt", token="dealt"))
    slice = Slices(engine).take(batch, 0, "dealt", "held", T0 + HOUR)
    assert slice is not None
    return slice


def hit(slice: Slice, *, most_ms: int = HOUR, reads: Callable[[RowAsked], bool] = lambda _: True) -> Any:
    def judge(asked: RowAsked) -> Take | None:
        def take(result: Result, age_ms: int) -> Accepted | None:
            if age_ms > most_ms:
                return None
            return accepted(
                asked.completion_id, tenant=TENANT, generation=result.generation, cache="hit", created_ms=T0 + 9,
                fingerprint=asked.fingerprint, batch_id=slice.batch, end_user=asked.end_user,
            )  # fmt: skip

        return take if reads(asked) else None

    return judge


def answers(engine: Engine) -> Answers:
    return Answers(engine, clock=lambda: T0 + 1000)


def slices_of(engine: Engine, batch: str) -> list[Any]:
    statement = select(batch_slices).where(batch_slices.c.batch_id == batch).order_by(batch_slices.c.first)
    with engine.connect() as connection:
        return list(connection.execute(statement))


def entered(engine: Engine, batch: str) -> tuple[list[Any], list[Any], dict[str, int]]:
    """Completions and usage of the batch, without what tells one row from another; and hits by generation."""
    c = [column for column in completions.c if column.name not in ("id", "fingerprint", "generation_id")]
    u = [column for column in usage.c if column.name != "completion_id"]
    with engine.connect() as connection:
        return (
            [tuple(row) for row in connection.execute(select(*c).where(completions.c.batch_id == batch))],
            [tuple(row) for row in connection.execute(select(*u).where(usage.c.batch_id == batch))],
            {
                row.generation_id: row.hits
                for row in connection.execute(select(cache.c.generation_id, cache.c.hits))
            },
        )


def test_a_page_enters_what_the_ledger_would(engine: Engine) -> None:
    """The same completions, usage and hits as those of a slice that was answered row by row."""
    one, other = batch_of(engine, distinct=4), batch_of(engine, distinct=4)
    keep(engine, {row.fingerprint for row in rows_of(engine, one)})
    slice = held(engine, one)
    assert not answers(engine).ahead(slice, "next", 10, hit(slice))
    paged, charged, hits = entered(engine, one)
    judge = hit(held(engine, other))
    found = {result.generation: result for result in _results(engine, rows_of(engine, other))}
    by_fingerprint = {f: found[g] for f, g in _pointers(engine).items()}
    asked = [
        RowAsked(*(getattr(row, name) for name in RowAsked.__struct_fields__))
        for row in rows_of(engine, other)
    ]
    records = [judge(row)(by_fingerprint[row.fingerprint], 0) for row in asked[SLICE:]]
    Books(engine).apply(records, {})
    ledger, ledger_usage, twice = entered(engine, other)
    named = str.replace
    assert len(paged) == ROWS - SLICE
    assert [named(repr(row), one, other) for row in paged] == [repr(row) for row in ledger]
    assert [named(repr(row), one, other) for row in charged] == [repr(row) for row in ledger_usage]
    assert sum(hits.values()) == ROWS - SLICE
    assert twice == {generation: 2 * count for generation, count in hits.items()}
    sums = ("state", "completed", "prompt_tokens", "completion_tokens", "cost_nano")
    counted = [tuple(getattr(slice, name) for name in sums) for slice in slices_of(engine, one)]
    assert counted == [("dealt", 0, 0, 0, None), *[("done", SLICE, 7 * SLICE, 3 * SLICE, 0)] * 5]


def _pointers(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {r.fingerprint: r.generation_id for r in connection.execute(select(cache))}


def _results(engine: Engine, rows: list[Any]) -> list[Result]:
    found = Cache(engine, clock=lambda: T0 + 1000).find_all(TENANT, list({row.fingerprint for row in rows}))
    return [result for result, _ in found.values()]


def test_a_slice_that_is_answered_in_part_is_somebody_elses_to_do(engine: Engine) -> None:
    batch = batch_of(engine)
    rows = rows_of(engine, batch)
    keep(engine, {row.fingerprint for row in rows if row.n < 20 or row.n in (25, 26)})
    slice = held(engine, batch)
    assert not answers(engine).ahead(slice, "next", 3, hit(slice))
    found = slices_of(engine, batch)
    assert [(s.state, s.token) for s in found] == [
        ("dealt", "held"), ("done", None), ("ready", "next"), ("ready", None), ("ready", None), ("ready", None)
    ]  # fmt: skip
    assert set(Slices(engine).ended([row.completion_id for row in rows])) == {
        row.completion_id for row in rows if 10 <= row.n < 20 or row.n in (25, 26)
    }
    assert not answers(engine).ahead(slice, "later", 3, hit(slice)), "what somebody had is not taken again"
    assert [s.token for s in slices_of(engine, batch)][2] == "next"


def test_as_many_slices_as_asked_for(engine: Engine) -> None:
    batch = batch_of(engine)
    keep(engine, {row.fingerprint for row in rows_of(engine, batch)})
    slice = held(engine, batch)
    assert answers(engine).ahead(slice, "next", 3, hit(slice))
    assert [s.state for s in slices_of(engine, batch)] == ["dealt", *["done"] * 3, "ready", "ready"]
    assert not answers(engine).ahead(slice, "next", 3, hit(slice))
    assert [s.state for s in slices_of(engine, batch)] == ["dealt", *["done"] * 5]


@pytest.mark.parametrize("why", ["expired", "too old", "not asked", "another tenant's", "stopped"])
def test_nothing_is_answered_that_may_not_be(engine: Engine, why: str) -> None:
    batch = batch_of(engine)
    at = T0 - HOUR if why == "expired" else T0
    keep(engine, {row.fingerprint for row in rows_of(engine, batch)}, at=at)
    slice = held(engine, batch)
    judge = hit(slice)
    if why == "too old":
        judge = hit(slice, most_ms=999)
    elif why == "not asked":
        judge = hit(slice, reads=lambda _: False)
    elif why == "another tenant's":
        with writing(engine) as connection:
            connection.execute(update(cache).values(tenant="other"))
    elif why == "stopped":
        with writing(engine) as connection:
            connection.execute(update(batches).values(stopped="cancelled"))
    assert not answers(engine).ahead(slice, "next", 10, judge)
    assert {(s.state, s.token) for s in slices_of(engine, batch)[1:]} == {("ready", None)}
    assert entered(engine, batch)[:2] == ([], [])
