"""Open batches and their slices in SQL: who has what, and until when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from schemas.batches import SliceState, Stopped
from schemas.errors import Failure
from schemas.records import Accepted
from schemas.states import State
from schemas.tables import batch_rows, batch_slices, batches
from stores.batch_ends import BatchEnds
from stores.books import Books
from stores.dealing import Counted, Deal, Dealing
from stores.migration import migrate
from stores.slices import Keep, RowEnd, Slice, Slices, sums_of
from stores.sql import make_engine, reading, writing
from tests.support.api import asking
from tests.support.batches import put_batch
from tests.support.entered import LOG, accepted, ended

NOW = 1_800_000_000_000


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    migrate(engine)
    yield engine
    engine.dispose()


def put(engine: Engine, rows: int = 5, slice_rows: int = 2, **more: Any) -> str:
    return put_batch(
        engine, [asking(f"{n}") for n in range(rows)], tenant="acme", slice_rows=slice_rows, **more
    )


def dealt(engine: Engine, batch: str, first: int = 0, token: str = "dealt", until: int = NOW) -> Slice:
    """A slice, dealt and taken."""
    Dealing(engine).deal([Deal(batch, first, token, 3, False)], until)
    taken = Slices(engine).take(batch, first, token, f"own-{first}", until)
    assert taken is not None
    return taken


def test_a_slice_is_taken_once_by_who_brings_its_token(engine: Engine) -> None:
    batch = put(engine)
    taken = dealt(engine, batch)
    assert (taken.beyond, taken.concurrency, taken.tenant, taken.stopped) == (2, 3, "acme", False)
    assert Slices(engine).take(batch, 0, "dealt", "another", NOW) is None
    assert [row.n for row in Slices(engine).rows(taken)] == [0, 1]
    assert [(s.first, s.known) for s in Dealing(engine).ready(batch, "fake", 9)] == [(2, False), (4, False)]


def test_a_slice_that_is_not_heard_of_is_dealt_again_and_its_old_holder_is_told(engine: Engine) -> None:
    batch = put(engine)
    taken, dealing, slices = dealt(engine, batch), Dealing(engine), Slices(engine)
    keep = Keep(batch, 0, taken.token, 2, 1, 0)
    assert dealing.recall([batch], NOW) == 0
    assert slices.keep([keep], NOW + 10) == {(batch, 0): False}
    assert dealing.counted([batch]) == {batch: Counted(1, 0)}
    assert dealing.recall([batch], NOW + 11) == 1
    assert slices.keep([keep], NOW + 99) == {}
    assert not slices.finish(taken, SliceState.DONE, sums_of([]))
    assert [(s.first, s.known) for s in dealing.begun(batch, 9)] == [(0, True)]


def test_a_batch_is_over_once_all_slices_are_done(engine: Engine) -> None:
    id, dealing, slices = put(engine, rows=4), Dealing(engine), Slices(engine)
    taken = [dealt(engine, id, first) for first in (0, 2)]
    (batch,) = dealing.open()
    slices.finish(taken[0], SliceState.DONE, sums_of([RowEnd("completed", 7, 3, 0, 0, 5), RowEnd("failed")]))
    assert not dealing.over(batch, NOW)
    slices.finish(taken[1], SliceState.READY, sums_of([]))
    assert not dealing.over(batch, NOW)
    slices.finish(dealt(engine, id, 2), SliceState.DONE, sums_of([RowEnd("completed", 1, 1, 1, 1)]))
    assert dealing.over(batch, NOW)
    (batch,) = dealing.open()
    assert (batch.status, batch.finalizing_ms, batch.has_job) == ("finalizing", NOW, True)
    assert dealing.assign(batch, "token", NOW)
    assert not dealing.assign(batch, "too late", NOW)
    ends = BatchEnds(engine)
    row = ends.batch(id, "token")
    assert row is not None
    assert ends.written(row, "token", [], {"completed": 3, "failed": 1})
    with reading(engine) as connection:
        found = connection.execute(select(batches)).one()
    assert (found.prompt_tokens, found.completion_tokens, found.cost_nano) == (8, 4, 5)


def test_a_stopped_batch_is_over_once_nobody_has_rows_of_it_under_way(engine: Engine) -> None:
    """Slices that nobody ever had have none."""
    id, dealing, slices = put(engine), Dealing(engine), Slices(engine)
    taken = dealt(engine, id)
    (batch,) = dealing.open()
    dealing.stop(batch, Stopped.EXPIRED)
    (batch,) = dealing.open()
    assert not batch.sends
    assert slices.keep([Keep(id, 0, taken.token, 1, 0, 0)], NOW) == {(id, 0): True}
    slices.finish(taken, SliceState.READY, sums_of([]))
    assert not dealing.over(batch, NOW)
    slices.finish(dealt(engine, id), SliceState.DONE, sums_of([]))
    assert dealing.over(batch, NOW)


def test_rows_have_ended_that_the_books_know_to_have(engine: Engine) -> None:
    batch, books, slices = put(engine), Books(engine), Slices(engine)
    with reading(engine) as connection:
        ids = list(connection.scalars(select(batch_rows.c.completion_id).order_by(batch_rows.c.n)))
    records: list[Accepted] = [accepted(id, batch_id=batch) for id in ids[:2]]
    books.apply([*records, ended(ids[0]), accepted(ids[2], generation=ids[1], batch_id=batch)], {})
    assert slices.ended(ids) == {ids[0]: RowEnd("completed", 7, 3, 1, 2, None)}
    assert slices.known(ids) == {ids[1]: ids[1], ids[2]: ids[1]}


def test_failures_are_grouped_by_what_they_say(engine: Engine) -> None:
    batch, books = put(engine), Books(engine)
    with reading(engine) as connection:
        ids = list(connection.scalars(select(batch_rows.c.completion_id).order_by(batch_rows.c.n)))
    no = Failure("no", "No.", status=400)
    for id in ids[:3]:
        books.apply([accepted(id, batch_id=batch), ended(id, State.FAILED, failure=no)], {})
    books.apply([accepted(ids[3]), ended(ids[3], State.CANCELLED)], {})
    ends = BatchEnds(engine)
    found = [(g.status, g.failure, g.count, g.n) for g in ends.failures(batch, 10)]
    assert found == [("failed", no, 3, 0), ("cancelled", None, 1, 3)]
    assert ends.never_sent(batch) == (1, 4)
    assert ends.named(batch, [3])[3].custom_id == "row-3"


def test_a_page_has_each_row_with_what_became_of_it(engine: Engine) -> None:
    batch, books = put(engine), Books(engine)
    with writing(engine) as connection:
        ids = list(connection.scalars(select(batch_rows.c.completion_id).order_by(batch_rows.c.n)))
        body = b'{"model":"fake","messages":[],"store":false}'
        connection.execute(update(batch_rows).where(batch_rows.c.n == 1).values(body=body))
        connection.execute(update(batch_slices).values(provider="fake"))
    books.apply([accepted(ids[0]), ended(ids[0])], {})
    ends = BatchEnds(engine)
    page = ends.page(batch, 0)
    assert [(row.n, row.custom_id, row.unstored) for row in page[:2]] == [
        (0, "row-0", False),
        (1, "row-1", True),
    ]
    assert page[0].completion == books.completion(ids[0])
    assert page[1].completion is None
    assert ends.unstored(batch, 0) == [(ids[1], body)]
    assert ends.page(batch, 5) == []


def test_text_that_is_kept_no_longer_goes_unless_another_completion_has_it(engine: Engine) -> None:
    books = Books(engine)
    books.apply([accepted("a"), ended("a"), accepted("b"), ended("b")], {"a": LOG, "b": LOG})
    books.apply([accepted("c", generation="b")], {})
    books.keep_no_text(["a", "b"])
    assert books.stored_log("a") is None
    assert books.stored_log("b") == LOG
