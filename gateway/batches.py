"""Batches: OpenAI's ``/v1/batches``, and beside it retrying and estimating."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from gateway.caller import identify, named
from gateway.http import Call, Reply
from producers.checking import Asking
from producers.estimates import Estimate, Estimator
from producers.submit import Caller
from schemas.batches import BatchStatus
from schemas.batchrequest import BatchRequest, EstimateRequest, RetryRequest, parse_body
from schemas.errors import InvalidRequest, NotFound
from schemas.headers import integer
from schemas.ids import is_batch_id
from schemas.prices import Prices
from schemas.providers import Resolved
from stores.batches import BatchRow, Counts

#: Batches on a page: most, and where ``limit`` is not sent.
PAGE_MOST, PAGE_DEFAULT = 100, 20

#: The field that has the time of each end.
_ENDS = {
    BatchStatus.COMPLETED: "completed_at",
    BatchStatus.FAILED: "failed_at",
    BatchStatus.EXPIRED: "expired_at",
    BatchStatus.CANCELLED: "cancelled_at",
}


def batch_object(row: BatchRow, counts: Counts) -> dict[str, Any]:
    """A batch as OpenAI shows it, and what is ours beside it."""
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "model": row.model,
        "errors": None if row.errors is None else {"object": "list", "data": row.errors},
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": row.status,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        "created_at": row.created_ms // 1000,
        "in_progress_at": _seconds(row.in_progress_ms),
        "expires_at": row.expires_ms // 1000,
        "finalizing_at": _seconds(row.finalizing_ms),
        **{
            field: _seconds(row.ended_ms) if row.status == status else None for status, field in _ENDS.items()
        },
        "cancelling_at": _seconds(row.cancelling_ms),
        "request_counts": {"total": counts.total, "completed": counts.completed, "failed": counts.failed},
        "usage": {
            "input_tokens": counts.prompt_tokens,
            "input_tokens_details": {"cached_tokens": counts.cached_tokens},
            "output_tokens": counts.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
            "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        },
        "metadata": row.metadata,
        "max_concurrency": row.max_concurrency,
        "max_error_rate": row.max_error_rate,
        "retry_of": row.retry_of,
        "cost": None if counts.cost_nano is None else str(counts.cost_nano),
    }


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000


async def create(call: Call) -> Reply:
    """POST …/batches: it is validated by a worker."""
    caller = await identify(call)
    key = named(call, "idempotency-key")
    request = parse_body(BatchRequest, await call.body())
    return await _shown(call, await call.context.batch_maker.create(request, caller, key))


async def retrieve(call: Call) -> Reply:
    """GET …/batches/{id}."""
    return await _shown(call, await owned_batch(call, await identify(call)))


async def listing(call: Call) -> Reply:
    """GET …/batches: newest first."""
    caller = await identify(call)
    query = call.request.query_params
    for name in query:
        if name not in ("after", "limit"):
            raise InvalidRequest(f"There is no query parameter '{name[:40]}' here.", param=name[:40])
    limit = integer(query.get("limit", str(PAGE_DEFAULT)), name="limit", least=1)
    if limit > PAGE_MOST:
        raise InvalidRequest(f"'limit' must be at most {PAGE_MOST}.", param="limit")
    after = query.get("after")
    if after is not None and not is_batch_id(after):
        raise InvalidRequest("'after' must be the id of a batch.", param="after")
    batches = call.context.batches
    found = await asyncio.to_thread(
        batches.list, caller.tenant, end_user=caller.end_user, after=after, limit=limit + 1
    )
    page = found[:limit]
    counts = await asyncio.to_thread(batches.counts_of, page)
    data = [batch_object(row, counted) for row, counted in zip(page, counts, strict=True)]
    return Reply(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(found) > limit,
        }
    )


async def cancel(call: Call) -> Reply:
    """POST …/batches/{id}/cancel: what is under way is cancelled, and what was answered is kept."""
    batch = await owned_batch(call, await identify(call))
    now_ms = await call.context.redis.now_ms(0)
    cancelled = await asyncio.to_thread(call.context.batches.cancel, batch.tenant, batch.id, now_ms)
    if cancelled is None:
        raise _not_found(batch.id)
    return await _shown(call, cancelled)


async def retry(call: Call) -> Reply:
    """POST …/batches/{id}/retry: a new batch of the rows that have no answer."""
    caller = await identify(call)
    batch = await owned_batch(call, caller)
    key = named(call, "idempotency-key")
    request = parse_body(RetryRequest, await call.body())
    return await _shown(call, await call.context.batch_maker.retry(batch, request, caller, key))


async def owned_batch(call: Call, caller: Caller) -> BatchRow:
    """The caller's batch of the path's id. Raises NotFound also for somebody else's."""
    id = call.path("id")
    found = None
    if is_batch_id(id):
        found = await asyncio.to_thread(call.context.batches.get, caller.tenant, id, end_user=caller.end_user)
    if found is None:
        raise _not_found(id)
    return found


def _not_found(id: str) -> NotFound:
    return NotFound(f"There is no batch '{id[:80]}'.", param="id", code="batch_not_found")


async def _shown(call: Call, row: BatchRow) -> Reply:
    return Reply(batch_object(row, await asyncio.to_thread(call.context.batches.counts, row)))


async def estimate(call: Call) -> Reply:
    """POST …/batches/estimate: what a batch of an input file would come to."""
    caller = await identify(call)
    context = call.context
    request = parse_body(EstimateRequest, await call.body())
    file = await context.batch_maker.input_file(caller, request.input_file_id)
    loop = asyncio.get_running_loop()

    def resolve(model: str) -> Resolved:
        return asyncio.run_coroutine_threadsafe(context.catalog.resolve(model), loop).result()

    def run() -> Estimate:
        prices, now_ms = Prices(context.catalog.providers.providers), time.time_ns() // 1_000_000
        estimator = Estimator(
            caller.tenant,
            Asking(caller.tenant, resolve),
            context.cache,
            lambda provider, model, usage: prices.cost_nano(provider, model, usage, now_ms),
            most=context.settings.max_body_bytes,
        )
        with context.storage.read(file.id) as data:
            return estimator.read(data, request.sample)

    try:
        found = await loop.run_in_executor(context.file_threads, run)
    except FileNotFoundError:
        raise NotFound(
            f"There is no file '{file.id}'.", param="input_file_id", code="file_not_found"
        ) from None
    told = msgspec.to_builtins(found)
    nano = told.pop("cost_nano")
    return Reply({"object": "batch.estimate", **told, "cost": None if nano is None else str(nano)})
