"""``kind = "openai"``: any server that speaks ``/chat/completions``. One streaming request, its bytes parsed into the
data of events.

The client is httpx on the ``httpx-aiohttp`` transport: 100-chunk streams cost 22 µs of CPU a chunk with it, 54 µs with
httpx's own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from producers.catalog import auth_headers
from schemas.codec import BadChunk, dumps, loads
from schemas.errors import ProviderError
from schemas.providers import Provider, upstream_body
from schemas.retries import retry_after
from schemas.sse import SSEParser, SSETooLarge
from workers.providers.kind import DONE, ERROR_BODY, Call, refusal

#: What a connection raises that breaks; httpx-aiohttp lets some of aiohttp's own errors through.
BROKEN = (httpx.HTTPError, aiohttp.ClientError, OSError)
_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",
    "User-Agent": "tailrace",
}


def make_transport(connections: int = 4096) -> httpx.AsyncBaseTransport:
    """The connections for all provider calls of a process.

    httpx's client on top of it would cost some 0.25 ms a call, for redirects, cookies and authentication that a call
    to a provider has no use for.
    """
    limits = httpx.Limits(
        max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30.0
    )
    return AiohttpTransport(limits=limits)


class OpenAI:
    """One provider. ``transport`` has the connections of all."""

    def __init__(self, provider: Provider, transport: httpx.AsyncBaseTransport) -> None:
        self._provider = provider
        self._transport = transport
        self._url = httpx.URL(f"{provider.base_url}/chat/completions")

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncGenerator[AsyncGenerator[list[bytes]]]:
        provider = self._provider
        body = upstream_body(call.params, provider=provider, model=call.model, end_user=call.end_user)
        try:
            request = httpx.Request(
                "POST",
                self._url,
                content=body,
                headers={**_HEADERS, **auth_headers(provider)},
                extensions={"timeout": {"connect": provider.timeout.connect}},
            )
            response = await self._transport.handle_async_request(request)
        except BROKEN as error:
            raise ProviderError(
                f"The provider '{provider.name}' can't be reached: {_reason(error)}",
                code="provider_unreachable",
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


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
