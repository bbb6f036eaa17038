"""What becomes of old completions and batches: their rows and texts go, their usage stays."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Delete, Engine, Select, delete, exists, func, select

from schemas.states import State
from schemas.tables import batch_rows, batch_slices, batches, completions, generations
from stores.books import Books
from stores.cache import Uncache
from stores.sql import LOCK_BOOKS, among, lock, reading, writing

#: Rows of one transaction; rows of a batch.
BATCH, BATCH_ROWS = 500, 5000
#: How much longer the row of a generation stays without its text, in milliseconds: a completion that was pointed to it
#: just before may not be in the books yet.
GRACE_MS = 24 * 3600 * 1000

_c, _g, _b, _r = completions.c, generations.c, batches.c, batch_rows.c
_UNUSED = ~exists().where(_c.generation_id == _g.id)
_IN_OPEN_BATCH = exists().where(_b.id == _c.batch_id, _b.ended_ms.is_(None))


def prune(engine: Engine, before_ms: int, uncache: Uncache | None = None) -> int:
    """Remove every completion that was accepted before a time and has ended, but for those of a batch that has not, and
    what nobody points to any more; how many completions there were. ``uncache`` as for ``Books.drop_orphaned_results``.

    Works in small transactions, so that an interruption leaves nothing but the rest to do.
    """
    # Ids begin with their time: the primary key finds the old ones.
    old = select(_c.id).where(
        _c.id < _first_id(before_ms),
        _c.created_ms < before_ms,
        _c.status != State.QUEUED.value,
        ~_IN_OPEN_BATCH,
    )
    pruned = _sweep(engine, old, delete(completions).where(among(_c.id)))
    Books(engine).drop_orphaned_results(uncache)
    until = before_ms - GRACE_MS
    idle = select(_g.id).where(_g.id < _first_id(until), _g.ended_ms < until, _UNUSED)
    _sweep(engine, idle, delete(generations).where(among(_g.id), _UNUSED))
    return pruned


def prune_batches(engine: Engine, before_ms: int) -> int:
    """Remove every batch that ended before a time, with its rows; how many there were."""
    return drop_batches(engine, _b.ended_ms < before_ms)


def drop_batches(engine: Engine, which: ColumnElement[bool]) -> int:
    """Remove batches, whatever their size in small transactions: the rows first, so that what an interruption leaves is
    found again. How many there were."""
    dropped = 0
    while True:
        with reading(engine) as connection:
            id = connection.scalar(select(_b.id).where(which).limit(1))
            if id is None:
                return dropped
            rows: int = connection.scalar(select(func.max(_r.n) + 1).where(_r.batch_id == id)) or 0
        for first in range(0, rows, BATCH_ROWS):
            some = _r.n.between(first, first + BATCH_ROWS - 1)
            with writing(engine) as connection:
                connection.execute(delete(batch_rows).where(_r.batch_id == id, some))
        with writing(engine) as connection:
            connection.execute(delete(batch_slices).where(batch_slices.c.batch_id == id))
            dropped += connection.execute(delete(batches).where(_b.id == id)).rowcount


def _first_id(at_ms: int) -> str:
    return f"chatcmpl-{max(at_ms, 0):012x}"


def _sweep(engine: Engine, some: Select[tuple[str]], remove: Delete) -> int:
    removed = 0
    while True:
        with reading(engine) as connection:  # without the lock, for this may take long
            ids = [*connection.scalars(some.limit(BATCH))]
        if not ids:
            return removed
        with writing(engine) as connection:
            lock(connection, LOCK_BOOKS)
            removed += connection.execute(remove, {"ids": ids}).rowcount
