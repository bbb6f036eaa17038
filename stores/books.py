"""The books: completions, generations, results and usage in SQL.

All of it blocks; async callers run it in a thread. A batch of records is entered by a fixed number of statements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Engine,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from schemas.errors import InvalidRequest
from schemas.prices import Prices
from schemas.records import Accepted, Departed, Ended, Record, StoredLog
from schemas.states import State
from schemas.tables import attempts, completions, generations, results, usage
from stores.cache import Uncache, count_hits, fingerprints_of, keep_results
from stores.rows import (
    SELECT_COMPLETIONS,
    CacheRow,
    CompletionRow,
    GenerationRow,
    attempt_rows,
    completion_row,
    generation_row,
    log_row,
    read_completion,
    read_log,
    storable,
    storable_pairs,
)
from stores.sql import LOCK_BOOKS, among, insert_new, is_sqlite, lock, reading, writing

#: Results that one transaction of the sweep drops.
SWEEP = 500

_c, _g, _a, _r, _u = completions.c, generations.c, attempts.c, results.c, usage.c


class Applied(msgspec.Struct, frozen=True):
    """What ``Books.apply`` found settled: a later call with the same records finds the same.

    ``settled`` maps completions to their generations: those whose acceptance was among the records, and those that
    point to a generation whose end was. ``missing`` are generations of theirs whose text should be in ``results`` and
    is not; hand their logs to another ``apply``, where Redis still has them.
    """

    settled: dict[str, str]
    missing: set[str]


def _leaving(record: Departed) -> dict[str, Any]:
    return {
        "left_id": record.accepted.id,
        "left_status": record.state,
        "left_tail": record.tail,
        "left_ms": record.ended_ms,
    }


class Unsettled(msgspec.Struct, frozen=True):
    """A completion that has no end in the books."""

    id: str
    generation: str
    provider: str
    resolved_model: str
    created_ms: int


_key = itemgetter(0)


def _epoch_ms() -> int:
    return time.time_ns() // 1_000_000


class Books:
    """``clock`` gives the time of deletions, in milliseconds since the epoch; ``prices`` what attempts cost that are
    entered."""

    def __init__(
        self, engine: Engine, *, clock: Callable[[], int] = _epoch_ms, prices: Prices | None = None
    ) -> None:
        self.engine = engine
        self._clock = clock
        self._prices = prices or Prices({})

    def ping(self) -> None:
        """Raises SQLAlchemy's errors where the database doesn't answer."""
        with reading(self.engine) as connection:
            connection.exec_driver_sql("SELECT 1")

    # Writing

    def apply(
        self, records: Sequence[Record], logs: Mapping[str, StoredLog], cached: Sequence[CacheRow] = ()
    ) -> Applied:
        """Enter ledger records in one transaction, and settle every completion whose generation has ended.

        The order and grouping of records doesn't matter, nor does repetition. ``logs`` maps generation ids to their
        chunk logs; of those, what a stored completion points to is kept. ``cached`` are generations of these records
        whose results may answer others, where they are kept. Raises SQLAlchemy's errors, and then nothing of the call
        is in the books.
        """
        accepted: dict[str, Accepted] = {}
        ended: dict[str, Ended] = {}
        left: dict[str, Departed] = {}
        tried: dict[tuple[str, int], dict[str, Any]] = {}
        for record in records:
            if isinstance(record, Accepted):
                accepted.setdefault(record.id, record)
            elif isinstance(record, Departed):
                left.setdefault(record.accepted.id, record)
                accepted.setdefault(record.accepted.id, record.accepted)
            else:
                ended.setdefault(record.generation, record)
                for row in attempt_rows(record, self._prices):
                    tried.setdefault((record.generation, row["number"]), row)
        others = sorted(r.id for r in accepted.values() if r.generation not in ended)
        # Sorted, so that two calls that meet the same rows can't each wait for the other.
        completion_rows = [completion_row(r) for _, r in sorted(accepted.items(), key=_key)]
        generation_rows = [generation_row(r) for _, r in sorted(ended.items(), key=_key)]
        log_rows = [log_row(id, log) for id, log in sorted(logs.items(), key=_key)]
        with writing(self.engine) as connection:
            # A completion that points to a generation of another partition, and that generation's end, may be
            # entered at once; neither transaction would see the other's rows, and the completion stay unsettled.
            lock(connection, LOCK_BOOKS, shared=all(r.id == r.generation for r in accepted.values()))
            insert_new(connection, completions, completion_rows)
            insert_new(connection, generations, generation_rows)
            insert_new(connection, attempts, [row for _, row in sorted(tried.items(), key=_key)])
            if left:
                connection.execute(_LEAVE, [_leaving(r) for _, r in sorted(left.items(), key=_key)])
            over = [*connection.execute(_SETTLE_GENERATIONS, {"ids": sorted(ended)})] if ended else []
            over += connection.execute(_SETTLE_IDS, {"ids": others}) if others else []
            settled: list[str] = [row.id for row in over]
            # Those that left early are charged once their generation has ended, too.
            settled += connection.scalars(_LEFT, {"ids": sorted(ended)}) if ended else []
            settled += connection.scalars(_LEFT_IDS, {"ids": sorted(left)}) if left else []
            if settled:
                connection.execute(CHARGE, {"ids": sorted(set(settled))})
            hits = [row.id for row in over if row.cache == "hit"]
            if hits:
                count_hits(connection, hits)
            ends = sorted(ended.keys() | logs.keys())
            found = [*connection.execute(_SETTLED_GENERATIONS, {"ids": ends})] if ends else []
            found += connection.execute(_SETTLED_IDS, {"ids": others}) if others else []
            lacking: set[str] = {row.generation_id for row in found if row.lacks}
            insert_new(connection, results, [row for row in log_rows if row["generation_id"] in lacking])
            if cached:
                keep_results(connection, cached)
        return Applied({row.id: row.generation_id for row in found}, lacking - logs.keys())

    def set_metadata(
        self, id: str, metadata: Mapping[str, str] | None, *, accepted: Accepted | None = None
    ) -> bool:
        """False where there is no such completion. ``accepted`` is its record where that may not be here yet."""
        change = update(completions).where(_c.id == id, _c.deleted_ms.is_(None))
        with writing(self.engine) as connection:
            insert_new(connection, completions, [] if accepted is None else [completion_row(accepted)])
            return connection.execute(change.values(metadata=storable_pairs(metadata))).rowcount > 0

    def delete(self, id: str, *, accepted: Accepted | None = None) -> bool:
        """Forget a completion and what it said, unless another one points to the same text. Its usage stays.

        False where there is no such completion. ``accepted`` is its record where that may not be here yet.
        """
        mark = update(completions).where(_c.id == id, _c.deleted_ms.is_(None)).returning(_c.generation_id)
        with writing(self.engine) as connection:
            lock(connection, LOCK_BOOKS)
            insert_new(connection, completions, [] if accepted is None else [completion_row(accepted)])
            generation = connection.scalar(mark.values(deleted_ms=self._clock(), metadata=None))
            if generation is None:
                return False
            connection.execute(delete(results).where(_r.generation_id == generation, _ORPHANED))
            return True

    def keep_no_text(self, ids: Sequence[str]) -> None:
        """Completions that were stored are so no longer, and what they said goes, unless another one points to it."""
        mark = update(completions).where(among(_c.id)).values(store=False)
        own = select(_c.generation_id).where(among(_c.id))
        with writing(self.engine) as connection:
            lock(connection, LOCK_BOOKS)
            connection.execute(mark, {"ids": [*ids]})
            gone = delete(results).where(_r.generation_id.in_(own), _ORPHANED)
            connection.execute(gone, {"ids": [*ids]})

    def drop_orphaned_results(self, uncache: Uncache | None = None) -> int:
        """Drop every result that no stored completion points to, and say how many there were. The cache's entries for
        them go along: ``uncache`` is told their fingerprints, by which Redis may have copies."""
        dropped = 0
        some = select(_r.generation_id).where(_ORPHANED).limit(SWEEP)
        while True:
            with reading(self.engine) as connection:  # without the lock, for this may take long
                ids = [*connection.scalars(some)]
            if not ids:
                return dropped
            with writing(self.engine) as connection:
                lock(connection, LOCK_BOOKS)
                cached = fingerprints_of(connection, ids)
                still = delete(results).where(among(_r.generation_id), _ORPHANED)
                dropped += connection.execute(still, {"ids": ids}).rowcount
            if cached and uncache is not None:
                uncache(cached)

    # Reading

    def completion(self, id: str) -> CompletionRow | None:
        """None for an unknown one and for a deleted one."""
        with reading(self.engine) as connection:
            found = connection.execute(SELECT_COMPLETIONS.where(_c.id == id, _c.deleted_ms.is_(None)))
            row = found.mappings().one_or_none()
        return None if row is None else read_completion(row)

    def completions(
        self,
        tenant: str,
        *,
        end_user: str | None = None,
        after: str | None = None,
        limit: int = 20,
        order: str = "asc",
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        statuses: Iterable[str] | None = None,
    ) -> list[CompletionRow]:
        """The tenant's stored completions by time of creation, ``order`` ``asc`` or ``desc``.

        ``end_user`` None is everybody, ``after`` the id before the page's first, ``model`` the name as asked;
        ``metadata`` lists pairs that must all be there. Raises InvalidRequest where ``after`` is not among the
        tenant's (and the user's) completions.
        """
        mine = [_c.tenant == tenant]
        if end_user is not None:
            mine.append(_c.end_user == storable(end_user))
        statement = SELECT_COMPLETIONS.where(*mine, _c.store.is_(True), _c.deleted_ms.is_(None))
        if model is not None:
            statement = statement.where(_c.model == storable(model))
        if statuses is not None:
            statement = statement.where(_c.status.in_(list(statuses)))
        if metadata:
            statement = statement.where(*_metadata_has(self.engine, metadata))
        place = tuple_(_c.created_ms, _c.id)
        descending = order == "desc"
        with reading(self.engine) as connection:
            if after is not None:
                cursor = connection.execute(
                    select(_c.created_ms, _c.id).where(*mine, _c.id == after)
                ).one_or_none()
                if cursor is None:
                    raise InvalidRequest(f"There is no completion {after!r} to list after.", param="after")
                there = tuple_(literal(cursor[0]), literal(cursor[1]))
                statement = statement.where(place < there if descending else place > there)
            by = (_c.created_ms.desc(), _c.id.desc()) if descending else (_c.created_ms, _c.id)
            rows = connection.execute(statement.order_by(*by).limit(limit)).mappings().all()
        return [read_completion(row) for row in rows]

    def unsettled(self, before_ms: int, after: str = "", limit: int = 500) -> list[Unsettled]:
        """Completions accepted before a time that have no end here yet, by id, after one."""
        statement = _UNSETTLED.where(_c.created_ms < before_ms, _c.id > after).order_by(_c.id).limit(limit)
        with reading(self.engine) as connection:
            return [Unsettled(*row) for row in connection.execute(statement)]

    def unsettled_among(self, ids: Sequence[str]) -> set[str]:
        """Those of some completions that have no end here yet."""
        with reading(self.engine) as connection:
            return {row.id for row in connection.execute(_UNSETTLED.where(_c.id.in_(ids)))}

    def over_among(self, ids: Sequence[str]) -> set[str]:
        """Those of some completions that are here and have ended, or were deleted."""
        over = or_(_c.status != State.QUEUED.value, _c.deleted_ms.is_not(None))
        with reading(self.engine) as connection:
            return {*connection.scalars(select(_c.id).where(_c.id.in_(ids), over))}

    def generation(self, id: str) -> GenerationRow | None:
        """None for one that has not ended here."""
        with reading(self.engine) as connection:
            row = connection.execute(select(generations).where(_g.id == id)).mappings().one_or_none()
        names = GenerationRow.__struct_fields__  # SQLAlchemy's names are no plain strings
        return None if row is None else msgspec.convert({name: row[name] for name in names}, GenerationRow)

    def costs(self, ids: Sequence[str]) -> dict[str, int]:
        """The cost of those of some completions that have their usage record; an unknown one is 0."""
        statement = select(_u.completion_id, _u.cost_nano).where(_u.completion_id.in_(ids))
        with reading(self.engine) as connection:
            return {row.completion_id: row.cost_nano or 0 for row in connection.execute(statement)}

    def spent(self, tenant: str, key_id: str, since_ms: int, but: Sequence[str]) -> int:
        """The known costs of a key's completions that were accepted since then, without some."""
        statement = select(func.sum(_u.cost_nano)).where(
            _u.tenant == tenant, _u.created_ms >= since_ms, _u.key_id == key_id, _u.completion_id.not_in(but)
        )
        with reading(self.engine) as connection:
            return int(connection.scalar(statement) or 0)

    def stored_log(self, generation_id: str) -> StoredLog | None:
        columns = (_r.head, _r["items"], _r.compressed, _r.base, _r.next)
        with reading(self.engine) as connection:
            row = connection.execute(select(*columns).where(_r.generation_id == generation_id)).one_or_none()
        return None if row is None else read_log(*row)


# Statements

#: Completions whose text is kept.
_KEEPS = and_(_c.store.is_(true()), _c.deleted_ms.is_(None))
_ORPHANED = ~exists().where(_c.generation_id == _r.generation_id, _KEEPS)


def _later(a: ColumnElement[int], b: ColumnElement[int]) -> ColumnElement[int]:
    return case((a > b, a), else_=b)


def _since_created(moment: ColumnElement[Any]) -> ColumnElement[Any]:
    """None where the moment never came, 0 for a completion that joined after it."""
    return case((moment > _c.created_ms, moment - _c.created_ms), (moment.is_not(None), 0), else_=null())


_SETTLE = (
    update(completions)
    .where(_c.status == State.QUEUED.value, _g.id == _c.generation_id)
    .values(status=_g.state, ended_ms=_later(_g.ended_ms, _c.created_ms))
    .returning(_c.id, _c.cache)
)
#: One that leaves before its generation ends has an end of its own.
_LEAVE = (
    update(completions)
    .where(_c.id == bindparam("left_id"), _c.status == State.QUEUED.value)
    .values(status=bindparam("left_status"), tail=bindparam("left_tail"), ended_ms=bindparam("left_ms"))
)
_LEFT_ANY = select(_c.id).where(
    _c.tail.is_not(None),
    exists().where(_g.id == _c.generation_id),
    ~exists().where(_u.completion_id == _c.id),
)
_LEFT = _LEFT_ANY.where(among(_c.generation_id))
_LEFT_IDS = _LEFT_ANY.where(among(_c.id))
_SETTLE_IDS = _SETTLE.where(among(_c.id))
_SETTLE_GENERATIONS = _SETTLE.where(among(_c.generation_id))

#: What all attempts of a generation cost; unknown where one's cost is.
_a2 = attempts.alias().c
_COST = (
    select(case((func.count() == func.count(_a2.cost_nano), func.coalesce(func.sum(_a2.cost_nano), 0))))
    .where(_a2.generation_id == _g.id)
    .scalar_subquery()
)
_PAYS = _c.id == _c.generation_id

#: The usage records of completions that ``_SETTLE`` returned. Tokens are those of the answer; only the completion that
#: created the generation pays, for every attempt, and nobody for what was never sent. The others save what the answer
#: cost.
_CHARGED: dict[str, ColumnElement[Any]] = {
    "completion_id": _c.id,
    "tenant": _c.tenant,
    "key_id": _c.key_id,
    "end_user": _c.end_user,
    "model": _c.model,
    "provider": _g.provider,
    "resolved_model": _g.model,
    "prompt_tokens": func.coalesce(_a.prompt_tokens, 0),
    "completion_tokens": func.coalesce(_a.completion_tokens, 0),
    "reasoning_tokens": func.coalesce(_a.reasoning_tokens, 0),
    "cached_tokens": func.coalesce(_a.cached_tokens, 0),
    "estimated": func.coalesce(_a.estimated, false()),
    "cost_nano": case((_PAYS, _COST), else_=0),
    "saved_nano": case((or_(_PAYS, _g.attempt == 0), 0), else_=_a.cost_nano),
    "cache": _c.cache,
    "batch_id": _c.batch_id,
    "status": _c.status,
    "attempts": _g.attempt,
    "queue_ms": _since_created(_g.leased_ms),
    "first_chunk_ms": _since_created(_g.first_chunk_ms),
    "duration_ms": _since_created(_c.ended_ms),
    "created_ms": _c.created_ms,
}
CHARGE = insert(usage).from_select(
    list(_CHARGED),
    select(*_CHARGED.values())
    .join_from(completions, generations, _g.id == _c.generation_id)
    .outerjoin(attempts, and_(_a.generation_id == _g.id, _a.number == _g.attempt))
    .where(among(_c.id)),
)

_SETTLED = (
    select(
        _c.id,
        _c.generation_id,
        and_(_KEEPS, _g.next > _g.base, ~exists().where(_r.generation_id == _g.id)).label("lacks"),
    )
    .join_from(completions, generations, _g.id == _c.generation_id)
    .where(_c.status != State.QUEUED.value)
)
_SETTLED_IDS = _SETTLED.where(among(_c.id))
_SETTLED_GENERATIONS = _SETTLED.where(among(_c.generation_id))


#: The state is written out: for a parameter no planner takes the index that has these alone.
_UNSETTLED = select(_c.id, _c.generation_id, _c.provider, _c.resolved_model, _c.created_ms).where(
    _c.status == literal_column(f"'{State.QUEUED.value}'")
)


def _metadata_has(engine: Engine, pairs: Mapping[str, str]) -> list[ColumnElement[bool]]:
    pairs = storable_pairs(pairs) or {}
    if not is_sqlite(engine):
        return [type_coerce(_c.metadata, JSONB).contains(pairs)]
    # json_each and not a path: a path can't quote every key.
    each = func.json_each(_c.metadata).table_valued("key", "value")
    return [
        select(1).select_from(each).where(each.c.key == key, each.c.value == value).exists()
        for key, value in pairs.items()
    ]
