"""Sums over the usage records, by time and by whatever they are grouped by.

SQL adds up, on an index that has all that is asked for (``ix_usage_report``): of a million records of a month in about
half a second, so there are no totals to keep beside the records, which could differ from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, Select, func, literal_column, select

from schemas.tables import usage
from stores.rows import storable
from stores.sql import among, reading

_u = usage.c

#: What records can be grouped by.
GROUPS: dict[str, ColumnElement[Any]] = {
    "model": _u.model,
    "api_key_id": _u.key_id,
    "external_user_id": _u.end_user,
    "org_id": _u.tenant,
    "batch": _u.batch_id.is_not(None),
}
#: What is summed up. Of money, what is known; None where none of it is. ``unpriced``: records of unknown cost.
SUMS: dict[str, ColumnElement[Any]] = {
    "requests": func.count(),
    "input_tokens": func.sum(_u.prompt_tokens),
    "output_tokens": func.sum(_u.completion_tokens),
    "cached_tokens": func.sum(_u.cached_tokens),
    "cost_nano": func.sum(_u.cost_nano),
    "unpriced": func.count() - func.count(_u.cost_nano),
    "hits": func.count().filter(_u.cache == "hit"),
    "joins": func.count().filter(_u.cache == "join"),
    "saved_nano": func.sum(_u.saved_nano),
}


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Records from ``start_ms`` on and before ``end_ms``. None filters nothing.

    ``group_by`` and ``sums`` are names of GROUPS and SUMS; with ``width_ms`` the sums are by bucket, too. ``batch``:
    those of batches, or those of none.
    """

    start_ms: int
    end_ms: int
    sums: Sequence[str]
    group_by: Sequence[str] = ()
    width_ms: int | None = None
    tenants: Sequence[str] | None = None
    models: Sequence[str] | None = None
    key_ids: Sequence[str] | None = None
    end_users: Sequence[str] | None = None
    batch: bool | None = None


class UsageSum(msgspec.Struct, frozen=True):
    """The sums of one group, of one bucket where there are buckets: the one that begins at ``bucket_ms``."""

    bucket_ms: int | None
    group: dict[str, Any]
    sums: dict[str, int | None]


class UsageReports:
    """Blocks; async callers run it in a thread. Raises SQLAlchemy's errors."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, query: UsageQuery) -> list[UsageSum]:
        """By bucket and group, in their order. Of what has no records there is no sum."""
        with reading(self._engine) as connection:
            tenants = [*_tenants(connection)] if query.tenants is None else [*map(storable, query.tenants)]
            rows = connection.execute(_statement(query), {"ids": tenants}).all()
        groups, sums = len(query.group_by), len(query.sums)
        found = [
            UsageSum(
                None if query.width_ms is None else int(row[0]) * query.width_ms,
                dict(zip(query.group_by, row[1 : 1 + groups], strict=True)),
                # PostgreSQL's sums are decimals.
                dict(zip(query.sums, (_integer(n) for n in row[-1 - sums : -1]), strict=True)),
            )
            for row in rows
            if row[-1]
        ]
        # Not in SQL: PostgreSQL, which can't guess how few buckets there are, would sort all the records for it.
        return sorted(found, key=_place)


def _statement(query: UsageQuery) -> Select[Any]:
    """Columns: bucket, groups, sums, number of records."""
    groups: list[ColumnElement[Any]] = [GROUPS[name].label(f"by_{name}") for name in query.group_by]
    sums: list[ColumnElement[Any]] = [SUMS[name].label(f"sum_{name}") for name in query.sums]
    bucket = _bucket(query.width_ms)
    by = groups if query.width_ms is None else [bucket, *groups]
    conditions: list[ColumnElement[bool]] = [
        among(_u.tenant),
        _u.created_ms >= query.start_ms,
        _u.created_ms < query.end_ms,
    ]
    filters = ((_u.model, query.models), (_u.key_id, query.key_ids), (_u.end_user, query.end_users))
    for column, values in filters:
        if values is not None:
            conditions.append(column.in_([*map(storable, values)]))
    if query.batch is not None:
        conditions.append(_u.batch_id.is_not(None) if query.batch else _u.batch_id.is_(None))
    statement: Select[Any] = select(bucket, *groups, *sums, func.count()).where(*conditions)
    return statement.group_by(*by)


def _bucket(width_ms: int | None) -> ColumnElement[Any]:
    # No parameter: PostgreSQL takes two for different ones, though both say the same.
    number: ColumnElement[Any] = literal_column("NULL" if width_ms is None else str(width_ms))
    return (number if width_ms is None else _u.created_ms // number).label("bucket")


def _tenants(connection: Connection) -> Sequence[str]:
    """All that have records: one look into the index each."""
    first = select(func.min(_u.tenant).label("tenant")).cte("tenants", recursive=True)
    following = select(func.min(_u.tenant)).where(_u.tenant > first.c.tenant).scalar_subquery()
    every = first.union_all(select(following).where(first.c.tenant.is_not(None)))
    return connection.scalars(select(every.c.tenant).where(every.c.tenant.is_not(None))).all()


def _place(found: UsageSum) -> tuple[Any, ...]:
    return found.bucket_ms, *((value is None, str(value)) for value in found.group.values())


def _integer(number: Any) -> int | None:
    return None if number is None else int(number)
