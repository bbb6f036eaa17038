"""Files of users and of batches: OpenAI's ``/v1/files``. A file flows from the socket to the storage and back, and is
never whole in memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import quote

from starlette.types import Receive, Send

from gateway.caller import identify
from gateway.http import Call, Reply, raw_headers
from gateway.multipart import OVERHEAD, Form, too_large
from producers.submit import Caller
from schemas.errors import InvalidRequest, NotFound, Unavailable
from schemas.files import LONGEST_LIFE, SHORTEST_LIFE, UPLOADABLE, Purpose
from schemas.headers import integer
from schemas.ids import is_file_id, new_file_id
from stores.files import FileRow

log = logging.getLogger("tailrace.gateway")

#: Bytes that go to the storage, or come from it, at once.
PIECE = 1024 * 1024
#: Files on a page: most, and where ``limit`` is not sent.
PAGE_MOST = 10_000

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = ("purpose", _ANCHOR, _SECONDS)

T = TypeVar("T")


def file_object(row: FileRow) -> dict[str, Any]:
    """A file as OpenAI shows it."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_ms // 1000,
        "expires_at": None if row.expires_ms is None else row.expires_ms // 1000,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
    }


async def create(call: Call) -> Reply:
    """POST …/files: an upload. Its row is there once all of its bytes are."""
    caller = await identify(call)
    limit = call.context.settings.max_file_bytes
    length = call.request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit + OVERHEAD:
        raise too_large(limit)
    form = Form(call.request.headers.get("content-type", ""), _FIELDS, limit=limit)
    id = new_file_id()
    files = call.context.files
    async with _Writing(call, id) as storage:
        async for data in call.request.stream():
            form.feed(data)
            if form.waiting >= PIECE:
                await storage.write(form.take())
        form.finish()
        row = _row(caller, id, form)
        await storage.write(form.take())
        await asyncio.to_thread(files.announce, row)
    if not await asyncio.to_thread(files.publish, row):
        raise Unavailable("The file could not be stored in time. Try again.")
    return Reply(file_object(row))


def _row(caller: Caller, id: str, form: Form) -> FileRow:
    purpose = form.field("purpose")
    if purpose not in UPLOADABLE:
        raise InvalidRequest(f"'purpose' must be one of {', '.join(UPLOADABLE)}.", param="purpose")
    created_ms = time.time_ns() // 1_000_000
    expires_ms = None
    if _ANCHOR in form.fields or _SECONDS in form.fields:
        if form.field(_ANCHOR) != "created_at":
            raise InvalidRequest(f"'{_ANCHOR}' must be 'created_at'.", param=_ANCHOR)
        seconds = integer(form.field(_SECONDS), name=_SECONDS, least=SHORTEST_LIFE)
        if seconds > LONGEST_LIFE:
            raise InvalidRequest(f"'{_SECONDS}' must be at most {LONGEST_LIFE}.", param=_SECONDS)
        expires_ms = created_ms + seconds * 1000
    assert form.filename is not None
    return FileRow(
        id=id,
        tenant=caller.tenant,
        key_id=caller.key_id,
        end_user=caller.end_user,
        purpose=purpose,
        filename=form.filename,
        bytes=form.size,
        created_ms=created_ms,
        expires_ms=expires_ms,
    )


async def listing(call: Call) -> Reply:
    """GET …/files."""
    caller = await identify(call)
    query = call.request.query_params
    for name in query:
        if name not in ("after", "limit", "order", "purpose"):
            raise InvalidRequest(f"There is no query parameter '{name[:40]}' here.", param=name[:40])
    limit = integer(query.get("limit", str(PAGE_MOST)), name="limit", least=1)
    if limit > PAGE_MOST:
        raise InvalidRequest(f"'limit' must be at most {PAGE_MOST}.", param="limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be 'asc' or 'desc'.", param="order")
    purpose = query.get("purpose")
    if purpose is not None and purpose not in [*Purpose]:
        raise InvalidRequest(f"'purpose' must be one of {', '.join(Purpose)}.", param="purpose")
    after = query.get("after")
    if after is not None and not is_file_id(after):
        raise InvalidRequest("'after' must be the id of a file.", param="after")
    found = await asyncio.to_thread(
        call.context.files.list,
        caller.tenant,
        end_user=caller.end_user,
        purpose=purpose,
        after=after,
        limit=limit + 1,
        order=order,
    )
    data = [file_object(row) for row in found[:limit]]
    return Reply(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(found) > limit,
        }
    )


async def retrieve(call: Call) -> Reply:
    """GET …/files/{id}."""
    return Reply(file_object(await _owned(call, await identify(call))))


async def delete(call: Call) -> Reply:
    """DELETE …/files/{id}: the bytes go too. Of what is left by a storage that fails, house-keeping takes care."""
    caller = await identify(call)
    id, files = call.path("id"), call.context.files
    if not is_file_id(id) or not await asyncio.to_thread(
        files.delete, caller.tenant, id, end_user=caller.end_user
    ):
        raise _unknown(id)
    try:
        await _in_thread(call, files.remove, [id], call.context.storage)
    except OSError as error:
        log.warning("%s: the bytes of %s are still there: %s", call.request_id, id, error)
    return Reply({"id": id, "object": "file", "deleted": True})


async def content(call: Call) -> _Content:
    """GET …/files/{id}/content: the bytes as they came."""
    row = await _owned(call, await identify(call))
    try:
        return _Content(row, await _in_thread(call, call.context.storage.read, row.id))
    except FileNotFoundError:
        log.error("%s: the storage has nothing of %s", call.request_id, row.id)
        raise NotFound(f"The content of '{row.id}' is gone.", param="id", code="file_not_found") from None
    except OSError as error:
        raise _away(call, error) from error


class _Content:
    """An open file as an answer."""

    def __init__(self, row: FileRow, file: BinaryIO) -> None:
        self._row = row
        self._file = file

    async def send(self, call: Call, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_left(receive))
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(self._row.bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(self._row.filename, safe='')}",
            "x-content-type-options": "nosniff",
            "x-request-id": call.request_id,
        }
        try:
            await send({"type": "http.response.start", "status": 200, "headers": raw_headers(headers)})
            left = 0 if call.request.method == "HEAD" else self._row.bytes
            while left and not gone.done():
                piece = await _in_thread(call, self._file.read, min(PIECE, left))
                if not piece:
                    raise OSError("it ends too early")
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError as error:
            # The connection is closed before the length that was promised: so the client knows.
            log.warning("%s: the content of %s broke off: %s", call.request_id, self._row.id, error)
        finally:
            gone.cancel()
            await _in_thread(call, self._file.close)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Writing:
    """``Storage.write`` for a coroutine. Raises Unavailable where the storage fails."""

    def __init__(self, call: Call, id: str) -> None:
        self._call = call
        self._context = call.context.storage.write(id)
        self._file: BinaryIO
        self._step: Future[Any] | None = None

    async def __aenter__(self) -> Self:
        self._file = await self._run(self._context.__enter__)
        return self

    async def write(self, piece: bytes) -> None:
        await self._run(self._file.write, piece)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._step is not None and not self._step.done():
            # The request was cancelled in the midst of it. Its thread goes on with the end: who waited here to order it
            # could be cancelled again, or come when no thread takes orders any more.
            self._step.add_done_callback(lambda _: self._context.__exit__(kind, error, trace))
        else:
            await self._run(self._context.__exit__, kind, error, trace)

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        step = self._step = self._call.context.file_threads.submit(work, *arguments)
        try:
            return await asyncio.shield(asyncio.wrap_future(step))
        except OSError as error:
            raise _away(self._call, error) from error


async def _in_thread(call: Call, work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(call.context.file_threads, work, *arguments)


async def _owned(call: Call, caller: Caller) -> FileRow:
    id = call.path("id")
    row = None
    if is_file_id(id):
        row = await asyncio.to_thread(call.context.files.get, caller.tenant, id, end_user=caller.end_user)
    if row is None:
        raise _unknown(id)
    return row


def _unknown(id: str) -> NotFound:
    return NotFound(f"There is no file '{id[:80]}'.", param="id", code="file_not_found")


def _away(call: Call, error: OSError) -> Unavailable:
    log.warning("%s: the storage of files failed: %s", call.request_id, error)
    return Unavailable("The storage of files is not available. Try again.")
