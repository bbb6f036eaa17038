"""Open batches as the one who deals sees them: which have a job to do, which slices are ready, who has the others.

All of it blocks. Each change says what it takes for granted, so that two who believe that they lead do no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Engine, and_, bindparam, func, select, update

from schemas.batches import BatchStatus, SliceState, Stopped
from schemas.tables import batch_slices, batches
from stores.sql import reading, writing

_b, _s = batches.c, batch_slices.c


class OpenBatch(msgspec.Struct, frozen=True):
    id: str
    tenant: str
    status: str
    stopped: str | None
    max_concurrency: int
    max_error_rate: float
    expires_ms: int
    finalizing_ms: int | None
    token: str | None
    until_ms: int | None

    @property
    def sends(self) -> bool:
        """Whether its rows are sent."""
        return self.status == BatchStatus.IN_PROGRESS and self.stopped is None

    @property
    def has_job(self) -> bool:
        """Whether it waits for its validation, or for its files."""
        return self.status == BatchStatus.VALIDATING or self.finalizing_ms is not None


class SliceRow(msgspec.Struct, frozen=True):
    """A slice. ``known``: somebody had it already."""

    batch: str
    first: int
    beyond: int
    provider: str
    concurrency: int
    known: bool

    @property
    def rows(self) -> int:
        return self.beyond - self.first


class Deal(msgspec.Struct, frozen=True):
    """A slice for whoever gets the message with the token."""

    batch: str
    first: int
    token: str
    concurrency: int
    again: bool


class Counted(msgspec.Struct, frozen=True):
    """Rows of a batch that ended, as its slices have counted them."""

    completed: int
    failed: int


class Dealing:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open(self) -> list[OpenBatch]:
        """Oldest first."""
        columns = [_b[name] for name in OpenBatch.__struct_fields__]
        statement = select(*columns).where(_b.ended_ms.is_(None)).order_by(_b.id)
        with reading(self._engine) as connection:
            return [OpenBatch(*row) for row in connection.execute(statement)]

    def recall(self, ids: Sequence[str], now_ms: int) -> int:
        """Slices of which nothing was heard are ready again; how many."""
        late = (*_dealt(ids), _s.until_ms < now_ms)
        with reading(self._engine) as connection:
            if connection.execute(select(_s.first).where(*late).limit(1)).first() is None:
                return 0
        with writing(self._engine) as connection:
            return connection.execute(
                update(batch_slices).where(*late).values(state=SliceState.READY.value)
            ).rowcount

    def dealt(self, ids: Sequence[str]) -> list[SliceRow]:
        with reading(self._engine) as connection:
            return [SliceRow(*row) for row in connection.execute(_SLICES.where(*_dealt(ids)))]

    def providers(self, batch: str) -> list[str]:
        """The providers of its slices, as they name them: these never change."""
        statement = select(_s.provider).where(_s.batch_id == batch).distinct()
        with reading(self._engine) as connection:
            return [*connection.scalars(statement)]

    def ready(self, batch: str, provider: str, limit: int) -> list[SliceRow]:
        statement = _SLICES.where(_ready(batch), _s.provider == provider).order_by(_s.first).limit(limit)
        with reading(self._engine) as connection:
            return [SliceRow(*row) for row in connection.execute(statement)]

    def begun(self, batch: str, limit: int) -> list[SliceRow]:
        """Slices that are ready and that somebody had: they may have rows under way."""
        statement = _SLICES.where(_ready(batch), _s.token.is_not(None)).order_by(_s.first).limit(limit)
        with reading(self._engine) as connection:
            return [SliceRow(*row) for row in connection.execute(statement)]

    def deal(self, deals: Sequence[Deal], until_ms: int) -> None:
        change = (
            update(batch_slices)
            .where(_s.batch_id == bindparam("in_batch"), _s.first == bindparam("from_row"))
            .where(_s.state == SliceState.READY.value)
            .values(
                state=SliceState.DEALT.value,
                token=bindparam("new_token"),
                concurrency=bindparam("part"),
                until_ms=until_ms,
            )
        )
        rows = [
            {"in_batch": d.batch, "from_row": d.first, "new_token": d.token, "part": d.concurrency}
            for d in deals
        ]
        with writing(self._engine) as connection:
            connection.execute(change, rows)

    def assign(self, batch: OpenBatch, token: str, until_ms: int) -> bool:
        """Its job is for whoever has the token; False where that has changed."""
        return self._change(batch, {"token": token, "until_ms": until_ms}, _b.status == batch.status)

    def stop(self, batch: OpenBatch, why: Stopped, errors: list[dict[str, Any]] | None = None) -> None:
        """No more of its rows are sent."""
        values: dict[str, Any] = {"stopped": why.value} | ({} if errors is None else {"errors": errors})
        self._change(batch, values, _b.status == BatchStatus.IN_PROGRESS.value, _b.stopped.is_(None))

    def over(self, batch: OpenBatch, now_ms: int) -> bool:
        """Begin its finalizing, where none of its rows is or comes under way; whether that is so."""
        left = [_s.state != SliceState.DONE.value]
        if not batch.sends:
            left = [_s.state != SliceState.DONE.value, _s.token.is_not(None)]
        states = [SliceState.DEALT.value, SliceState.READY.value]  # by the index
        some = select(_s.first).where(_s.batch_id == batch.id, _s.state.in_(states), *left).limit(1)
        with reading(self._engine) as connection:
            if connection.execute(some).first() is not None:
                return False
        values: dict[str, Any] = {"finalizing_ms": now_ms, "token": None, "until_ms": None}
        if batch.status != BatchStatus.CANCELLING:
            values["status"] = BatchStatus.FINALIZING.value
        unchanged = _b.stopped.is_(None) if batch.stopped is None else _b.stopped == batch.stopped
        return self._change(batch, values, _b.status == batch.status, unchanged)

    def counted(self, ids: Sequence[str]) -> dict[str, Counted]:
        statement = (
            select(_s.batch_id, func.sum(_s.completed), func.sum(_s.failed))
            .where(_s.batch_id.in_(ids))
            .group_by(_s.batch_id)
        )
        with reading(self._engine) as connection:
            return {id: Counted(int(good), int(bad)) for id, good, bad in connection.execute(statement)}

    def _change(self, batch: OpenBatch, values: dict[str, Any], *unchanged: ColumnElement[bool]) -> bool:
        was = and_(
            _b.ended_ms.is_(None), _b.token.is_(None) if batch.token is None else _b.token == batch.token
        )
        with writing(self._engine) as connection:
            change = update(batches).where(_b.id == batch.id, was, *unchanged).values(values)
            return connection.execute(change).rowcount > 0


_SLICES = select(
    _s.batch_id, _s.first, _s.beyond, _s.provider, _s.concurrency, _s.token.is_not(None).label("known")
)


def _dealt(ids: Sequence[str]) -> tuple[ColumnElement[bool], ...]:
    return _s.batch_id.in_(ids), _s.state == SliceState.DEALT.value


def _ready(batch: str) -> ColumnElement[bool]:
    return and_(_s.batch_id == batch, _s.state == SliceState.READY.value)
