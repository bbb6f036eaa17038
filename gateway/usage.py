"""What was used and what it cost: OpenAI's ``organization/usage/completions`` and ``organization/costs``, the seed's
``usage/costs``, and a summary that also has what the cache saved.

A key sees its tenant's records, an admin key everybody's. Times are seconds since the epoch, buckets are UTC.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from gateway.caller import authenticate, named
from gateway.http import Call, Reply
from schemas.buckets import COSTS_WIDTH, WIDTHS, Width, decode_page, encode_page, page_of
from schemas.errors import Forbidden, InvalidRequest
from schemas.headers import integer
from schemas.prices import NANO
from stores.apikeys import ApiKey
from stores.usage import GROUPS, UsageQuery, UsageSum

CURRENCY = "usd"

_TIMES = ("start_time", "end_time")
_PAGING = ("bucket_width", "limit", "page")
_FILTERS = ("models", "user_ids", "external_user_ids", "api_key_ids", "org_ids")
_LISTS = frozenset({*_FILTERS, "group_by"})
#: Fields that results have and no record: keys have no owner, and there are neither projects nor teams.
_NOBODYS = frozenset({"user_id", "project_id", "team_id"})

_COMPLETIONS_BY = ("model", "user_id", "api_key_id", "external_user_id", "org_id", "batch")
_COSTS_BY = ("model", "api_key_id", "team_id", "external_user_id", "org_id")
_ORGANIZATION_BY = ("line_item", "project_id", "user_id", "api_key_id", "external_user_id", "org_id")
_SUMMARY_BY = ("model", "api_key_id", "external_user_id", "org_id", "day")

_TOKENS = ("input_tokens", "output_tokens", "cached_tokens")
_MONEY = ("requests", "cost_nano", "unpriced")
_SUMMARY = (*_MONEY, *_TOKENS, "hits", "joins", "saved_nano")


async def completions(call: Call) -> Reply:
    """GET …/usage/completions: tokens and requests by bucket."""
    query = _Query(
        call, await authenticate(call), (*_TIMES, *_PAGING, *_FILTERS, "all_orgs", "batch", "group_by")
    )
    width = WIDTHS[query.one_of("bucket_width", WIDTHS, "1d")]
    by = query.group_by((*_COMPLETIONS_BY, "project_id"))

    def result(found: UsageSum) -> dict[str, Any]:
        return {
            "object": "organization.usage.completions.result",
            "input_tokens": found.sums["input_tokens"],
            "output_tokens": found.sums["output_tokens"],
            "input_cached_tokens": found.sums["cached_tokens"],
            "num_model_requests": found.sums["requests"],
            **_fields(found, (*_COMPLETIONS_BY, "project_id")),
        }

    return await _buckets(call, query, width, by, ("requests", *_TOKENS), result)


async def organization_costs(call: Call) -> Reply:
    """GET …/organization/costs: money by day. A line item is a model."""
    query = _Query(call, await authenticate(call), (*_TIMES, *_PAGING, *_FILTERS, "all_orgs", "group_by"))
    query.one_of("bucket_width", ("1d",), "1d")
    by = query.group_by(_ORGANIZATION_BY)

    def result(found: UsageSum) -> dict[str, Any]:
        return {
            "object": "organization.costs.result",
            "amount": {"value": _units(found.sums["cost_nano"]), "currency": CURRENCY},
            "unpriced_requests": found.sums["unpriced"],
            **_fields(found, _ORGANIZATION_BY),
        }

    return await _buckets(call, query, COSTS_WIDTH, by, _MONEY, result)


async def costs(call: Call) -> Reply:
    """GET …/usage/costs: money in a range, by whatever it is grouped by."""
    query = _Query(call, await authenticate(call), (*_TIMES, *_FILTERS, "all_orgs", "group_by"))
    by = query.group_by(_COSTS_BY)
    scope = query.scope()
    start, end = query.times(None)
    rows = await _read(call, scope, start, end, by, _MONEY)
    total, unpriced = _total(row.sums for row in rows)
    return Reply(
        {
            "object": "usage.costs",
            "currency": CURRENCY,
            "start_time": start,
            "end_time": end,
            "group_by": by,
            "data": [
                {
                    **_fields(row, _COSTS_BY),
                    "cost": _units(row.sums["cost_nano"]),
                    "cost_nano": _text(row.sums["cost_nano"]),
                    "unpriced_requests": row.sums["unpriced"],
                }
                for row in rows
            ],
            "total_cost": _units(total),
            "total_cost_nano": _text(total),
            "unpriced_requests": unpriced,
        }
    )


async def summary(call: Call) -> Reply:
    """GET …/usage/summary: tokens, money and what the cache saved, grouped by one thing."""
    query = _Query(call, await authenticate(call), (*_TIMES, *_FILTERS, "all_orgs", "batch", "group_by"))
    by = query.group_by(_SUMMARY_BY)
    scope = query.scope()
    start, end = query.times(None)
    width = WIDTHS["1d"] if "day" in by else None
    rows = await _read(call, scope, start, end, by, _SUMMARY, width)
    return Reply(
        {
            "object": "usage.summary",
            "currency": CURRENCY,
            "start_time": start,
            "end_time": end,
            "group_by": by,
            "data": [
                {
                    **_fields(row, [name for name in _SUMMARY_BY if name != "day"]),
                    "day": None if row.bucket_ms is None else row.bucket_ms // 1000,
                    "num_model_requests": row.sums["requests"],
                    "input_tokens": row.sums["input_tokens"],
                    "output_tokens": row.sums["output_tokens"],
                    "input_cached_tokens": row.sums["cached_tokens"],
                    "cost_nano": _text(row.sums["cost_nano"]),
                    "unpriced_requests": row.sums["unpriced"],
                    "cache_hits": row.sums["hits"],
                    "cache_joins": row.sums["joins"],
                    "saved_nano": _text(row.sums["saved_nano"]),
                }
                for row in rows
            ],
        }
    )


class _Query:
    """The query's parameters. Lists are ``name=a&name=b`` or ``name[]=a``. Raises InvalidRequest."""

    def __init__(self, call: Call, key: ApiKey, known: Collection[str]) -> None:
        self._key = key
        self._user = named(call, "x-on-behalf-of")
        self._values: dict[str, list[str]] = {}
        for name, value in call.request.query_params.multi_items():
            plain = name.removesuffix("[]")
            if plain not in known or (plain != name and plain not in _LISTS):
                raise InvalidRequest(f"There is no query parameter '{name[:40]}' here.", param=name[:40])
            self._values.setdefault(plain, []).append(value)
        for name, values in self._values.items():
            if len(values) > 1 and name not in _LISTS:
                raise InvalidRequest(f"'{name}' must be sent once.", param=name)

    def values(self, name: str) -> list[str] | None:
        return self._values.get(name)

    def one_of(self, name: str, known: Collection[str], default: str) -> str:
        (value,) = self._values.get(name, [default])
        if value not in known:
            raise InvalidRequest(f"'{name}' must be one of {', '.join(known)}.", param=name)
        return value

    def flag(self, name: str) -> bool | None:
        if name not in self._values:
            return None
        return self.one_of(name, ("true", "false"), "") == "true"

    def group_by(self, known: Sequence[str]) -> list[str]:
        given = self._values.get("group_by", [])
        for name in given:
            if name not in known:
                raise InvalidRequest(f"'group_by' must be any of {', '.join(known)}.", param="group_by")
        return [*dict.fromkeys(given)]

    def times(self, width: Width | None) -> tuple[int, int]:
        """The range. Without an end it goes up to now, with buckets to the end of the one that is now."""
        if "start_time" not in self._values:
            raise InvalidRequest(
                "'start_time' is missing: send the beginning, in seconds since the epoch.", param="start_time"
            )
        start = integer(self._values["start_time"][0], name="start_time", least=0)
        if "end_time" in self._values:
            end = integer(self._values["end_time"][0], name="end_time", least=0)
            if end <= start:
                raise InvalidRequest("'end_time' must be after 'start_time'.", param="end_time")
            return start, end
        now = int(time.time())
        return start, max(start, now + 1 if width is None else width.after(now))

    def limit(self, width: Width) -> int:
        limit = integer(self._values.get("limit", [str(width.default)])[0], name="limit", least=1)
        if limit > width.most:
            raise InvalidRequest(
                f"'limit' must be at most {width.most} where a bucket has {width.seconds} seconds.",
                param="limit",
            )
        return limit

    def scope(self) -> UsageQuery:
        """The records that the caller may see and asks for, of all times. Raises Forbidden."""
        key, orgs, every = self._key, self.values("org_ids"), self.flag("all_orgs")
        if not key.admin:
            for param, others in (("all_orgs", every), ("org_ids", set(orgs or ()) - {key.tenant})):
                if others:
                    raise Forbidden(
                        f"This key sees '{key.tenant}' alone. For '{param}' use an admin key.", param=param
                    )
        tenants = orgs
        if orgs is None:
            tenants = [key.tenant] if every is False or not key.admin else None
        users = self.values("external_user_ids")
        if self._user is not None:
            users = [self._user] if users is None or self._user in users else []
        return UsageQuery(
            start_ms=0,
            end_ms=0,
            sums=(),
            tenants=[] if self.values("user_ids") is not None else tenants,
            models=self.values("models"),
            key_ids=self.values("api_key_ids"),
            end_users=users,
            batch=self.flag("batch"),
        )


async def _read(
    call: Call,
    scope: UsageQuery,
    start: int,
    end: int,
    by: Sequence[str],
    sums: Sequence[str],
    width: Width | None = None,
) -> list[UsageSum]:
    columns = ["model" if name == "line_item" else name for name in by]
    query = msgspec.structs.replace(
        scope,
        start_ms=start * 1000,
        end_ms=end * 1000,
        group_by=[name for name in columns if name in GROUPS],
        sums=sums,
        width_ms=None if width is None else width.seconds * 1000,
    )
    return await asyncio.to_thread(call.context.usage.read, query)


async def _buckets(
    call: Call, query: _Query, width: Width, by: Sequence[str], sums: Sequence[str], result: Any
) -> Reply:
    scope = query.scope()
    start, end = query.times(width)
    cursor = query.values("page")
    if cursor is not None:
        start = decode_page(cursor[0], start, end)
    page = page_of(start, end, width, query.limit(width))
    found: dict[int, list[dict[str, Any]]] = {}
    if page:
        for row in await _read(call, scope, page[0][0], page[-1][1], by, sums, width):
            assert row.bucket_ms is not None
            found.setdefault(row.bucket_ms // 1000, []).append(result(row))
    more = bool(page) and page[-1][1] < end
    return Reply(
        {
            "object": "page",
            "data": [
                {
                    "object": "bucket",
                    "start_time": begin,
                    "end_time": stop,
                    "results": found.get(begin - begin % width.seconds, []),
                }
                for begin, stop in page
            ],
            "has_more": more,
            "next_page": encode_page(page[-1][1]) if more else None,
        }
    )


def _fields(found: UsageSum, names: Iterable[str]) -> dict[str, Any]:
    """What it is grouped by, and null for what it is not."""
    values = {**found.group, "line_item": found.group.get("model")}
    return {name: None if name in _NOBODYS else values.get(name) for name in names}


def _total(sums: Iterable[dict[str, int | None]]) -> tuple[int | None, int]:
    """What is known of all costs, None where there are records and none is known; and how many are not."""
    nano: int | None = None
    unpriced = 0
    for row in sums:
        unpriced += row["unpriced"] or 0
        if row["cost_nano"] is not None:
            nano = (nano or 0) + row["cost_nano"]
    return (0 if nano is None and not unpriced else nano), unpriced


def _units(nano: int | None) -> float | None:
    return None if nano is None else nano / NANO


def _text(nano: int | None) -> str | None:
    """A string, for JSON's readers whose numbers are floats."""
    return None if nano is None else str(nano)
