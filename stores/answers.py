"""Slices of a batch that the cache answers whole, by the page: what a row takes is a row of the books and its usage.

A page is one transaction: its slices were nobody's before it, and after it they are done, or somebody else's to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, and_, bindparam, func, select, update

from schemas.batches import BatchStatus, SliceState
from schemas.records import Accepted
from schemas.states import State
from schemas.tables import batch_rows, batch_slices, batches, completions, usage
from stores.batches import TOKENS
from stores.books import CHARGE
from stores.cache import count_hits, epoch_ms, find_all
from stores.flights import Result
from stores.rows import completion_row
from stores.slices import RowAsked, Slice
from stores.sql import LOCK_BOOKS, insert_new, lock, writing

_b, _r, _s, _u = batches.c, batch_rows.c, batch_slices.c, usage.c


#: The completion that a result makes of a row, None where it is too old: its age is in milliseconds.
Take = Callable[[Result, int], Accepted | None]
#: How a row takes what is cached; None where it does not.
Judge = Callable[[RowAsked], Take | None]


class Answers:
    """``clock`` is the one by which the cache's entries expire, in milliseconds since the epoch."""

    def __init__(self, engine: Engine, *, clock: Callable[[], int] = epoch_ms) -> None:
        self._engine = engine
        self._clock = clock

    def ahead(self, slice: Slice, token: str, most: int, judge: Judge) -> bool:
        """Of the batch of a slice ``most`` others that nobody had. Those of which each row is answered are done; others
        are ready, with the token where some of their rows have an answer. Whether there may be more of the kind."""
        with writing(self._engine) as connection:
            ready = connection.execute(_READY, {"in_batch": slice.batch, "most": most}).all()
            if not ready:
                return False
            firsts = [row.first for row in ready]
            # Whoever deletes a result waits, or has deleted it.
            lock(connection, LOCK_BOOKS)
            if not self._answer(connection, slice, firsts, judge):
                return False
            done = self._settle(
                connection, slice, {row.first: row.beyond - row.first for row in ready}, token
            )
        return done == most

    def _answer(self, connection: Connection, slice: Slice, firsts: Sequence[int], judge: Judge) -> bool:
        """Whether any row was."""
        takes: list[tuple[str, Take]] = []
        for first in firsts:  # no more bodies at once than those of a slice
            rows = connection.execute(_ROWS, {"in_batch": slice.batch, "from_row": first})
            for row in rows:
                asked = RowAsked(*row)
                take = judge(asked)
                if take is not None:
                    takes.append((asked.fingerprint, take))
        wanted = list({fingerprint for fingerprint, _ in takes})
        found = find_all(connection, slice.tenant, wanted, self._clock()) if wanted else {}
        made: list[dict[str, Any]] = []
        for fingerprint, take in takes:
            hit = found.get(fingerprint)
            record = take(*hit) if hit is not None else None
            if hit is not None and record is not None:
                row = completion_row(record)
                row["status"], row["ended_ms"] = (
                    State.COMPLETED.value,
                    max(record.created_ms, hit[0].ended_ms),
                )
                made.append(row)
        if not made:
            return False
        ids = [row["id"] for row in made]
        insert_new(connection, completions, made)
        connection.execute(CHARGE, {"ids": ids})
        count_hits(connection, ids)
        return True

    def _settle(self, connection: Connection, slice: Slice, sizes: dict[int, int], token: str) -> int:
        """How many slices are done."""
        sums = (
            select(_s.first, *(func.sum(_u[name]).label(name) for name in (*TOKENS, "cost_nano")))
            .add_columns(func.count().label("completed"))
            .join_from(batch_slices, batch_rows, _WITHIN)
            .join(usage, _u.completion_id == _r.completion_id)
            .where(*_these(slice, [*sizes]))
            .group_by(_s.first)
        )
        done: list[dict[str, Any]] = []
        begun: list[int] = []
        for row in connection.execute(sums).mappings():
            if row["completed"] == sizes[row["first"]]:
                values = {f"new_{name}": row[name] for name in ("completed", *TOKENS, "cost_nano")}
                done.append(values | {"in_batch": slice.batch, "from_row": row["first"]})
            else:
                begun.append(row["first"])
        if done:
            connection.execute(_DONE, done)
        if begun:
            connection.execute(update(batch_slices).where(*_these(slice, begun)).values(token=token))
        return len(done)


_WITHIN = and_(_r.batch_id == _s.batch_id, _r.n >= _s.first, _r.n < _s.beyond)
_ROWS = (
    select(*(_r[name] for name in RowAsked.__struct_fields__))
    .join_from(batch_slices, batch_rows, _WITHIN)
    .where(_s.batch_id == bindparam("in_batch"), _s.first == bindparam("from_row"))
)
_READY = (
    select(_s.first, _s.beyond)
    .join_from(batch_slices, batches, _b.id == _s.batch_id)
    .where(_b.id == bindparam("in_batch"), _b.status == BatchStatus.IN_PROGRESS.value, _b.stopped.is_(None))
    .where(_s.state == SliceState.READY.value, _s.token.is_(None))
    .order_by(_s.provider, _s.first)
    .limit(bindparam("most"))
    .with_for_update(of=batch_slices, skip_locked=True)
)
_SUMS: dict[str, Any] = {name: bindparam(f"new_{name}") for name in ("completed", *TOKENS, "cost_nano")}
_DONE = (
    update(batch_slices)
    .where(_s.batch_id == bindparam("in_batch"), _s.first == bindparam("from_row"))
    .values({**_SUMS, "state": SliceState.DONE.value, "until_ms": None})
)


def _these(slice: Slice, firsts: Sequence[int]) -> tuple[Any, ...]:
    return _s.batch_id == slice.batch, _s.first.in_(firsts)
