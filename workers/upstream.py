"""Calling a provider: one streaming request, its bytes parsed into the data of events.

The client is httpx on the ``httpx-aiohttp`` transport: 100-chunk streams cost 22 µs of CPU a chunk with it, 54 µs with
httpx's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Self, cast

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from schemas.codec import BadChunk, dumps, loads
from schemas.errors import DeadlineExceeded, ProviderError, TailraceError
from schemas.providers import Provider
from schemas.retries import retry_after
from schemas.sse import SSEParser, SSETooLarge
from stores.rows import storable

#: Bytes of an error answer that are read, and characters of its code, type and param that are kept.
ERROR_BODY, ERROR_WORD = 64 * 1024, 200
#: What a connection raises that breaks; httpx-aiohttp lets some of aiohttp's own errors through.
BROKEN = (httpx.HTTPError, aiohttp.ClientError, OSError)
_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",
    "User-Agent": "tailrace",
}
#: The data of the event that says all was sent.
DONE = b"[DONE]"


def make_transport(connections: int = 4096) -> httpx.AsyncBaseTransport:
    """The connections for all provider calls of a process.

    httpx's client on top of it would cost some 0.25 ms a call, for redirects, cookies and authentication that a call
    to a provider has no use for.
    """
    limits = httpx.Limits(
        max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30.0
    )
    return AiohttpTransport(limits=limits)


class Patience:
    """The timeouts of one attempt: to the first chunk, between chunks, in all. A timer cancels the task that waits.

    ``left`` is what the request's own deadline leaves, in seconds.

    A chunk only notes the time; the timer looks at the note when it fires, so a chunk costs no timer.
    """

    def __init__(self, provider: Provider, left: float | None = None) -> None:
        self._limits = provider.timeout
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._started = self._heard = self._loop.time()
        self._limit = self._limits.first_chunk
        self._total = self._limits.total if left is None else min(left, self._limits.total)
        self._deadline = left is not None and left <= self._limits.total
        self._timer: asyncio.TimerHandle | None = None
        self._begun = False
        self.expired: str | None = None

    def heard(self) -> None:
        self._heard = self._loop.time()
        if not self._begun:
            self._begun = True
            self._limit = self._limits.between_chunks
            self.__exit__()
            self._arm()  # the first chunk's limit may be much the longer one

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def error(self) -> TailraceError:
        limits = self._limits
        if self.expired == "total":
            if self._deadline:
                return DeadlineExceeded("The request's 'timeout' ran out before the answer was whole.")
            return ProviderError(
                f"The answer took longer than {limits.total:g} s in all.", code="provider_timeout", final=True
            )
        if self._begun:
            return ProviderError(
                f"The provider sent nothing for {limits.between_chunks:g} s.", code="provider_stalled"
            )
        return ProviderError(
            f"The provider's first chunk did not come within {limits.first_chunk:g} s.",
            code="provider_timeout",
        )

    def _arm(self) -> None:
        at = min(self._heard + self._limit, self._started + self._total)
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._started + self._total:
            self.expired = "total"
        elif now >= self._heard + self._limit:
            self.expired = "silence"
        else:
            self._arm()
            return
        assert self._task is not None
        self._task.cancel()


@cache
def _url(base_url: str) -> httpx.URL:
    return httpx.URL(f"{base_url}/chat/completions")


@asynccontextmanager
async def open_stream(
    transport: httpx.AsyncBaseTransport, provider: Provider, headers: dict[str, str], body: bytes
) -> AsyncGenerator[AsyncGenerator[list[bytes]]]:
    """POST a request and yield an iterator over lists of events' data, in the pieces that the network brings.

    ``[DONE]`` comes as it is. Raises ProviderError, then or while iterating.
    """
    try:
        request = httpx.Request(
            "POST",
            _url(provider.base_url),
            content=body,
            headers={**_HEADERS, **headers},
            extensions={"timeout": {"connect": provider.timeout.connect}},
        )
        response = await transport.handle_async_request(request)
    except BROKEN as error:
        raise ProviderError(
            f"The provider '{provider.name}' can't be reached: {_reason(error)}", code="provider_unreachable"
        ) from error
    try:
        if response.status_code != 200:
            raise await _refusal(provider, response)
        yield _events(provider, response)
    finally:
        await response.aclose()


async def _events(provider: Provider, response: httpx.Response) -> AsyncGenerator[list[bytes]]:
    # The stream itself, where nothing is to be decompressed: httpx's own iterators cost 3 µs a chunk beside it.
    plain = "content-encoding" not in response.headers
    pieces = cast("AsyncIterator[bytes]", response.stream if plain else response.aiter_bytes())
    try:
        if "text/event-stream" not in response.headers.get("content-type", "text/event-stream"):
            yield [_as_chunk(b"".join([piece async for piece in pieces])), DONE]
            return
        parser = SSEParser()
        async for piece in pieces:
            events = parser.feed(piece)
            if events:
                yield events
        # A last event without its blank line is one where it is whole; else the stream was cut inside of it.
        events = [event for event in parser.close() if event == DONE or _is_json(event)]
        if events:
            yield events
    except BROKEN as error:
        raise ProviderError(
            f"The connection to the provider '{provider.name}' broke off: {_reason(error)}",
            code="provider_truncated",
        ) from error
    except SSETooLarge as error:
        raise ProviderError(
            f"The provider's stream is not usable: {error}.", code="provider_bad_chunk"
        ) from error


def _is_json(data: bytes) -> bool:
    try:
        loads(data)
    except BadChunk:
        return False
    return True


def _as_chunk(body: bytes) -> bytes:
    """A provider that doesn't stream answered in one piece: its ``chat.completion`` as one chunk."""
    try:
        answer = loads(body)
    except BadChunk as error:
        raise ProviderError(
            f"The provider answered with neither events nor JSON: {error}", code="provider_bad_chunk"
        ) from None
    fields = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
    choices: Any = fields.get("choices")
    if not choices and fields.get("error") is None:
        raise ProviderError(
            "The provider answered with JSON that is no completion.", code="provider_bad_chunk"
        )
    for choice in cast("list[Any]", choices if isinstance(choices, list) else []):
        if isinstance(choice, dict) and "message" in choice:
            _as_delta(cast("dict[str, Any]", choice))
    return dumps(answer)


def _as_delta(choice: dict[str, Any]) -> None:
    """Turn a choice's whole ``message`` into a ``delta``, in which tool calls have an index."""
    message: Any = choice.pop("message")
    calls: Any = cast("dict[str, Any]", message).get("tool_calls") if isinstance(message, dict) else None
    for position, call in enumerate(cast("list[Any]", calls if isinstance(calls, list) else [])):
        if isinstance(call, dict):
            cast("dict[str, Any]", call).setdefault("index", position)
    choice["delta"] = message


async def _refusal(provider: Provider, response: httpx.Response) -> ProviderError:
    """A provider's error answer, with its own status, message, code and param."""
    body = b""
    try:
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > ERROR_BODY:
                break
    except BROKEN:
        pass
    wait = retry_after(response.headers, time.time())
    return refusal(provider.name, response.status_code, body, wait=wait)


def refusal(name: str, status: int, body: bytes, *, wait: float | None = None) -> ProviderError:
    """An answer that is not 200, as an error. ``wait`` is what its headers ask for, in seconds."""
    try:
        parsed = loads(body)
    except BadChunk:
        parsed = None
    detail: Any = cast("dict[str, Any]", parsed).get("error", parsed) if isinstance(parsed, dict) else None
    if status in (401, 403):
        return ProviderError(
            f"The provider '{name}' refused its key: {_message(detail, body)}",
            code="provider_auth",
            provider_status=status,
        )
    return provider_error(name, detail, status=status, body=body, wait=wait)


def provider_error(
    name: str, detail: Any, *, status: int | None = None, body: bytes = b"", wait: float | None = None
) -> ProviderError:
    """From an ``error`` object in OpenAI's shape, or whatever stands in its place."""
    fields = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
    code = fields.get("code")
    if status is None and isinstance(code, int):
        status = code
    return ProviderError(
        _message(detail, body) or f"The provider '{name}' answered {status}.",
        code=_word(code) or "provider_error",
        type=_word(fields.get("type")),
        param=_word(fields.get("param")),
        provider_status=status,
        retry_after=wait,
    )


def _message(detail: Any, body: bytes) -> str:
    if isinstance(detail, dict):
        detail = cast("dict[str, Any]", detail).get("message")
    if isinstance(detail, str) and detail:
        return storable(detail[:ERROR_BODY])
    return storable(body[:500].decode("utf-8", "replace").strip())


def _word(value: Any) -> str | None:
    return storable(value[:ERROR_WORD]) if isinstance(value, str) and value else None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
