"""The tenant's cache: what is in it, and dropping it."""

from __future__ import annotations

import asyncio

from gateway.caller import identify
from gateway.http import Call, Reply
from producers.submit import Caller
from schemas.errors import InvalidRequest
from schemas.headers import integer


async def _tenant(call: Call) -> Caller:
    caller = await identify(call)
    if caller.end_user is not None:
        raise InvalidRequest(
            "The cache is the tenant's: leave X-On-Behalf-Of out.",
            param="X-On-Behalf-Of",
            code="invalid_header",
        )
    return caller


async def statistics(call: Call) -> Reply:
    """GET …/cache: what is there, and how completions fared, by the usage records that are kept."""
    caller = await _tenant(call)
    found = await asyncio.to_thread(call.context.cache.statistics, caller.tenant)
    hits, misses = found.outcomes.get("hit", 0), found.outcomes.get("miss", 0)
    joins, bypasses = found.outcomes.get("join", 0), found.outcomes.get("bypass", 0)
    eligible = hits + joins + misses
    return Reply(
        {
            "object": "cache",
            "entries": found.entries,
            "bytes": found.bytes,
            "oldest": None if found.oldest_ms is None else found.oldest_ms // 1000,
            "newest": None if found.newest_ms is None else found.newest_ms // 1000,
            "hits": hits,
            "joins": joins,
            "misses": misses,
            "bypasses": bypasses,
            "hit_rate": (hits + joins) / eligible if eligible else None,
            "saved_tokens": found.saved_tokens,
        }
    )


async def purge(call: Call) -> Reply:
    """DELETE …/cache: results answer nobody any more; with the completions that they belong to they stay."""
    caller = await _tenant(call)
    query = call.request.query_params
    for name in query:
        if name not in ("model", "older_than"):
            raise InvalidRequest(f"There is no query parameter '{name[:40]}' here.", param=name[:40])
    older_than = query.get("older_than")
    seconds = None if older_than is None else integer(older_than, name="older_than", least=0)
    fingerprints, size = await asyncio.to_thread(
        call.context.cache.purge,
        caller.tenant,
        model=query.get("model"),
        older_than_ms=None if seconds is None else seconds * 1000,
    )
    await call.context.flights.cool(*fingerprints)
    return Reply({"object": "cache.purged", "entries": len(fingerprints), "bytes": size})
