"""What becomes of old completions: their rows and texts go, their usage stays."""

from __future__ import annotations

from sqlalchemy import Delete, Engine, Select, delete, exists, select

from schemas.states import State
from schemas.tables import completions, generations
from stores.books import Books
from stores.cache import Uncache
from stores.sql import LOCK_BOOKS, among, lock, reading, writing

#: Rows of one transaction.
BATCH = 500
#: How much longer the row of a generation stays without its text, in milliseconds: a completion that was pointed to it
#: just before may not be in the books yet.
GRACE_MS = 24 * 3600 * 1000

_c, _g = completions.c, generations.c
_UNUSED = ~exists().where(_c.generation_id == _g.id)


def prune(engine: Engine, before_ms: int, uncache: Uncache | None = None) -> int:
    """Remove every completion that was accepted before a time and has ended, and what nobody points to any more; how
    many completions there were. ``uncache`` as for ``Books.drop_orphaned_results``.

    Works in small transactions, so that an interruption leaves nothing but the rest to do.
    """
    # Ids begin with their time: the primary key finds the old ones.
    old = select(_c.id).where(
        _c.id < _first_id(before_ms), _c.created_ms < before_ms, _c.status != State.QUEUED.value
    )
    pruned = _sweep(engine, old, delete(completions).where(among(_c.id)))
    Books(engine).drop_orphaned_results(uncache)
    until = before_ms - GRACE_MS
    idle = select(_g.id).where(_g.id < _first_id(until), _g.ended_ms < until, _UNUSED)
    _sweep(engine, idle, delete(generations).where(among(_g.id), _UNUSED))
    return pruned


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
