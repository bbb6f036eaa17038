"""The gateway's edge: requests in, JSON out, and the one place where an error becomes an HTTP answer."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uuid_utils
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from gateway.context import Context
from schemas.codec import dumps
from schemas.errors import (
    GenerationFailed,
    LimitReached,
    MethodNotAllowed,
    Restarted,
    TailraceError,
    TooLarge,
    Unavailable,
)

log = logging.getLogger("tailrace.gateway")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
Headers = dict[str, str]


def database_away() -> Unavailable:
    """What those are told who need the database while it is away."""
    return Unavailable("The database is not available. Try again.")


class Call:
    """One request, with what handlers ask of it."""

    __slots__ = ("_headers", "context", "request", "request_id")

    def __init__(self, context: Context, scope: Scope, receive: Receive) -> None:
        self.context = context
        self.request = Request(scope, receive)
        self._headers: Headers = {}
        for raw, value in scope["headers"]:
            name = raw.decode("latin-1")
            text = value.decode("latin-1")
            self._headers[name] = f"{self._headers[name]}, {text}" if name in self._headers else text
        given = self._headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid_utils.uuid7().hex}"

    def header(self, name: str) -> str | None:
        """The header's value; of one that was sent several times the values with commas, as RFC 9110 has it."""
        return self._headers.get(name.lower())

    def path(self, name: str) -> str:
        return self.request.path_params[name]

    async def body(self) -> bytes:
        """The whole body. Raises TooLarge."""
        limit = self.context.settings.max_body_bytes
        length = self._headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise too_large(limit)
        parts: list[bytes] = []
        size = 0
        async for part in self.request.stream():
            size += len(part)
            if size > limit:
                raise too_large(limit)
            parts.append(part)
        return b"".join(parts)


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit:,} bytes. Send less, or raise TAILRACE_MAX_BODY_BYTES.")


class Reply:
    """A whole answer."""

    def __init__(
        self,
        body: Any = None,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        *,
        raw: bytes | None = None,
        content_type: str = "application/json",
    ) -> None:
        self.status = status
        self.body = raw if raw is not None else (b"" if body is None else dumps(body))
        self.headers: Headers = dict(headers or {})
        self.content_type = content_type

    async def send(self, call: Call, receive: Receive, send: Send) -> None:
        headers = raw_headers({**self.headers, "x-request-id": call.request_id})
        if self.status != 204:
            headers.append((b"content-type", self.content_type.encode()))
            headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body if self.status != 204 else b""})


def raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]


def error_reply(error: TailraceError, headers: Mapping[str, str] | None = None) -> Reply:
    extra: Headers = dict(headers or {})
    if error.retry_after is not None:
        extra["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, LimitReached):
        extra |= error.headers
    if isinstance(error, GenerationFailed):
        extra["x-should-retry"] = "false"  # it was accepted and paid for; asking again does it twice
    if isinstance(error, Restarted):
        extra["x-base-index"] = str(error.base)
    if error.http_status == 401:
        extra["www-authenticate"] = "Bearer"
    return Reply(error.body(), error.http_status, extra)


class Accepted(Exception):
    """Wraps an error that came after acceptance, with the headers that name the completion."""

    def __init__(self, error: TailraceError, headers: Headers) -> None:
        self.error = error
        self.headers = headers


Responder = Any  # has ``async send(call, receive, send)``
Handler = Callable[[Call], Awaitable[Responder]]


class Endpoint:
    """An ASGI app for one path: a handler for each method."""

    def __init__(self, **handlers: Handler) -> None:
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope["app"].state.context, scope, receive)
        reply = await self._answer(call)
        if reply is not None:
            await reply.send(call, receive, send)

    async def _answer(self, call: Call) -> Responder | None:
        method = call.request.method
        try:
            handler = self._handlers.get("GET" if method == "HEAD" else method)
            if handler is None:
                allowed = ", ".join(sorted(self._handlers))
                return error_reply(
                    MethodNotAllowed(f"{method} is not possible here; {allowed} is."), {"allow": allowed}
                )
            return await handler(call)
        except Accepted as wrapped:
            return error_reply(wrapped.error, {**wrapped.headers, "x-should-retry": "false"})
        except TailraceError as error:
            return error_reply(error)
        except ClientDisconnect:
            return None
        except SQLAlchemyError as error:
            log.warning("%s: the database failed: %s", call.request_id, error)
            return error_reply(database_away())
        except Exception:
            log.exception("%s: %s %s failed", call.request_id, method, call.request.scope["path"])
            return error_reply(
                TailraceError(f"Something went wrong here. Tell us the request id: {call.request_id}.")
            )
