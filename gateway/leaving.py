"""Clients that leave before they have their answer: ``x-on-disconnect`` says what becomes of the completion."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect

from consumers.lookup import Completion
from gateway.http import Call
from schemas.errors import InvalidRequest, Unavailable
from schemas.states import OnDisconnect
from stores.apikeys import ApiKey

log = logging.getLogger("tailrace.gateway")

HEADER = "x-on-disconnect"

T = TypeVar("T")


def cancels(call: Call, key: ApiKey | None = None) -> bool:
    """Whether the completion is to be cancelled when this client leaves: by the header, else by the key's setting.

    Raises InvalidRequest.
    """
    value = call.header(HEADER)
    if value is None:
        return key is not None and key.on_disconnect == OnDisconnect.CANCEL
    try:
        return OnDisconnect(value.strip().lower()) is OnDisconnect.CANCEL
    except ValueError:
        raise InvalidRequest(
            f"'{HEADER}' must be 'continue' or 'cancel', not {value[:40]!r}.",
            param=HEADER,
            code="invalid_header",
        ) from None


async def unless_left(call: Call, work: Awaitable[T], *, timeout: float | None = None) -> T:
    """What ``work`` gives, if the client stays until then. The body must have been read.

    Raises ClientDisconnect, with ``work`` cancelled; after ``timeout`` seconds TimeoutError, and ``work`` goes on.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(call))
    try:
        await asyncio.wait({working, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if not leaving.done():
            raise TimeoutError
        raise ClientDisconnect
    except (ClientDisconnect, asyncio.CancelledError):
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working
        raise
    finally:
        leaving.cancel()


async def _left(call: Call) -> None:
    while (await call.request.receive())["type"] != "http.disconnect":
        pass


async def cancel(call: Call, completion: Completion) -> None:
    """Nothing happens to one that has ended."""
    live, record = completion.live, completion.record
    if live is not None and record is not None and not completion.ended:
        await call.context.submitter.cancel(record, live.queue)


async def leave(call: Call, completion_id: str) -> None:
    """The client that waited for the completion has gone, and wanted it cancelled then. What others share goes on."""
    try:
        found = await call.context.finder.find(completion_id)
        if found is not None:
            await cancel(call, found)
    except Unavailable as error:
        log.warning("%s: %s goes on although its client left: %s", call.request_id, completion_id, error)
