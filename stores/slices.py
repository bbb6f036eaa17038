"""Slices of batches, as the one who has them sees them: their rows, which of these have ended, how long they are his.

All of it blocks. Whoever has a slice has its token; what another token has is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Engine, bindparam, select, update

from schemas.batches import BatchStatus, SliceState, Stopped
from schemas.states import State
from schemas.tables import batch_rows, batch_slices, batches, completions, usage
from stores.sql import among, reading, writing

_b, _r, _s, _c, _u = batches.c, batch_rows.c, batch_slices.c, completions.c, usage.c


class Slice(msgspec.Struct, frozen=True):
    """One that was taken. ``stopped``: nothing more of it is sent."""

    batch: str
    first: int
    beyond: int
    token: str
    concurrency: int
    tenant: str
    key_id: str
    stopped: bool


class RowAsked(msgspec.Struct, frozen=True):
    """What a row asks for."""

    n: int
    completion_id: str
    fingerprint: str
    end_user: str | None
    sample: int | None
    cache_control: str | None
    body: bytes


class RowEnd(msgspec.Struct, frozen=True):
    """How a row ended, and what it used."""

    status: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cost_nano: int | None = None


class Sums(msgspec.Struct, frozen=True):
    """What the rows of a slice come to. ``cost_nano`` is what is known of it, None where nothing is."""

    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cost_nano: int | None = None


class Keep(msgspec.Struct, frozen=True):
    """A slice that is still at work: how many rows at once, and what it has come to."""

    batch: str
    first: int
    token: str
    concurrency: int
    completed: int
    failed: int


def sums_of(ends: Iterable[RowEnd]) -> Sums:
    good = bad = prompt = completion = reasoning = cached = 0
    cost: int | None = None
    for end in ends:
        if end.status == State.COMPLETED:
            good += 1
        else:
            bad += 1
        prompt += end.prompt_tokens
        completion += end.completion_tokens
        reasoning += end.reasoning_tokens
        cached += end.cached_tokens
        if end.cost_nano is not None:
            cost = (cost or 0) + end.cost_nano
    return Sums(good, bad, prompt, completion, reasoning, cached, cost)


class Slices:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, batch: str, first: int, token: str, own: str, until_ms: int) -> Slice | None:
        """The slice for whoever brings its token, which is ``own`` from now on: a message that comes twice finds
        nothing."""
        change = (
            update(batch_slices)
            .where(_s.batch_id == batch, _s.first == first, *_has(token))
            .values(token=own, until_ms=until_ms)
        )
        columns = (_s.beyond, _s.concurrency, _b.tenant, _b.key_id, _b.status, _b.stopped)
        found = (
            select(*columns)
            .join_from(batch_slices, batches, _b.id == _s.batch_id)
            .where(_s.batch_id == batch, _s.first == first)
        )
        with writing(self._engine) as connection:
            if connection.execute(change).rowcount == 0:
                return None
            row = connection.execute(found).one()
        return Slice(
            batch,
            first,
            row.beyond,
            own,
            row.concurrency,
            row.tenant,
            row.key_id,
            _stopped(row.status, row.stopped),
        )

    def take_job(self, batch: str, token: str, own: str, until_ms: int) -> bool:
        """As ``take``, the batch's own job."""
        change = update(batches).where(_b.id == batch, _b.token == token, _b.ended_ms.is_(None))
        with writing(self._engine) as connection:
            return connection.execute(change.values(token=own, until_ms=until_ms)).rowcount > 0

    def rows(self, slice: Slice) -> list[RowAsked]:
        columns = [_r[name] for name in RowAsked.__struct_fields__]
        mine = (_r.batch_id == slice.batch, _r.n >= slice.first, _r.n < slice.beyond)
        with reading(self._engine) as connection:
            rows = connection.execute(select(*columns).where(*mine).order_by(_r.n))
            return [RowAsked(*values) for values in map(_values, rows)]

    def ended(self, ids: Sequence[str], *, early: bool = False) -> dict[str, RowEnd]:
        """Those of some completions that have their usage record; ``early``: and those that ended before it."""
        columns = (_u.completion_id, *(_u[name] for name in RowEnd.__struct_fields__))
        with reading(self._engine) as connection:
            rows = connection.execute(select(*columns).where(among(_u.completion_id)), {"ids": [*ids]})
            found = {id: RowEnd(*values) for id, *values in map(_values, rows)}
            left = [id for id in ids if id not in found] if early else []
            if left:
                over = select(_c.id, _c.status).where(among(_c.id), _c.status != State.QUEUED.value)
                found |= {row.id: RowEnd(row.status) for row in connection.execute(over, {"ids": left})}
        return found

    def known(self, ids: Sequence[str]) -> dict[str, str]:
        """Those of some completions that were accepted and have no end yet, with their generations."""
        statement = select(_c.id, _c.generation_id).where(among(_c.id), _c.status == State.QUEUED.value)
        with reading(self._engine) as connection:
            return {row.id: row.generation_id for row in connection.execute(statement, {"ids": [*ids]})}

    def keep(self, slices: Sequence[Keep], until_ms: int) -> dict[tuple[str, int], bool]:
        """They stay their holders' until then: those that do, and whether the batch is stopped."""
        change = (
            update(batch_slices)
            .where(_s.batch_id == bindparam("in_batch"), _s.first == bindparam("from_row"))
            .where(_s.state == SliceState.DEALT.value, _s.token == bindparam("own"))
            .values(
                until_ms=until_ms,
                concurrency=bindparam("part"),
                completed=bindparam("good"),
                failed=bindparam("bad"),
            )
        )
        values = [
            {
                "in_batch": s.batch,
                "from_row": s.first,
                "own": s.token,
                "part": s.concurrency,
                "good": s.completed,
                "bad": s.failed,
            }
            for s in slices
        ]
        tokens = [s.token for s in slices]
        statement = (
            select(_s.batch_id, _s.first, _b.status, _b.stopped)
            .join_from(batch_slices, batches, _b.id == _s.batch_id)
            .where(_s.batch_id.in_({s.batch for s in slices}), _s.state == SliceState.DEALT.value)
            .where(_s.token.in_(tokens))
        )
        with writing(self._engine) as connection:
            connection.execute(change, values)
            rows = connection.execute(statement).all()
        return {(row.batch_id, row.first): _stopped(row.status, row.stopped) for row in rows}

    def stop(self, batch: str, error: Mapping[str, Any]) -> None:
        """No more of a batch's rows are sent, and it ends as failed."""
        change = update(batches).where(
            _b.id == batch, _b.status == BatchStatus.IN_PROGRESS.value, _b.stopped.is_(None)
        )
        with writing(self._engine) as connection:
            connection.execute(change.values(stopped=Stopped.ERRORS.value, errors=[dict(error)]))

    def finish(self, slice: Slice, state: SliceState, sums: Sums) -> bool:
        """Done, or ready for the next one; False where it is another's by now."""
        values: Mapping[str, Any] = {**msgspec.structs.asdict(sums), "state": state.value, "until_ms": None}
        change = update(batch_slices).where(
            _s.batch_id == slice.batch, _s.first == slice.first, *_has(slice.token)
        )
        with writing(self._engine) as connection:
            return connection.execute(change.values(values)).rowcount > 0


def _values(row: Iterable[Any]) -> list[Any]:
    return [*row]


def _has(token: str) -> tuple[Any, ...]:
    return _s.state == SliceState.DEALT.value, _s.token == token


def _stopped(status: str, stopped: str | None) -> bool:
    return stopped is not None or status != BatchStatus.IN_PROGRESS
