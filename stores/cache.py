"""The cache in SQL: which results may answer equal requests.

Entries are made by the ledger (``Books.apply``); an entry goes with its text. All of it blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)

from schemas.settings import Settings
from schemas.tables import cache, completions, generations, results, usage
from stores.flights import Result
from stores.rows import CacheRow, cache_row, read_log, storable
from stores.sql import among, insert_new, reading, writing

_c, _k, _g, _r, _u = completions.c, cache.c, generations.c, results.c, usage.c


#: Is told of fingerprints whose results are gone.
Uncache = Callable[[Sequence[str]], None]


class CacheLimits(msgspec.Struct, frozen=True):
    """How long results answer others, and how many bytes of them a tenant may have; how long a hot copy stays, and how
    large it may be."""

    seconds: float
    bytes: int
    hot_ms: int
    hot_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> CacheLimits:
        return cls(
            settings.cache_seconds,
            settings.cache_bytes,
            int(settings.cache_hot_seconds * 1000),
            settings.cache_hot_bytes,
        )


DEFAULT_LIMITS = CacheLimits.of(Settings.model_construct())


class Statistics(msgspec.Struct, frozen=True):
    """A tenant's cache: what is in it now, and how completions fared by the usage records there are."""

    entries: int
    bytes: int
    oldest_ms: int | None
    newest_ms: int | None
    outcomes: dict[str, int]
    saved_tokens: int


def epoch_ms() -> int:
    return time.time_ns() // 1_000_000


class Cache:
    def __init__(self, engine: Engine, *, clock: Callable[[], int] = epoch_ms) -> None:
        self._engine = engine
        self._clock = clock

    def find(
        self, tenant: str, fingerprint: str, *, max_age_ms: int | None = None
    ) -> tuple[Result, int] | None:
        """The result for a request, with its age in milliseconds."""
        now = self._clock()
        wanted = [_k.tenant == tenant, _k.fingerprint == fingerprint, _k.expires_ms > now]
        if max_age_ms is not None:
            wanted.append(_k.created_ms >= now - max_age_ms)
        columns = (_k.generation_id, _k.created_ms, _g.provider, _g.model, *_LOG)
        statement = (
            select(*columns)
            .join_from(cache, generations, _g.id == _k.generation_id)
            .join(results, _r.generation_id == _k.generation_id)
            .where(*wanted)
        )
        with reading(self._engine) as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            return None
        stored = read_log(row.head, row.items_, row.compressed, row.base, row.next)
        result = Result(
            row.generation_id, row.provider, row.model, row.created_ms, stored.base, stored.next, stored
        )
        return result, max(0, now - result.ended_ms)

    def find_all(self, tenant: str, fingerprints: Sequence[str]) -> dict[str, tuple[Result, int]]:
        """The results for some requests, without their text, each with its age in milliseconds."""
        with reading(self._engine) as connection:
            return find_all(connection, tenant, fingerprints, self._clock())

    def ages(self, tenant: str, fingerprints: Sequence[str]) -> dict[str, int]:
        """Those that have a result, with its age in milliseconds."""
        now = self._clock()
        statement = select(_k.fingerprint, _k.created_ms).where(
            _k.tenant == tenant, among(_k.fingerprint), _k.expires_ms > now
        )
        with reading(self._engine) as connection:
            rows = connection.execute(statement, {"ids": [*fingerprints]})
            return {row.fingerprint: max(0, now - row.created_ms) for row in rows}

    def statistics(self, tenant: str) -> Statistics:
        entries = select(
            func.count(), func.sum(_k.bytes), func.min(_k.created_ms), func.max(_k.created_ms)
        ).where(_k.tenant == tenant, _k.expires_ms > self._clock())
        outcomes = (
            select(_u.cache, func.count(), func.sum(_u.prompt_tokens + _u.completion_tokens))
            .where(_u.tenant == tenant)
            .group_by(_u.cache)
        )
        with reading(self._engine) as connection:
            count, size, oldest, newest = connection.execute(entries).one()
            fared = connection.execute(outcomes).all()
        return Statistics(
            entries=count,
            bytes=int(size or 0),
            oldest_ms=oldest,
            newest_ms=newest,
            outcomes={name: number for name, number, _ in fared},
            saved_tokens=sum(int(tokens) for name, _, tokens in fared if name in ("hit", "join")),
        )

    def purge(
        self, tenant: str, *, model: str | None = None, older_than_ms: int | None = None
    ) -> tuple[list[str], int]:
        """Drop a tenant's entries; their fingerprints, and the bytes of their results, which stay with their
        completions. ``model``: as asked, or resolved.
        """
        which: list[ColumnElement[bool]] = [_k.tenant == tenant]
        if model is not None:
            which.append(or_(_k.model == storable(model), _k.resolved_model == storable(model)))
        if older_than_ms is not None:
            which.append(_k.created_ms <= self._clock() - older_than_ms)
        with writing(self._engine) as connection:
            gone = connection.execute(delete(cache).where(*which).returning(_k.fingerprint, _k.bytes)).all()
        return [row.fingerprint for row in gone], sum(row.bytes for row in gone)

    def trim(self, most: int) -> list[str]:
        """Drop what has expired, and each tenant's oldest entries beyond so many bytes; their fingerprints."""
        expired = delete(cache).where(_k.expires_ms <= self._clock()).returning(_k.fingerprint)
        with writing(self._engine) as connection:
            gone: list[str] = [*connection.scalars(expired)]
        large = select(_k.tenant).group_by(_k.tenant).having(func.sum(_k.bytes) > most)
        with reading(self._engine) as connection:
            tenants = [*connection.scalars(large)]
        for tenant in tenants:
            gone += self._shrink(tenant, most)
        return gone

    def _shrink(self, tenant: str, most: int) -> list[str]:
        newer = func.sum(_k.bytes).over(order_by=(_k.created_ms.desc(), _k.fingerprint.desc())).label("newer")
        ranked = select(_k.fingerprint, newer).where(_k.tenant == tenant).subquery()
        beyond = select(ranked.c.fingerprint).where(ranked.c.newer > most)
        with writing(self._engine) as connection:
            shrinking = delete(cache).where(_k.tenant == tenant, _k.fingerprint.in_(beyond))
            return [*connection.scalars(shrinking.returning(_k.fingerprint))]

    def of_generation(self, generation: str) -> list[str]:
        """The fingerprints under which a generation's result is kept."""
        with reading(self._engine) as connection:
            return [*connection.scalars(select(_k.fingerprint).where(_k.generation_id == generation))]


_LOG: tuple[ColumnElement[Any], ...] = (
    _r.head,
    _r["items"].label("items_"),
    _r.compressed,
    _r.base,
    _r.next,
)


# Within a transaction


def find_all(
    connection: Connection, tenant: str, fingerprints: Sequence[str], now_ms: int
) -> dict[str, tuple[Result, int]]:
    """As ``Cache.find_all``."""
    columns = (_k.fingerprint, _k.generation_id, _g.provider, _g.model, _k.created_ms, _g.base, _g.next)
    statement = (
        select(*columns)
        .join_from(cache, generations, _g.id == _k.generation_id)
        .where(_k.tenant == tenant, among(_k.fingerprint), _k.expires_ms > now_ms)
    )
    found = connection.execute(statement, {"ids": [*fingerprints]})
    return {row[0]: (Result(*row[1:]), max(0, now_ms - row.created_ms)) for row in found}


# Within a transaction of the books


def keep_results(connection: Connection, cached: Sequence[CacheRow]) -> None:
    """Results that are kept may answer others; a newer one takes an older one's place."""
    newest: dict[tuple[str, str], CacheRow] = {}
    for row in sorted(cached, key=lambda row: row.ended_ms):
        newest[row.record.tenant, row.record.fingerprint] = row
    ids = [row.record.generation for row in newest.values()]
    sizes: dict[str, int] = {row[0]: row[1] for row in connection.execute(_SIZES, {"ids": ids})}
    rows = [
        cache_row(row, sizes[row.record.generation])
        for _, row in sorted(newest.items(), key=itemgetter(0))
        if row.record.generation in sizes
    ]
    if rows:
        connection.execute(
            _OUTDATE, [{"t": r["tenant"], "f": r["fingerprint"], "at": r["created_ms"]} for r in rows]
        )
        insert_new(connection, cache, rows)


def fingerprints_of(connection: Connection, generations: Sequence[str]) -> list[str]:
    """The fingerprints under which the results of generations are kept."""
    return [*connection.scalars(_FINGERPRINTS, {"ids": generations})]


def count_hits(connection: Connection, completions: Sequence[str]) -> None:
    """For completions that were answered by results of the cache."""
    connection.execute(_COUNT_HITS, {"ids": completions})


_FINGERPRINTS = select(_k.fingerprint).where(among(_k.generation_id))
_SIZES = select(_r.generation_id, func.length(_r.head) + func.length(_r["items"])).where(
    among(_r.generation_id)
)
_OUTDATE = delete(cache).where(
    _k.tenant == bindparam("t"), _k.fingerprint == bindparam("f"), _k.created_ms < bindparam("at")
)
_hits = (
    select(_c.generation_id, func.count().label("hits"))
    .where(among(_c.id))
    .group_by(_c.generation_id)
    .subquery()
)
_COUNT_HITS = (
    update(cache).where(_k.generation_id == _hits.c.generation_id).values(hits=_k.hits + _hits.c.hits)
)
