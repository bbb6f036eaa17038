"""Completions that were accepted: reading, listing, following, cancelling, deleting."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, cast

import msgspec

from consumers.follow import renderer_for
from consumers.lookup import Completion, from_books
from consumers.present import status_body, whole_body
from gateway import leaving
from gateway.caller import authenticate, identify, owned, reader_of
from gateway.completions import completion_headers
from gateway.http import Call, Reply
from gateway.streaming import EventStream, SeedFraming
from producers.submit import Caller
from schemas.errors import Conflict, InvalidRequest, NotFound, Unavailable
from schemas.headers import integer
from schemas.ids import is_completion_id
from schemas.request import validate_metadata
from schemas.states import PUBLIC_STATUSES, State
from stores.apikeys import make_stream_token

#: How long a stream token lasts, in seconds.
TOKEN_LIFE = 15 * 60
#: How long a change waits for the ledger to bring a completion into SQL, in seconds.
BOOKS_WAIT = 5.0
#: How long a cancel waits for the worker to have stopped, in seconds.
CANCEL_WAIT = 2.0
#: Completions on a page: most, and where ``limit`` is not sent.
PAGE_MOST, PAGE_DEFAULT = 100, 20

_METADATA_FILTER = re.compile(r"metadata\[(.+)\]", re.DOTALL)


async def retrieve(call: Call) -> Reply:
    """GET …/{id}: the answer, or the completion's status while there is none."""
    completion = await owned(call, await identify(call), call.path("id"))
    return Reply(await present(call, completion), headers=completion_headers(completion))


async def present(call: Call, completion: Completion) -> dict[str, Any]:
    """A completion as a ``chat.completion``; of a failed or cancelled one, what there is of the answer."""
    if not completion.ended:
        return status_body(completion)
    follow = await call.context.followers.open(completion)
    fold, _ = await follow.fold(renderer_for(completion))
    answer = fold.completion() if follow.last >= 0 else {}
    usage = completion.usage
    if usage is None and "usage" not in answer:
        row = await asyncio.to_thread(call.context.books.completion, completion.id)
        usage = row.usage if row is not None else None
    return whole_body(completion, answer, usage)


async def listing(call: Call) -> Reply:
    """GET …: the tenant's stored completions."""
    caller = await identify(call)
    query = call.request.query_params
    metadata: dict[str, str] = {}
    known = {"after", "limit", "order", "model", "status"}
    for name, value in query.multi_items():
        match = _METADATA_FILTER.fullmatch(name)
        if match:
            metadata[match[1]] = value
        elif name not in known:
            raise InvalidRequest(f"There is no query parameter '{name[:40]}' here.", param=name[:40])
    limit = integer(query.get("limit", str(PAGE_DEFAULT)), name="limit", least=1)
    if limit > PAGE_MOST:
        raise InvalidRequest(f"'limit' must be at most {PAGE_MOST}.", param="limit")
    order = query.get("order", "asc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be 'asc' or 'desc'.", param="order")
    status = query.get("status")
    if status is not None and status not in PUBLIC_STATUSES:
        raise InvalidRequest(f"'status' must be one of {', '.join(PUBLIC_STATUSES)}.", param="status")
    after = query.get("after")
    if after is not None and not is_completion_id(after):
        raise InvalidRequest("'after' must be the id of a completion.", param="after")
    found, more = await _page(call, caller, after, limit, order, query.get("model"), metadata, status)
    data = list(await asyncio.gather(*(_item(call, c) for c in found)))
    return Reply(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": more,
        }
    )


async def _page(
    call: Call,
    caller: Caller,
    after: str | None,
    limit: int,
    order: str,
    model: str | None,
    metadata: dict[str, str],
    status: str | None,
) -> tuple[list[Completion], bool]:
    """Rows of the books; of those that they don't know to have ended, Redis has the state."""
    statuses = None
    if status is not None:
        # The books call everything queued until it is settled; what it is meanwhile, Redis knows.
        statuses = (
            [State.QUEUED.value] if status in ("queued", "in_progress") else [status, State.QUEUED.value]
        )
    found: list[Completion] = []
    while True:
        rows = await asyncio.to_thread(
            call.context.books.completions,
            caller.tenant,
            end_user=caller.end_user,
            after=after,
            limit=limit + 1,
            order=order,
            model=model,
            metadata=metadata or None,
            statuses=statuses,
        )
        for completion in await asyncio.gather(*(_current(call, from_books(row)) for row in rows)):
            if status in (None, completion.state.public):
                found.append(completion)  # noqa: PERF401
        if len(found) > limit:
            return found[:limit], True
        if len(rows) <= limit:
            return found, False
        after = rows[-1].id


async def _current(call: Call, completion: Completion) -> Completion:
    if completion.ended:
        return completion
    return await call.context.finder.find(completion.id) or completion


async def _item(call: Call, completion: Completion) -> dict[str, Any]:
    try:
        return await present(call, completion)
    except NotFound:
        return status_body(completion)


async def update(call: Call) -> Reply:
    """POST …/{id}: replace the metadata."""
    completion = await owned(call, await identify(call), call.path("id"))
    try:
        body: Any = msgspec.json.decode(await call.body())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict) or "metadata" not in body:
        raise InvalidRequest('Send the new metadata as {"metadata": {…}}.', param="metadata")
    extra = [name for name in cast("dict[str, Any]", body) if name != "metadata"]
    if extra:
        raise InvalidRequest(f"Only 'metadata' can be changed, not '{extra[0][:40]}'.", param=extra[0][:40])
    metadata = validate_metadata(cast("dict[str, Any]", body)["metadata"])
    await _in_books(call, completion, ended=False)
    if not await asyncio.to_thread(call.context.books.set_metadata, completion.id, metadata):
        raise NotFound(f"There is no completion '{completion.id}'.", param="id")
    await call.context.scripts.annotate(completion.id, msgspec.json.encode(metadata))
    changed = msgspec.structs.replace(completion, metadata=metadata)
    return Reply(await present(call, changed), headers=completion_headers(changed))


async def delete(call: Call) -> Reply:
    """DELETE …/{id}: the text goes, the usage record stays."""
    completion = await owned(call, await identify(call), call.path("id"))
    if not completion.ended:
        raise Conflict(
            f"'{completion.id}' is still {completion.state.public}. Cancel it first: POST …/{completion.id}/cancel.",
            code="completion_running",
        )
    await _in_books(call, completion, ended=True)
    # What the cache has of it goes along where no other completion points to it.
    fingerprints = await asyncio.to_thread(call.context.cache.of_generation, completion.generation)
    await asyncio.to_thread(call.context.books.delete, completion.id)
    still = await asyncio.to_thread(call.context.cache.of_generation, completion.generation)
    await call.context.flights.cool(*{completion.fingerprint, *fingerprints}.difference(still))
    await call.context.flights.drop(completion.generation, completion.id)
    return Reply({"id": completion.id, "object": "chat.completion.deleted", "deleted": True})


async def _in_books(call: Call, completion: Completion, *, ended: bool) -> None:
    """Wait until SQL has the completion (and its end). Raises Unavailable where the ledger is far behind."""
    until = time.monotonic() + BOOKS_WAIT
    while True:
        row = await asyncio.to_thread(call.context.books.completion, completion.id)
        if row is not None and (row.status.ended or not ended):
            return
        if row is None and completion.record is None:
            raise NotFound(f"There is no completion '{completion.id}'.", param="id")
        if time.monotonic() >= until:
            raise Unavailable("The books are behind; this change was not made. Try again.", retry_after=5)
        await asyncio.sleep(0.05)


async def cancel(call: Call) -> Reply:
    """POST …/{id}/cancel: a queued one never starts; of a running one, what was said so far is kept."""
    caller = await identify(call)
    completion = await owned(call, caller, call.path("id"))
    if completion.live is not None and not completion.ended:
        await leaving.cancel(call, completion)
        until = time.monotonic() + CANCEL_WAIT
        while not completion.ended and time.monotonic() < until:
            await asyncio.sleep(0.02)
            completion = await owned(call, caller, completion.id)
    return Reply(await present(call, completion), headers=completion_headers(completion))


async def token(call: Call) -> Reply:
    """POST …/{id}/token: for an EventSource, which can't send a key."""
    key = await authenticate(call)
    caller = await identify(call)
    completion = await owned(call, caller, call.path("id"))
    expires_at = int(time.time()) + TOKEN_LIFE
    made = make_stream_token(key, completion.id, expires_at, end_user=caller.end_user)
    path: str = call.request.scope["path"].removesuffix("/token")
    return Reply(
        {
            "object": "chat.completion.stream_token",
            "token": made,
            "expires_at": expires_at,
            "url": f"{path}/stream?token={made}",
        }
    )


def _place(call: Call) -> int:
    """The index after which to read. A header says where the reader is now, the query where it began."""
    for name in ("last-event-id", "x-last-chunk-index"):
        value = call.header(name)
        if value is not None:
            return integer(value, name=name, least=-1)
    return integer(call.request.query_params.get("after", "-1"), name="after", least=-1)


async def stream(call: Call) -> Any:
    """GET …/{id}/stream?after=N: the seed's framing from any index. Past the end of a finished log: 204.

    Whoever reads what exists leaves it as it is when he goes, but for the header ``x-on-disconnect: cancel``.
    """
    cancelling = leaving.cancels(call)
    if cancelling and "token" in call.request.query_params:
        raise InvalidRequest("A stream token is for reading: it can't cancel.", param="x-on-disconnect")
    completion = await reader_of(call, call.path("id"))
    after = _place(call)
    follow = await call.context.followers.open(completion, after)
    headers = completion_headers(follow.completion)
    if follow.completion.ended and after >= follow.completion.next:
        follow.close()
        return Reply(status=204, headers=headers)
    return EventStream(follow, SeedFraming(), headers, cancels=cancelling)
