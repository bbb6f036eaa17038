"""HTTP for the client: one connection pool, one retry rule, and streams that notice silence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, TypeVar

import httpx

from tailrace import backoff
from tailrace.errors import APIError, ConnectionFailed, NotConfigured, api_error, error_shape

#: Seconds without a byte, keep-alive comments included, after which a stream is taken for dead.
#: The server sends a comment at least every 5 s.
SILENCE = 15.0
#: A Retry-After above this many seconds is the caller's business.
LONGEST_RETRY_AFTER = 60.0
#: Seconds in which a server must have taken or sent the next piece of a file, or say that it has all of it.
FILE_SILENCE = 120.0
#: At most so many streams are open at once only to wait for results (``Completion.result``).
FOLLOWERS = 200

T = TypeVar("T")

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
#: What no second try can mend, though httpx files it under transport errors.
_HOPELESS = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)


class Http:
    """Sends requests to one server under one key, with retries that are safe for every endpoint of it."""

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        end_user: str | None,
        timeout: float,
        retries: int,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        base = httpx.URL(url.rstrip("/").removesuffix("/v1"))
        if base.scheme not in ("http", "https") or not base.host:
            raise NotConfigured(f"{url!r} is not an http:// or https:// URL")
        headers = {"Authorization": f"Bearer {api_key}"}
        if end_user is not None:
            headers["X-On-Behalf-Of"] = end_user
        self._retries = retries
        self._timeout = timeout
        self.followers = asyncio.Semaphore(FOLLOWERS)
        self._client = httpx.AsyncClient(
            base_url=base,
            headers=headers,
            timeout=httpx.Timeout(timeout, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            trust_env=base.host not in _LOOPBACK,  # no proxy stands before the own machine
            verify=base.scheme == "https",  # loading certificates takes longer than a whole local request
            transport=transport,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON of a 2xx response. Raises APIError, or ConnectionFailed when there is no answer at all.

        Tries again after connection errors and what ``retry_after`` allows. A POST that creates something
        must carry an Idempotency-Key, so that a try whose answer got lost is adopted by the next.
        """
        sent = dict(headers or {})
        content: bytes | None = None
        if body is not None:
            sent["Content-Type"] = "application/json"
            content = json.dumps(
                body, allow_nan=False
            ).encode()  # escapes what UTF-8 can't say: lone surrogates

        async def send() -> Any:
            response = await self._client.request(method, path, params=params, content=content, headers=sent)
            return self._parse(_checked(response))

        return await self._retried(send)

    async def upload(self, path: str, file: BinaryIO, name: str, fields: Mapping[str, str]) -> Any:
        """POST a file with form fields, read and sent piece by piece; the JSON of the answer. Tries again as
        ``request`` does, from the file's beginning. Raises as ``request`` does."""

        async def send() -> Any:
            file.seek(0)
            # An answer may come long after the last byte: the whole of it has to reach the storage.
            response = await self._client.post(
                path,
                data=dict(fields),
                files={"file": (name, file, "application/jsonl")},
                timeout=httpx.Timeout(self._timeout, read=FILE_SILENCE, write=FILE_SILENCE, pool=None),
            )
            return self._parse(_checked(response))

        return await self._retried(send)

    async def download(self, path: str, file: BinaryIO) -> int:
        """Write the body of a GET into ``file``, as it comes; its length. A try that breaks off starts again from
        nothing. Raises as ``request`` does."""
        start = file.tell()
        timeout = httpx.Timeout(self._timeout, read=FILE_SILENCE, pool=None)

        async def send() -> int:
            file.seek(start)
            file.truncate()
            async with self._client.stream("GET", path, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                async for piece in _checked(response).aiter_bytes():
                    file.write(piece)
            return file.tell() - start

        return await self._retried(send)

    async def _retried(self, send: Callable[[], Awaitable[T]]) -> T:
        for failures in range(1, self._retries + 2):
            try:
                return await send()
            except _Refused as refused:
                response = refused.response
                wait = retry_after(response)
                error: APIError | ConnectionFailed = api_error(
                    response.status_code, response.headers, response.content
                )
            except httpx.TransportError as cause:
                error = self.connection_failed(cause)
                wait = None if isinstance(cause, _HOPELESS) else 0.0
            if wait is None or wait > LONGEST_RETRY_AFTER or failures > self._retries:
                raise error
            await asyncio.sleep(max(wait, backoff.delay(failures)))
        raise AssertionError("unreachable")

    def _parse(self, response: httpx.Response) -> Any:
        try:
            return response.json() if response.content else None
        except ValueError as cause:
            raise ConnectionFailed(f"{self._client.base_url} does not speak Tailrace's API") from cause

    @asynccontextmanager
    async def stream(self, path: str, params: Mapping[str, Any]) -> AsyncGenerator[httpx.Response]:
        """An open event stream. One try; reading it raises httpx.ReadTimeout after ``SILENCE``."""
        timeout = httpx.Timeout(self._timeout, read=SILENCE, pool=None)
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        async with self._client.stream(
            "GET", path, params=params, headers=headers, timeout=timeout
        ) as response:
            yield response

    def connection_failed(self, cause: Exception) -> ConnectionFailed:
        """The error for a server that does not answer."""
        why = str(cause) or type(cause).__name__
        return ConnectionFailed(f"no answer from {self._client.base_url}: {why}")


class _Refused(Exception):
    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def _checked(response: httpx.Response) -> httpx.Response:
    """The response, where it is a success."""
    if not response.is_success:
        raise _Refused(response)
    return response


def retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait at least before the same request may be sent again; None where it must not.

    502 and 504 are retried only from something between us and the gateway (a proxy): in the gateway's own
    error shape they are about a provider, and final.
    """
    if response.headers.get("x-should-retry") == "false":
        return None
    match response.status_code:
        case 429 | 503:
            pass
        case 502 | 504 if error_shape(response.content) is None:
            pass
        case _:
            return None
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:  # an HTTP date
        return 1.0
