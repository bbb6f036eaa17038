"""Batches in SQL: making, finding and cancelling them, what they count, and the rows that validation writes.

Everything blocks. Who validates has the batch's token, and each write of it is fenced by that token: whoever lost it
writes nothing more.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError

from schemas.batches import BatchStatus, Row, RowError, SliceRange, SliceState, Stopped
from schemas.errors import Conflict, DeadlineExceeded
from schemas.states import State
from schemas.tables import batch_rows, batch_slices, batches, completions, generations, usage
from stores.rows import storable
from stores.sql import insert_new, reading, writing

#: Rows that one transaction drops, and rows of a page.
DROP_ROWS, PAGE_ROWS = 20_000, 1000

_b, _r, _s, _u = batches.c, batch_rows.c, batch_slices.c, usage.c
_c, _g = completions.c, generations.c

_STOPPED = {
    Stopped.CANCELLED: RowError.CANCELLED,
    Stopped.EXPIRED: RowError.EXPIRED,
    Stopped.ERRORS: RowError.STOPPED,
}

#: What slices and batches both count, but for what it cost.
TOKENS = ("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens")


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. ``errors`` are those of its input, or why it was stopped: code, message, param and line of each."""

    id: str
    tenant: str
    key_id: str
    end_user: str | None = None
    endpoint: str
    input_file_id: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    status: str = BatchStatus.VALIDATING.value
    stopped: str | None = None
    completion_window: str
    metadata: dict[str, str] | None = None
    model: str | None = None
    max_concurrency: int
    max_error_rate: float
    retry_of: str | None = None
    output_seconds: int | None = None
    errors: list[dict[str, Any]] | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cost_nano: int | None = None
    created_ms: int
    expires_ms: int
    in_progress_ms: int | None = None
    cancelling_ms: int | None = None
    finalizing_ms: int | None = None
    ended_ms: int | None = None
    token: str | None = None
    until_ms: int | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a batch, and what those that have ended used. ``cost_nano``: what is known, None where nothing is."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cost_nano: int | None = None


class Lost(Exception):
    """The batch is somebody else's by now, or it is over."""


class Batches:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def add(self, row: BatchRow) -> bool:
        """False where a batch of this id is there already."""
        try:
            with writing(self.engine) as connection:
                connection.execute(insert(batches).values(msgspec.structs.asdict(row)))
        except IntegrityError:
            return False
        return True

    def get(self, tenant: str, id: str, *, end_user: str | None = None) -> BatchRow | None:
        """``end_user``: only where it is that user's."""
        with reading(self.engine) as connection:
            row = _one(connection, storable(id))
        mine = row is not None and row.tenant == tenant and end_user in (None, row.end_user)
        return row if mine else None

    def list(
        self, tenant: str, *, end_user: str | None = None, after: str | None = None, limit: int
    ) -> list[BatchRow]:
        """Newest first, from the one that follows ``after``."""
        statement = (
            select(batches)
            .where(_b.tenant == tenant)
            .order_by(_b.created_ms.desc(), _b.id.desc())
            .limit(limit)
        )
        if end_user is not None:
            statement = statement.where(_b.end_user == end_user)
        if after is not None:
            before = select(_b.created_ms, _b.id).where(_b.id == storable(after), _b.tenant == tenant)
            statement = statement.where(tuple_(_b.created_ms, _b.id) < before.scalar_subquery())
        with reading(self.engine) as connection:
            return [BatchRow(**row) for row in connection.execute(statement).mappings()]

    def counts(self, batch: BatchRow) -> Counts:
        """Those of slices that are done, and of what has ended in slices that somebody has or had."""
        return self.counts_of([batch])[0]

    def counts_of(self, rows: Sequence[BatchRow]) -> list[Counts]:
        with reading(self.engine) as connection:
            return [_counts(connection, row) for row in rows]

    def cancel(self, tenant: str, id: str, now_ms: int) -> BatchRow | None:
        """The batch, which ends; None where there is none. Raises Conflict where it has ended or is about to."""
        with writing(self.engine) as connection:
            row = _one(connection, storable(id), lock=True)
            if row is None or row.tenant != tenant:
                return None
            if row.status == BatchStatus.CANCELLING:
                return row
            if row.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
                raise Conflict(
                    f"A batch with the status '{row.status}' can't be cancelled.",
                    code="batch_not_cancellable",
                )
            changes: dict[str, Any] = {"stopped": Stopped.CANCELLED.value, "cancelling_ms": now_ms}
            if row.status == BatchStatus.VALIDATING:
                changes |= {"status": BatchStatus.CANCELLED.value, "ended_ms": now_ms}
                changes |= {"token": None, "until_ms": None}
            else:
                changes["status"] = BatchStatus.CANCELLING.value
            connection.execute(update(batches).where(_b.id == id).values(changes))
            return msgspec.structs.replace(row, **changes)

    def failed_rows(self, batch: BatchRow, codes: Sequence[str] | None = None) -> Generator[list[Row]]:
        """The rows without an answer, in pages: those with one of the error codes, or all."""
        names = Row.__struct_fields__
        statement = (
            select(*(_r[name] for name in names), _u.status, _c.tail, _g.failure)
            .outerjoin_from(batch_rows, usage, _u.completion_id == _r.completion_id)
            .outerjoin(completions, _c.id == _r.completion_id)
            .outerjoin(generations, _g.id == _c.generation_id)
            .where(_r.batch_id == batch.id, _r.n >= bindparam("first"), _r.n < bindparam("beyond"))
            .where(func.coalesce(_u.status, "") != State.COMPLETED.value)
            .order_by(_r.n)
        )
        for first in range(0, batch.total, PAGE_ROWS):
            with reading(self.engine) as connection:
                found = connection.execute(statement, {"first": first, "beyond": first + PAGE_ROWS}).all()
            rows = [
                Row(*row[: len(names)])
                for row in found
                if codes is None or not _codes(batch, row.status, row.tail, row.failure).isdisjoint(codes)
            ]
            if rows:
                yield rows

    # Validation. Each raises Lost where the token is no longer that of a batch to validate.

    def begin_validation(self, id: str, token: str) -> BatchRow:
        """The batch, without the rows that somebody may have written before."""
        with reading(self.engine) as connection:
            row = _one(connection, id)
        if row is None or row.token != token or row.status != BatchStatus.VALIDATING:
            raise Lost(id)
        self._drop_rows(id, token)
        return row

    def renew_validation(self, id: str, token: str, until_ms: int) -> None:
        with writing(self.engine) as connection:
            _change(connection, id, token, {"until_ms": until_ms})

    def insert_rows(self, id: str, token: str, rows: Sequence[Row]) -> None:
        with writing(self.engine) as connection:
            _own(connection, id, token)
            insert_new(connection, batch_rows, [{"batch_id": id, **msgspec.structs.asdict(r)} for r in rows])

    def in_progress(
        self, id: str, token: str, *, slices: Sequence[SliceRange], model: str | None, now_ms: int
    ) -> None:
        """All rows are written: the batch is there to be dealt."""
        empty = dict.fromkeys((*TOKENS, "completed", "failed", "concurrency"), 0)
        state = {"batch_id": id, "state": SliceState.READY.value, **empty}
        changes = {
            "status": BatchStatus.IN_PROGRESS.value,
            "model": model,
            "total": slices[-1].beyond,
            "in_progress_ms": now_ms,
            "token": None,
            "until_ms": None,
        }
        with writing(self.engine) as connection:
            _change(connection, id, token, changes)
            insert_new(connection, batch_slices, [{**state, **msgspec.structs.asdict(s)} for s in slices])

    def failed(self, id: str, token: str, *, errors: list[dict[str, Any]], now_ms: int) -> None:
        """The input can't be used: nothing is sent, and no rows stay."""
        told = [{k: storable(v) if isinstance(v, str) else v for k, v in e.items()} for e in errors]
        changes = {
            "status": BatchStatus.FAILED.value,
            "errors": told,
            "ended_ms": now_ms,
            "token": None,
            "until_ms": None,
        }
        self._drop_rows(id, token)
        with writing(self.engine) as connection:
            _change(connection, id, token, changes)

    def _drop_rows(self, id: str, token: str) -> None:
        while True:
            with writing(self.engine) as connection:
                _own(connection, id, token)
                if not _drop(connection, id):
                    return

    def drop_unused_rows(self, id: str | None = None) -> int:
        """Rows of batches that ended before they began, because they were cancelled; how many there were."""
        unused = (
            select(_b.id)
            .where(_b.ended_ms.is_not(None), _b.in_progress_ms.is_(None))
            .where(exists().where(_r.batch_id == _b.id))
        )
        if id is not None:
            unused = unused.where(_b.id == id)
        with reading(self.engine) as connection:
            ended = [*connection.scalars(unused)]
        dropped = 0
        for batch in ended:
            while True:
                with writing(self.engine) as connection:
                    count = _drop(connection, batch)
                dropped += count
                if not count:
                    break
        return dropped


def _one(connection: Connection, id: str, *, lock: bool = False) -> BatchRow | None:
    statement = select(batches).where(_b.id == id)
    if lock:
        statement = statement.with_for_update()
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else BatchRow(**row)


def _codes(batch: BatchRow, status: str | None, tail: int | None, failure: dict[str, Any] | None) -> set[str]:
    """What a row without an answer may be said to have failed with."""
    if status == State.FAILED:
        if tail is not None or failure is None:
            return {RowError.TIMEOUT, DeadlineExceeded.code}
        timeout = {RowError.TIMEOUT.value} if failure["code"] == DeadlineExceeded.code else set[str]()
        return {failure["code"], *timeout}
    why = Stopped(batch.stopped) if batch.stopped is not None else Stopped.CANCELLED
    return {_STOPPED[why]}


def _own(connection: Connection, id: str, token: str) -> None:
    """The batch stays this token's until the end of the transaction."""
    statement = select(_b.id).where(*_mine(id, token)).with_for_update()
    if connection.execute(statement).one_or_none() is None:
        raise Lost(id)


def _change(connection: Connection, id: str, token: str, values: dict[str, Any]) -> None:
    if connection.execute(update(batches).where(*_mine(id, token)).values(values)).rowcount == 0:
        raise Lost(id)


def _mine(id: str, token: str) -> tuple[ColumnElement[bool], ...]:
    return _b.id == id, _b.token == token, _b.status == BatchStatus.VALIDATING.value


def _drop(connection: Connection, id: str) -> int:
    """Some of the batch's rows, the last first, so that a range is left that begins at 0."""
    last = connection.scalar(select(func.max(_r.n)).where(_r.batch_id == id))
    if last is None:
        return 0
    return connection.execute(delete(batch_rows).where(_r.batch_id == id, _r.n > last - DROP_ROWS)).rowcount


def _counts(connection: Connection, batch: BatchRow) -> Counts:
    if batch.ended_ms is not None or batch.in_progress_ms is None:
        fields = (*Counts.__struct_fields__,)
        return Counts(**{name: getattr(batch, name) for name in fields})
    done = select(_s.completed, _s.failed, *(_s[name] for name in TOKENS), _s.cost_nano).where(
        _s.batch_id == batch.id, _s.state == SliceState.DONE.value
    )
    went_well = _u.status == State.COMPLETED.value
    # One that was handed back has its last token. They are named one by one: else SQLite begins with the batch's rows.
    begun = select(_s.first).where(
        _s.batch_id == batch.id,
        or_(
            _s.state == SliceState.DEALT.value,
            (_s.state == SliceState.READY.value) & _s.token.is_not(None),
        ),
    )
    firsts = [*connection.scalars(begun)]
    under_way = (
        select(
            func.count().filter(went_well).label("completed"),
            func.count().filter(~went_well).label("failed"),
            *(func.coalesce(func.sum(_u[name]), 0).label(name) for name in TOKENS),
            func.sum(_u.cost_nano).label("cost_nano"),
        )
        .select_from(batch_slices)
        .join(batch_rows, (_r.batch_id == _s.batch_id) & (_r.n >= _s.first) & (_r.n < _s.beyond))
        .join(usage, _u.completion_id == _r.completion_id)
        .where(_s.batch_id == batch.id, _s.first.in_(firsts))
    )
    parts = union_all(done, under_way).subquery()
    names = ("completed", "failed", *TOKENS, "cost_nano")
    sums = (
        connection.execute(select(*(func.sum(parts.c[name]).label(name) for name in names))).mappings().one()
    )
    known = {name: int(value) for name, value in sums.items() if value is not None}
    return Counts(total=batch.total, **known)
