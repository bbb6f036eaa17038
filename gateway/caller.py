"""Who calls: the key of ``Authorization: Bearer``, the end user of ``X-On-Behalf-Of``, or a stream token."""

from __future__ import annotations

import asyncio
import time

from consumers.lookup import Completion
from gateway.http import Call
from producers.submit import Caller
from schemas.errors import NotFound, Unauthenticated
from schemas.headers import name
from schemas.ids import is_completion_id
from stores.apikeys import ApiKey, check_stream_token


async def authenticate(call: Call) -> ApiKey:
    """Raises Unauthenticated."""
    header = call.header("authorization")
    if header is None:
        raise Unauthenticated("No API key. Send it as 'Authorization: Bearer <key>'.", code="missing_api_key")
    scheme, _, plaintext = header.partition(" ")
    if scheme.lower() != "bearer" or not plaintext.strip():
        raise Unauthenticated("The Authorization header must be 'Bearer <key>'.")
    plaintext = plaintext.strip()
    keys = call.context.keys
    known = keys.verify_cached(plaintext)
    return known if known is not None else await asyncio.to_thread(keys.verify, plaintext)


async def identify(call: Call) -> Caller:
    """Raises Unauthenticated, and InvalidRequest for an X-On-Behalf-Of that can't be a name."""
    return caller_with(call, await authenticate(call))


def caller_with(call: Call, key: ApiKey) -> Caller:
    """Who calls with a key that is right. Raises InvalidRequest."""
    return Caller(key.tenant, key.id, named(call, "x-on-behalf-of"))


def named(call: Call, header: str) -> str | None:
    """A header that holds somebody's own name for something. Raises InvalidRequest."""
    value = call.header(header)
    if value is None:
        return None
    try:
        value = value.encode("latin-1").decode()  # UTF-8 on the wire, whatever HTTP's own charset is
    except UnicodeError:
        pass
    return name(value, header=header)


async def owned(call: Call, caller: Caller, completion_id: str) -> Completion:
    """The caller's completion of that id. Raises NotFound also for somebody else's."""
    found = await call.context.finder.find(completion_id) if is_completion_id(completion_id) else None
    if found is None or found.tenant != caller.tenant or caller.end_user not in (None, found.end_user):
        raise NotFound(
            f"There is no completion '{completion_id[:80]}'.", param="id", code="completion_not_found"
        )
    return found


async def reader_of(call: Call, completion_id: str) -> Completion:
    """The completion for one who may read its stream: by key, or by the ``token`` of the query."""
    token = call.request.query_params.get("token")
    if token is None:
        return await owned(call, await identify(call), completion_id)
    key = await asyncio.to_thread(check_stream_token, call.context.keys, token, completion_id, time.time())
    return await owned(call, Caller(key.tenant, key.id, key.end_user), completion_id)
