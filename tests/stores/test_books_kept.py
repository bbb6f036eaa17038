"""The books: what is kept, what is deleted, and what lists show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from schemas.errors import InvalidRequest
from schemas.tables import completions
from stores.books import Books
from stores.migration import migrate
from stores.sql import make_engine, writing
from tests.support.entered import LOG, T0, accepted, contents, empty, ended


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def books(engine: Engine) -> Books:
    return Books(engine, clock=lambda: T0 + 9_000)


# ------------------------------------------------------------------------------------------ store and delete


def test_no_text_is_kept_for_a_completion_that_is_not_stored(books: Books) -> None:
    applied = books.apply([accepted("c1", store=False), ended("c1")], {"c1": LOG})
    assert applied.missing == set()
    assert books.stored_log("c1") is None
    row = books.completion("c1")
    assert row is not None
    assert row.usage is not None
    assert books.completions("acme") == []


def test_text_that_a_later_completion_wants_is_reported_as_missing(books: Books) -> None:
    books.apply([accepted("c1", store=False), ended("c1")], {"c1": LOG})
    applied = books.apply([accepted("c2", "c1")], {})
    assert applied.missing == {"c1"}
    assert books.apply([], {"c1": LOG}).missing == set()
    assert books.stored_log("c1") == LOG


def test_the_log_of_a_generation_that_has_not_ended_is_not_kept(books: Books) -> None:
    books.apply([accepted("c1")], {"c1": LOG})
    assert books.stored_log("c1") is None


def test_deleting_drops_text_and_metadata_and_keeps_usage(books: Books, engine: Engine) -> None:
    books.apply([accepted("c1", metadata={"a": "b"}), ended("c1")], {"c1": LOG})
    usage_before = contents(engine)["usage"]
    assert books.delete("c1")
    assert not books.delete("c1")
    assert not books.delete("c2")
    assert books.completion("c1") is None
    assert books.completions("acme") == []
    assert books.stored_log("c1") is None
    assert not books.set_metadata("c1", {"a": "c"})
    assert contents(engine)["usage"] == usage_before
    assert contents(engine)["results"] == []
    assert "'a': 'b'" not in repr(contents(engine))


def test_shared_text_lives_until_its_last_stored_completion_is_deleted(books: Books) -> None:
    books.apply(
        [accepted("c1"), accepted("c2", "c1"), accepted("c3", "c1", store=False), ended("c1")], {"c1": LOG}
    )
    assert books.delete("c1")
    assert books.stored_log("c1") == LOG
    assert books.delete("c2")
    assert books.stored_log("c1") is None


def test_what_is_deleted_while_it_runs_leaves_no_text(books: Books) -> None:
    books.apply([accepted("c1")], {})
    assert books.delete("c1")
    applied = books.apply([ended("c1")], {"c1": LOG})
    assert applied.settled == {"c1": "c1"}
    assert applied.missing == set()
    assert books.stored_log("c1") is None


def test_what_is_deleted_before_the_ledger_is_drained_stays_deleted(books: Books, engine: Engine) -> None:
    assert not books.delete("c1")
    assert books.delete("c1", accepted=accepted("c1"))
    books.apply([accepted("c1"), ended("c1")], {"c1": LOG})
    assert books.completion("c1") is None
    assert contents(engine)["results"] == []
    assert len(contents(engine)["usage"]) == 1


def test_orphaned_results_are_swept_and_no_others(books: Books, engine: Engine) -> None:
    ids = [f"c{number:04}" for number in range(1200)]
    books.apply([r for id in ids for r in (accepted(id), ended(id))], dict.fromkeys(ids, LOG))
    with writing(engine) as connection:
        connection.execute(delete(completions).where(completions.c.id != "c0007"))
    assert books.drop_orphaned_results() == 1199
    assert books.drop_orphaned_results() == 0
    assert books.stored_log("c0007") == LOG


# ------------------------------------------------------------------------------------------------- reading


def test_metadata_can_be_replaced_and_removed(books: Books) -> None:
    books.apply([accepted("c1", metadata={"a": "b"})], {})
    assert books.set_metadata("c1", {"x": "y"})
    row = books.completion("c1")
    assert row is not None
    assert row.metadata == {"x": "y"}
    assert books.set_metadata("c1", None)
    row = books.completion("c1")
    assert row is not None
    assert row.metadata is None
    assert not books.set_metadata("c2", {"x": "y"})
    assert books.set_metadata("c2", {"x": "y"}, accepted=accepted("c2"))
    books.apply([accepted("c2")], {})
    row = books.completion("c2")
    assert row is not None
    assert row.metadata == {"x": "y"}


def test_the_list_is_filtered_by_every_field(books: Books) -> None:
    quoted = 'a"b.c[0]$'
    books.apply(
        [
            accepted("c1", metadata={quoted: "1", "b": "2"}, end_user="ada"),
            accepted("c2", metadata={quoted: "1"}, model="slow"),
            accepted("c3", tenant="other"),
            accepted("c4", store=False),
            ended("c2"),
        ],
        {},
    )

    def listed(**filters: Any) -> list[str]:
        return [row.id for row in books.completions("acme", **filters)]

    assert listed() == ["c1", "c2"]
    assert listed(metadata={}) == ["c1", "c2"]
    assert listed(metadata={quoted: "1"}) == ["c1", "c2"]
    assert listed(metadata={quoted: "1", "b": "2"}) == ["c1"]
    assert listed(metadata={"b": "1"}) == []
    assert listed(end_user="ada") == ["c1"]
    assert listed(end_user="bob") == []
    assert listed(model="slow") == ["c2"]
    assert listed(statuses=["completed", "failed"]) == ["c2"]
    assert listed(statuses=["queued"]) == ["c1"]
    assert listed(statuses=[]) == []
    with pytest.raises(InvalidRequest):
        listed(after="c3")
    with pytest.raises(InvalidRequest):
        listed(after="c2", end_user="ada")


@given(
    times=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    limit=st.integers(1, 5),
    order=st.sampled_from(["asc", "desc"]),
)
def test_pages_hold_every_completion_once_and_in_order(
    books: Books, times: list[int], limit: int, order: str
) -> None:
    empty(books.engine)
    books.apply([accepted(f"c{n:02}", created_ms=T0 + time) for n, time in enumerate(times)], {})
    found: list[str] = []
    while page := books.completions("acme", limit=limit, order=order, after=found[-1] if found else None):
        assert len(page) <= limit
        found += [row.id for row in page]
    expected = sorted((time, f"c{n:02}") for n, time in enumerate(times))
    assert found == [id for _, id in (expected if order == "asc" else reversed(expected))]


def test_a_page_can_start_after_a_completion_that_was_deleted_meanwhile(books: Books) -> None:
    books.apply([accepted("c1"), accepted("c2"), accepted("c3")], {})
    books.delete("c2")
    assert [row.id for row in books.completions("acme", after="c2")] == ["c3"]


def test_ping_answers(books: Books) -> None:
    books.ping()
