"""Server-sent events: the seed's framing and OpenAI's, as raw ASGI.

A chunk costs one join of bytes and one send; there is no middleware, no generator and no model on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Message, Receive, Send

from consumers.follow import Follow, failure_of, renderer_for
from gateway.http import Call, database_away, raw_headers
from gateway.leaving import leave
from schemas.codec import Renderer
from schemas.errors import GenerationFailed, Restarted, TailraceError, Unavailable
from schemas.sse import COMMENT, OPENAI_DONE, done_frame, error_frame, openai_error_frame
from stores.chunklog import Entry
from stores.outcomes import EndEntry

log = logging.getLogger("tailrace.gateway")

#: Bytes of one send: a long replay leaves in pieces, so that a slow client holds back what it doesn't read.
SEND_SIZE = 64 * 1024

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


class SeedFraming:
    """``id``, ``event`` and ``data`` for each chunk; ``done`` or ``error`` at the end."""

    flat_logprobs = True

    def chunk(self, index: int, item: bytes, renderer: Renderer) -> bytes:
        return b"event: message\nid: %d\ndata: %b\n\n" % (index, renderer.render(item))

    def end(self, index: int, end: EndEntry) -> bytes:
        failure = failure_of(end)
        if failure is None:
            return done_frame(index)
        # The id moves past the end, so that an EventSource that comes back is told to stop.
        return b"id: %d\n" % index + error_frame(failure.code, failure.full_message)

    def broken(self, error: TailraceError) -> bytes:
        frame = error_frame(error.code, error.message)
        # An EventSource that comes back with the index of a chunk that was abandoned is told to stop: 409.
        return b"id: %d\n" % (error.base - 1) + frame if isinstance(error, Restarted) else frame


class OpenAIFraming:
    """Only ``data:`` lines. ``usage``: whether the client asked for the usage chunk."""

    flat_logprobs = False

    def __init__(self, *, usage: bool) -> None:
        self._usage = usage

    def chunk(self, index: int, item: bytes, renderer: Renderer) -> bytes:
        if not self._usage and renderer.is_usage_only(item):
            return b""
        return b"data: %b\n\n" % renderer.render(item)

    def end(self, index: int, end: EndEntry) -> bytes:
        failure = failure_of(end)
        return OPENAI_DONE if failure is None else openai_error_frame(GenerationFailed(failure).body())

    def broken(self, error: TailraceError) -> bytes:
        return openai_error_frame(error.body())


class EventStream:
    """A follow as an answer. ``first`` is a task that takes the first entries from it; it goes on with them.
    ``cancels``: when the client leaves, the completion is cancelled."""

    def __init__(
        self,
        follow: Follow,
        framing: SeedFraming | OpenAIFraming,
        headers: Mapping[str, str],
        *,
        first: asyncio.Task[list[Entry]] | None = None,
        cancels: bool = False,
    ) -> None:
        self._follow = follow
        self._cancels = cancels
        self._framing = framing
        self._headers = {**headers, **STREAM_HEADERS}
        self._first = first
        self._renderer = renderer_for(follow.completion, flat_logprobs=framing.flat_logprobs)
        self._head: bytes | None = None
        self._sent = 0.0

    async def send(self, call: Call, receive: Receive, send: Send) -> None:
        headers = raw_headers({**self._headers, "x-request-id": call.request_id})
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        if self._follow.at_hand and call.request.method != "HEAD":
            body = await self._whole(call)
            await send(start)
            await send({"type": "http.response.body", "body": body})
            return
        try:
            await send(start)
            if call.request.method == "HEAD":
                await send({"type": "http.response.body", "body": b""})
                return
            await _piece(send, COMMENT)
            await self._run(call, receive, send)
        finally:
            if self._first is not None:
                self._first.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await self._first
            self._follow.close()

    async def _whole(self, call: Call) -> bytes:
        """The body of a stream that is over already."""
        pieces = [COMMENT]

        async def keep(message: Message) -> None:
            pieces.append(message["body"])

        try:
            await self._copy(keep)
        except Exception:
            log.exception("%s: the stream of %s broke", call.request_id, self._follow.completion.id)
            pieces.append(self._resumable(TailraceError("Something went wrong here.")))
        return b"".join(pieces)

    async def _run(self, call: Call, receive: Receive, send: Send) -> None:
        """Copy until the end or until the client leaves."""
        loop = asyncio.get_running_loop()
        copying = asyncio.current_task()
        assert copying is not None
        left = False

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            copying.cancel()

        watcher = loop.create_task(watch())
        keeper = _Keeper(self, send, call.context.settings.keepalive_seconds)
        try:
            try:
                await self._copy(send)
            except Unavailable as error:
                await _piece(send, self._resumable(error))
            except TailraceError as error:
                await _piece(send, self._framing.broken(error))
            except SQLAlchemyError as error:
                log.warning("%s: the database failed: %s", call.request_id, error)
                await _piece(send, self._resumable(database_away()))
            except Exception:
                log.exception("%s: the stream of %s broke", call.request_id, self._follow.completion.id)
                await _piece(send, self._resumable(TailraceError("Something went wrong here.")))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not left:
                # The gateway is told to stop, and has waited for its streams long enough.
                with contextlib.suppress(OSError, RuntimeError):
                    await _piece(send, self._resumable(Unavailable("The gateway stops.")))
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise
            copying.uncancel()
            if self._cancels:
                await leave(call, self._follow.completion.id)
        finally:
            keeper.stop()
            watcher.cancel()

    def _resumable(self, error: TailraceError) -> bytes:
        """The end of a stream whose completion goes on all the same."""
        follow = self._follow
        how = (
            f"Resume with 'x-last-chunk-index: {follow.last}' and 'x-completion-id: {follow.completion.id}'."
        )
        return self._framing.broken(TailraceError(f"{error.message.rstrip('.')}. {how}", code=error.code))

    async def _copy(self, send: Send) -> None:
        follow, framing, renderer = self._follow, self._framing, self._renderer
        loop = asyncio.get_running_loop()
        entries = await self._take_first()
        while True:
            out: list[bytes] = []
            size = 0
            for entry in entries:
                if entry.items:
                    if follow.head is not self._head:
                        self._head = follow.head
                        renderer.set_head(follow.head)
                    index = entry.first
                    for item in entry.items:
                        frame = framing.chunk(index, item, renderer)
                        out.append(frame)
                        size += len(frame)
                        index += 1
                        if size > SEND_SIZE:
                            await _piece(send, b"".join(out))
                            out.clear()
                            size = 0
                if entry.end is not None:
                    out.append(framing.end(entry.next, entry.end))
            if out:
                self._sent = loop.time()
                await _piece(send, b"".join(out))
            if follow.end is not None:
                return
            entries = await follow.next()

    async def _take_first(self) -> list[Entry]:
        if self._first is None:
            return await self._follow.next()
        first, self._first = self._first, None
        try:
            return await first
        except asyncio.CancelledError:
            first.cancel()
            raise


async def _piece(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


class _Keeper:
    """Sends a comment whenever nothing else was sent for a while."""

    def __init__(self, stream: EventStream, send: Send, period: float) -> None:
        self._stream = stream
        self._send = send
        self._period = period
        self._loop = asyncio.get_running_loop()
        stream._sent = self._loop.time()  # pyright: ignore[reportPrivateUsage]
        self._timer = self._loop.call_later(period, self._look)
        self._sending: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        idle = self._loop.time() - self._stream._sent  # pyright: ignore[reportPrivateUsage]
        if idle >= self._period - 0.01:
            if self._sending is None or self._sending.done():
                self._sending = self._loop.create_task(self._comment())
            self._stream._sent = self._loop.time()  # pyright: ignore[reportPrivateUsage]
            idle = 0.0
        self._timer = self._loop.call_later(self._period - idle, self._look)

    async def _comment(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            await _piece(self._send, COMMENT)
