"""The books: what the ledger's records come to, in whatever order they arrive."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, select
from sqlalchemy.exc import SQLAlchemyError

from schemas.errors import Failure
from schemas.records import Accepted, Attempted, Ended, StoredLog, Usage
from schemas.states import State
from schemas.tables import attempts, completions, results, usage
from stores.books import Books
from stores.migration import migrate
from stores.sql import make_engine, reading
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


# ------------------------------------------------------------------------------------------------ settling


def test_a_completion_is_queued_until_its_generation_has_ended(books: Books) -> None:
    applied = books.apply(
        [accepted("c1", metadata={"run": "7"}, end_user="ada", deadline_ms=T0 + 60_000)], {}
    )
    assert applied.settled == {}
    row = books.completion("c1")
    assert row is not None
    assert (row.status, row.ended_ms, row.generation, row.usage) == (State.QUEUED, None, None, None)

    applied = books.apply([ended("c1")], {"c1": LOG})
    assert applied.settled == {"c1": "c1"}
    assert applied.missing == set()
    row = books.completion("c1")
    assert row is not None
    assert (row.status, row.ended_ms) == (State.COMPLETED, T0 + 100)
    assert (row.metadata, row.end_user, row.deadline_ms) == ({"run": "7"}, "ada", T0 + 60_000)
    assert row.generation is not None
    assert (row.generation.next, row.generation.finish_reasons) == (3, ["stop"])
    assert row.usage is not None
    assert row.usage.tokens == Usage(
        prompt_tokens=7, completion_tokens=3, reasoning_tokens=1, cached_tokens=2
    )
    assert (row.usage.queue_ms, row.usage.first_chunk_ms, row.usage.duration_ms) == (5, 40, 100)
    assert row.usage.cost_nano is None, "a cost nobody knows is not a cost of zero"
    assert books.stored_log("c1") == LOG
    assert (books.generation("c1"), books.generation("c2")) == (row.generation, None)


def test_of_all_that_share_a_generation_only_its_creator_pays(books: Books) -> None:
    books.apply([accepted("c1"), accepted("c2", "c1", created_ms=T0 + 50), ended("c1")], {"c1": LOG})
    books.apply([accepted("c3", "c1", created_ms=T0 + 5_000, cache="hit")], {})
    rows = [books.completion(id) for id in ("c1", "c2", "c3")]
    assert [row and row.cache for row in rows] == ["bypass", "join", "hit"]
    used = [row.usage for row in rows if row and row.usage]
    assert [u.cost_nano for u in used] == [None, 0, 0]
    assert {u.tokens.completion_tokens for u in used} == {3}
    assert [(u.queue_ms, u.first_chunk_ms, u.duration_ms) for u in used] == [
        (5, 40, 100),
        (0, 0, 50),
        (0, 0, 0),
    ]
    assert [row and row.ended_ms for row in rows] == [T0 + 100, T0 + 100, T0 + 5_000]


def test_a_queued_completion_that_is_cancelled_costs_nothing_and_has_no_attempt(books: Books) -> None:
    end = ended("c1", State.CANCELLED, attempt=0, next=0, leased_ms=None, first_chunk_ms=None, usage=Usage())
    books.apply([accepted("c1"), end], {})
    row = books.completion("c1")
    assert row is not None
    assert row.usage is not None
    assert (row.status, row.usage.attempts, row.usage.cost_nano) == (State.CANCELLED, 0, 0)
    assert (row.usage.queue_ms, row.usage.first_chunk_ms, row.usage.duration_ms) == (None, None, 100)


def tried(number: int, state: str, **fields: Any) -> Attempted:
    """The record of an attempt that did not end its generation, which took from 10 × its number for 5 ms."""
    times = {"started_ms": T0 + 10 * number, "ended_ms": T0 + 10 * number + 5}
    return msgspec.structs.replace(
        Attempted(number=number, provider="local", model="smollm2", state=state), **times, **fields
    )


def rows_of_attempts(engine: Engine) -> list[dict[str, Any]]:
    with reading(engine) as connection:
        statement = select(attempts).order_by(attempts.c.generation_id, attempts.c.number)
        return [dict(row) for row in connection.execute(statement).mappings()]


def test_every_attempt_has_a_row_of_its_own(books: Books, engine: Engine) -> None:
    """With its state, its tokens and its times; the completion's usage is that of the attempt that answered."""
    past = [
        tried(1, "lost", usage=Usage(estimated=True)),
        tried(2, "failed", usage=Usage(prompt_tokens=7, completion_tokens=2), model="a\x00b"),
    ]
    end = ended("c1", attempt=3, past=past, started_ms=T0 + 40)
    for _ in range(2):
        books.apply([accepted("c1"), end], {"c1": LOG})
    rows = rows_of_attempts(engine)
    assert [(row["number"], row["state"], row["model"]) for row in rows] == [
        (1, "lost", "smollm2"),
        (2, "failed", "a\ufffdb"),
        (3, "completed", "smollm2"),
    ]
    assert [(row["started_ms"] - T0, row["ended_ms"] - T0) for row in rows] == [(10, 15), (20, 25), (40, 100)]
    assert [(row["prompt_tokens"], row["completion_tokens"]) for row in rows] == [(0, 0), (7, 2), (7, 3)]
    assert [row["estimated"] for row in rows] == [True, False, False]
    row = books.completion("c1")
    assert row is not None
    assert row.usage is not None
    assert (row.usage.attempts, row.usage.tokens) == (3, end.usage)


def test_what_ends_while_it_waits_has_the_tokens_of_its_last_attempt(books: Books, engine: Engine) -> None:
    """It ended under no attempt of its own: there is no row of one, and what the last one used is in its usage."""
    used = Usage(prompt_tokens=7, completion_tokens=2)
    end = ended("c1", State.CANCELLED, attempt=2, past=[tried(1, "lost"), tried(2, "failed", usage=used)])
    end = msgspec.structs.replace(end, usage=Usage(), started_ms=T0 + 20, next=2)
    books.apply([accepted("c1"), end], {})
    assert [(row["number"], row["state"]) for row in rows_of_attempts(engine)] == [(1, "lost"), (2, "failed")]
    row = books.completion("c1")
    assert row is not None
    assert row.usage is not None
    assert (row.status, row.usage.attempts, row.usage.tokens) == (State.CANCELLED, 2, used)


def test_a_failure_keeps_its_reason_and_its_partial_text(books: Books) -> None:
    failure = Failure("provider_stalled", "No chunk for 60 s", "provider_error", None, 504)
    books.apply([accepted("c1"), ended("c1", State.FAILED, failure=failure, finish_reasons=[])], {"c1": LOG})
    row = books.completion("c1")
    assert row is not None
    assert row.generation is not None
    assert (row.status, row.generation.failure) == (State.FAILED, failure)
    assert books.stored_log("c1") == LOG


def test_text_that_postgresql_refuses_is_replaced(books: Books) -> None:
    bad = "a\x00b\ud800c"
    failure = Failure("provider_error", bad, param=bad)
    books.apply(
        [
            accepted("c1", model=bad, end_user=bad, metadata={bad: bad}),
            ended("c1", State.FAILED, failure=failure, finish_reasons=[bad]),
        ],
        {},
    )
    row = books.completion("c1")
    assert row is not None
    assert row.generation is not None
    good = "a\ufffdb\ufffdc"
    assert (row.model, row.end_user, row.metadata) == (good, good, {good: good})
    assert row.generation.failure == Failure("provider_error", good, param=good)
    assert row.generation.finish_reasons == [good]
    assert [r.id for r in books.completions("acme", end_user=bad, model=bad, metadata={bad: bad})] == ["c1"]


@given(items=st.binary(max_size=500), head=st.binary(max_size=50), repeat=st.integers(1, 50))
def test_a_log_comes_back_byte_for_byte(books: Books, items: bytes, head: bytes, repeat: int) -> None:
    empty(books.engine)
    log = StoredLog(head, items * repeat, base=4, next=9)
    books.apply([accepted("c1"), ended("c1", base=4, next=9)], {"c1": log})
    assert books.stored_log("c1") == log


@pytest.mark.parametrize(
    "poison",
    [
        ended("c2", usage=Usage(prompt_tokens=2**70)),
        accepted("c2", deadline_ms=2**64),
        accepted("c2", provider="\ud800"),
    ],
    ids=["tokens", "deadline", "surrogate"],
)
def test_a_record_that_sql_refuses_takes_its_whole_call_with_it(
    books: Books, engine: Engine, poison: Accepted | Ended
) -> None:
    """So that the ledger can find it by bisection."""
    books.apply([accepted("c0"), ended("c0")], {"c0": LOG})
    before = contents(engine)
    with pytest.raises(SQLAlchemyError):
        books.apply([accepted("c1"), ended("c1"), poison], {"c1": LOG})
    assert contents(engine) == before
    assert books.apply([accepted("c1"), ended("c1")], {"c1": LOG}).settled == {"c1": "c1"}


def test_the_first_end_stands_and_every_attempt_is_charged_for(books: Books, engine: Engine) -> None:
    """After Redis was rolled back a generation may end a second time, under another attempt."""
    books.apply([accepted("c1"), ended("c1")], {"c1": LOG})
    again = ended("c1", State.FAILED, attempt=2, base=1_000_003, next=1_000_009, ended_ms=T0 + 700)
    applied = books.apply([again], {"c1": StoredLog(b"", b"other", 1_000_003, 1_000_009)})
    assert applied.settled == {"c1": "c1"}
    row = books.completion("c1")
    assert row is not None
    assert row.generation is not None
    assert (row.status, row.generation.next) == (State.COMPLETED, 3)
    assert books.stored_log("c1") == LOG
    assert [attempt[1] for attempt in contents(engine)["attempts"]] == [1, 2]


def test_a_thousand_completions_in_one_call(books: Books) -> None:
    ids = [f"c{number:04}" for number in range(1000)]
    records = [accepted(id) for id in ids] + [ended(id) for id in ids]
    applied = books.apply(records, dict.fromkeys(ids, LOG))
    assert applied.settled == {id: id for id in ids}
    assert applied == books.apply(records, dict.fromkeys(ids, LOG))
    assert len(books.completions("acme", limit=2000)) == 1000


# -------------------------------------------------------------------------------- order, grouping, repetition


class Story(NamedTuple):
    """Records that fit together, as some partitions' ledgers hold them, and the logs of their generations."""

    records: list[Accepted | Ended]
    logs: dict[str, StoredLog]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    records: list[Accepted | Ended] = []
    logs: dict[str, StoredLog] = {}
    for g in range(draw(st.integers(1, 3))):
        pointing = [f"g{g}"] + [f"g{g}-{n}" for n in range(draw(st.integers(0, 3)))]
        for id in pointing:
            fields = {
                "store": draw(st.booleans()),
                "created_ms": T0 + draw(st.integers(0, 200)),
                "metadata": draw(st.sampled_from([None, {}, {"a": "b"}])),
            }
            records.append(accepted(id, None if id == f"g{g}" else f"g{g}", **fields))
        if draw(st.booleans()):
            continue  # still running
        state = draw(st.sampled_from([State.COMPLETED, State.FAILED, State.CANCELLED]))
        attempt = draw(st.integers(0, 2))
        waited = draw(st.booleans())  # it ended between two attempts
        past = [tried(number, "lost") for number in range(1, attempt + waited)]
        length = draw(st.integers(0, 3)) if attempt else 0
        failure = Failure("some_code", "some reason") if state is State.FAILED else None
        records.append(ended(f"g{g}", state, attempt=attempt, next=length, failure=failure, past=past))
        if length:
            logs[f"g{g}"] = StoredLog(b"head", b'"a"\n' * length, 0, length)
    return Story(records, logs)


def enter(books: Books, groups: Sequence[Sequence[Accepted | Ended]], logs: dict[str, StoredLog]) -> None:
    """As the ledger does: the logs of what ended in a group, and later of what turns out to be missing."""
    for group in groups:
        ends = {r.generation for r in group if isinstance(r, Ended)}
        applied = books.apply(group, {id: log for id, log in logs.items() if id in ends})
        if applied.missing:
            assert books.apply([], {id: logs[id] for id in applied.missing}).missing == set()


@settings(max_examples=60)
@given(data=st.data())
def test_any_order_grouping_and_repetition_of_records_gives_the_same_books(
    books: Books, engine: Engine, data: st.DataObject
) -> None:
    story = data.draw(stories())
    empty(engine)
    enter(books, [story.records], story.logs)
    expected = contents(engine)

    empty(engine)
    repeated = data.draw(st.lists(st.sampled_from(story.records), max_size=len(story.records)))
    shuffled = data.draw(st.permutations([*story.records, *repeated]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(shuffled)), max_size=5)))
    groups = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)]
    enter(books, groups, story.logs)
    assert contents(engine) == expected


@settings(max_examples=60)
@given(story=stories())
def test_every_completion_of_an_ended_generation_is_settled_with_one_usage_record(
    books: Books, engine: Engine, story: Story
) -> None:
    empty(engine)
    enter(books, [story.records], story.logs)
    ends = {r.generation: r for r in story.records if isinstance(r, Ended)}
    mine = [r for r in story.records if isinstance(r, Accepted)]
    with reading(engine) as connection:
        statuses = {r[0]: r[1] for r in connection.execute(select(completions.c.id, completions.c.status))}
        charged = {r[0]: r[1] for r in connection.execute(select(usage.c.completion_id, usage.c.status))}
        texts = set(connection.scalars(select(results.c.generation_id)))
    assert statuses == {
        r.id: ends[r.generation].state if r.generation in ends else State.QUEUED.value for r in mine
    }
    assert charged == {id: status for id, status in statuses.items() if status != State.QUEUED.value}
    assert texts == {r.generation for r in mine if r.store and r.generation in story.logs}


def test_an_end_and_a_pointer_to_it_that_are_entered_at_once_do_not_miss_each_other(books: Books) -> None:
    """They come from the ledgers of different partitions, whose leaders are different processes."""
    rounds = 40
    books.apply([accepted(f"g{n}") for n in range(rounds)], {})
    start = threading.Barrier(2)

    def together(record: Callable[[int], Accepted | Ended]) -> None:
        for n in range(rounds):
            start.wait(30)
            books.apply([record(n)], {})

    with ThreadPoolExecutor(2) as pool:
        both: tuple[Callable[[int], Accepted | Ended], ...] = (
            lambda n: accepted(f"c{n}", f"g{n}"),
            lambda n: ended(f"g{n}"),
        )
        list(pool.map(together, both))
    rows = [books.completion(f"c{n}") for n in range(rounds)]
    assert [row and row.status for row in rows] == [State.COMPLETED] * rounds
    assert all(row and row.usage for row in rows)


def test_two_leaders_of_one_ledger_do_not_hurt_each_other(books: Books, engine: Engine) -> None:
    """One that was paused and its successor enter overlapping records at the same time."""
    ids = [f"c{number:03}" for number in range(200)]
    records = [r for id in ids for r in (accepted(id), ended(id))]
    start = threading.Barrier(4)

    def lead(part: Sequence[Accepted | Ended]) -> None:
        start.wait(30)
        for at in range(0, len(part), 50):
            books.apply(part[at : at + 50], dict.fromkeys(ids, LOG))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lead, [records, records[::-1], records[100:], records[:300]]))
    assert len(contents(engine)["usage"]) == len(ids)
    assert len(contents(engine)["results"]) == len(ids)


def test_no_statement_on_the_way_reads_a_whole_table(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    migrate(engine)
    books = Books(engine)
    plans: list[str] = []

    def explain(connection: Any, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "SELECT" in statement and not statement.startswith("EXPLAIN"):
            cursor = connection.connection.cursor()
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append("\n".join([statement, *(row[3] for row in cursor.fetchall())]))

    event.listen(engine, "before_cursor_execute", explain)
    books.apply([accepted("c1"), ended("c1")], {"c1": LOG})
    books.apply([accepted("c2", "c1")], {})
    books.completion("c1")
    books.completions("acme", after="c1", order="desc")
    books.completions("acme", end_user="ada")
    books.delete("c1")
    books.unsettled(1)
    assert "ix_completions_unsettled" in plans[-1]
    assert len(plans) >= 9
    for plan in plans:
        assert "SEARCH" in plan
        assert not re.search(r"SCAN (?!json_each)", plan), plan
    engine.dispose()
