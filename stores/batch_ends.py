"""What became of the rows of batches, in SQL: in pages for their files, in groups for whoever asks why some failed.

All of it blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Boolean, ColumnElement, Engine, and_, func, insert, literal_column, select, update

from schemas.batches import BatchStatus
from schemas.errors import Failure
from schemas.records import StoredLog
from schemas.states import State
from schemas.tables import batch_rows, batch_slices, batches, completions, files, generations, results, usage
from stores.batches import TOKENS, BatchRow
from stores.files import FileRow
from stores.rows import SELECT_COMPLETIONS, CompletionRow, completion_of, read_log
from stores.sql import is_sqlite, reading, writing

#: Rows of a page.
PAGE = 200

_b, _n, _s, _f = batches.c, batch_rows.c, batch_slices.c, files.c
_c, _g, _r, _u = completions.c, generations.c, results.c, usage.c


class RowOver(msgspec.Struct, frozen=True):
    """A row and what became of it. ``used``: it has its usage record, also where its completion is gone by now.
    ``unstored``: it may have asked that nothing of it be kept."""

    n: int
    line: int
    custom_id: str
    completion_id: str
    fingerprint: str
    unstored: bool
    used: bool
    completion: CompletionRow | None
    log: StoredLog | None


class FailureGroup(msgspec.Struct, frozen=True):
    """Rows that failed alike. ``failure`` None: cancelled. The example is the first one in the file."""

    status: str
    early: bool  # it left before its generation ended
    failure: Failure | None
    count: int
    n: int


class Named(msgspec.Struct, frozen=True):
    line: int
    custom_id: str
    completion_id: str


class BatchEnds:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        sought = (
            "instr(batch_rows.body, CAST('\"store\"' AS BLOB)) > 0"
            if is_sqlite(engine)
            else "position('\"store\"'::bytea in batch_rows.body) > 0"
        )
        self._unstored: ColumnElement[bool] = literal_column(sought, Boolean())

    def page(self, batch: str, first: int) -> list[RowOver]:
        """The rows from ``first`` on, ``PAGE`` of them at most; none past the end."""
        mine = and_(_n.batch_id == batch, _n.n >= first, _n.n < first + PAGE)
        rows = (
            select(*(_n[name].label(f"r_{name}") for name in _ROW), self._unstored).where(mine).order_by(_n.n)
        )
        over = (
            SELECT_COMPLETIONS.add_columns(*_LOG)
            .outerjoin(results, _r.generation_id == _c.generation_id)
            .join(batch_rows, _n.completion_id == _c.id)
            .where(mine)
        )
        used = select(_u.completion_id).join(batch_rows, _n.completion_id == _u.completion_id).where(mine)
        with reading(self.engine) as connection:
            asked = connection.execute(rows).all()
            found = {row[0]: row for row in connection.execute(over)}
            lacking = len(found) < len(asked)
            gone = {*connection.scalars(used)} if lacking else set[str]()
        page: list[RowOver] = []
        for row in asked:
            id = row.r_completion_id
            fields = found.get(id)
            completion = log = None
            if fields is not None:
                completion = completion_of(fields)
                if fields[_LOG_AT] is not None:
                    log = read_log(*fields[_LOG_AT:])
            values: list[Any] = [*row, id in gone, completion, log]
            page.append(RowOver(*values))
        return page

    def unstored(self, batch: str, first: int) -> list[tuple[str, bytes]]:
        """Of a page of rows those that may have asked not to be kept: completion and body."""
        mine = and_(_n.batch_id == batch, _n.n >= first, _n.n < first + PAGE)
        with reading(self.engine) as connection:
            rows = connection.execute(
                select(_n.completion_id, _n.body).where(mine, self._unstored.label("r_unstored"))
            )
            return [(row.completion_id, bytes(row.body)) for row in rows]

    # Finalizing, by whoever has the token

    def batch(self, id: str, token: str) -> BatchRow | None:
        """The batch to finalize; None where the token is not its."""
        with reading(self.engine) as connection:
            row = connection.execute(select(batches).where(*_mine(id, token))).mappings().one_or_none()
        return None if row is None else BatchRow(**row)

    def renew(self, id: str, token: str, until_ms: int | None) -> bool:
        """Until when it is believed to be at work; None: no longer. False where it is another's."""
        with writing(self.engine) as connection:
            change = update(batches).where(*_mine(id, token)).values(until_ms=until_ms)
            return connection.execute(change).rowcount > 0

    def written(
        self, batch: BatchRow, token: str, made: Sequence[FileRow], values: Mapping[str, Any]
    ) -> bool:
        """Its files are there for everybody, and ``values`` are true of it; False where it is another's, and nothing is
        changed."""
        sums = select(
            *(func.coalesce(func.sum(_s[name]), 0).label(name) for name in TOKENS),
            func.sum(_s.cost_nano).label("cost_nano"),
        ).where(_s.batch_id == batch.id)
        with writing(self.engine) as connection:
            own = select(_b.id).where(*_mine(batch.id, token)).with_for_update()
            if connection.execute(own).first() is None:
                return False
            used = connection.execute(sums).mappings().one()
            for row in made:
                shown = {"bytes": row.bytes, "expires_ms": row.expires_ms}
                if not connection.execute(update(files).where(_f.id == row.id).values(shown)).rowcount:
                    connection.execute(insert(files).values(msgspec.structs.asdict(row)))
            counts = {name: None if value is None else int(value) for name, value in used.items()}
            connection.execute(update(batches).where(_b.id == batch.id).values({**counts, **values}))
        return True

    def end(self, id: str, token: str, status: BatchStatus, now_ms: int) -> bool:
        values = {"status": status.value, "ended_ms": now_ms, "token": None, "until_ms": None}
        with writing(self.engine) as connection:
            return connection.execute(update(batches).where(*_mine(id, token)).values(values)).rowcount > 0

    # Why rows failed

    def failures(self, batch: str, most: int) -> list[FailureGroup]:
        """The commonest first; rows that never were anybody's completion are not among them."""
        count = func.count().label("number")
        early = _c.tail.is_not(None)
        statement = (
            select(_c.status, early.label("early"), _g.failure, count, func.min(_n.n).label("example"))
            .join_from(batch_rows, completions, _c.id == _n.completion_id)
            .outerjoin(generations, _g.id == _c.generation_id)
            .where(_n.batch_id == batch, _c.status.in_([State.FAILED.value, State.CANCELLED.value]))
            .group_by(_c.status, early, _g.failure)
            .order_by(count.desc())
            .limit(most)
        )
        with reading(self.engine) as connection:
            return [
                FailureGroup(
                    row.status,
                    bool(row.early),
                    None if row.failure is None else msgspec.convert(row.failure, Failure),
                    row.number,
                    row.example,
                )
                for row in connection.execute(statement)
            ]

    def named(self, batch: str, numbers: Sequence[int]) -> dict[int, Named]:
        statement = select(_n.n, _n.line, _n.custom_id, _n.completion_id)
        with reading(self.engine) as connection:
            rows = connection.execute(statement.where(_n.batch_id == batch, _n.n.in_(numbers)))
            return {row.n: Named(*row[1:]) for row in rows}

    def never_sent(self, batch: str) -> tuple[int, int | None]:
        """Rows that are nobody's completion: how many, and the first."""
        statement = (
            select(func.count(), func.min(_n.n))
            .select_from(batch_rows)
            .outerjoin(usage, _u.completion_id == _n.completion_id)
            .outerjoin(completions, _c.id == _n.completion_id)
            .where(_n.batch_id == batch, _c.id.is_(None), _u.completion_id.is_(None))
        )
        with reading(self.engine) as connection:
            count, first = connection.execute(statement).one()
        return int(count), first


_ROW = ("n", "line", "custom_id", "completion_id", "fingerprint")
_LOG: tuple[ColumnElement[Any], ...] = tuple(
    _r[name].label(f"l_{name}") for name in ("head", "items", "compressed", "base", "next")
)
_LOG_AT = len(SELECT_COMPLETIONS.selected_columns)


def _mine(id: str, token: str) -> tuple[ColumnElement[bool], ...]:
    return _b.id == id, _b.token == token, _b.finalizing_ms.is_not(None), _b.ended_ms.is_(None)
