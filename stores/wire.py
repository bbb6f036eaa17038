"""A pipelined RESP3 connection to one Redis node: the hot path's way to Redis.

Calls that are made in the same turn of the event loop leave in one write, replies come back in order, and pushed
messages go to a callback. One connection serves a whole process; nothing waits for a free one.

Why not redis-py here: for 100 tasks that append at once, its pipeline costs 20 µs of CPU a command and its pub/sub
10 µs a message, this 3.0 µs and 0.9 µs (one process, uvloop, hiredis 3.5, Valkey 9.1, two cores). redis-py serves
everything that is not on the path of a chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
import msgspec

#: A connection that has replies to come and hears nothing for this long is taken for dead, in seconds.
REPLY_TIMEOUT = 10.0
#: Bytes that may wait in the socket's buffer before ``drained`` holds writers back.
WRITE_HIGH_WATER = 4 * 1024 * 1024

Arg = str | bytes | int | float
Push = Callable[[list[Any]], None]


class WireError(ConnectionError):
    """The connection is not there: refused, closed, silent, or its authentication failed."""


class Address(msgspec.Struct, frozen=True):
    """Where a Redis node is and how to greet it; from a ``redis://``, ``rediss://`` or ``unix://`` URL."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = None
    database: int = 0
    tls: bool = False

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Raises ValueError for a URL of another kind."""
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError(
                f"a Redis URL starts with redis://, rediss:// or unix://, not {parts.scheme or url!r}"
            )
        username = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        if parts.scheme == "unix":
            database = parse_qs(parts.query).get("db", ["0"])[0]
            return cls(path=parts.path, username=username, password=password, database=int(database))
        database = parts.path.strip("/") or parse_qs(parts.query).get("db", ["0"])[0]
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 6379,
            username=username,
            password=password,
            database=int(database),
            tls=parts.scheme == "rediss",
        )

    def at(self, host: str, port: int) -> Address:
        """Another node of the same cluster: same credentials."""
        return msgspec.structs.replace(self, host=host, port=port, path=None, database=0)

    @property
    def label(self) -> str:
        """For messages; without the password."""
        return self.path or f"{self.host}:{self.port}"


class Wire(asyncio.Protocol):
    """One open connection. ``on_push`` gets each pushed message as a list, ``on_lost`` is called once at its end."""

    def __init__(self, on_push: Push | None = None, on_lost: Callable[[Wire], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any] | None] = deque()
        self._out: list[bytes] = []
        self._on_push = on_push
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._resume: asyncio.Future[None] | None = None
        self.closed = False

    @classmethod
    async def connect(
        cls,
        address: Address,
        *,
        on_push: Push | None = None,
        on_lost: Callable[[Wire], None] | None = None,
        timeout: float = 5.0,
    ) -> Wire:
        """Connects, authenticates and speaks RESP3. Raises WireError."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                if address.path is not None:
                    _, wire = await loop.create_unix_connection(lambda: cls(on_push, on_lost), address.path)
                else:
                    context = ssl.create_default_context() if address.tls else None
                    _, wire = await loop.create_connection(
                        lambda: cls(on_push, on_lost), address.host, address.port, ssl=context
                    )
                hello: list[Arg] = ["HELLO", 3]
                if address.password is not None:
                    hello += ["AUTH", address.username or "default", address.password]
                try:
                    await wire.call(*hello)
                    if address.database:
                        await wire.call("SELECT", address.database)
                except hiredis.ReplyError as error:
                    wire.close()
                    raise WireError(f"Redis at {address.label} refused the connection: {error}") from None
        except (OSError, TimeoutError) as error:
            if isinstance(error, WireError):
                raise
            reason = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error))
            raise WireError(f"Redis at {address.label} can't be reached: {reason}") from None
        return wire

    def call(self, *args: Arg) -> asyncio.Future[Any]:
        """One command. The future raises hiredis.ReplyError for an error reply, WireError if the connection ends."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(args, future)
        return future

    def send(self, args: tuple[Arg, ...], future: asyncio.Future[Any] | None) -> None:
        """As ``call``, with a future of the caller's own, or none where the reply doesn't matter.

        SSUBSCRIBE and SUNSUBSCRIBE are confirmed by pushes and never replied to: use ``push_command`` for them.
        """
        if self.closed:
            if future is not None:
                future.set_exception(WireError("the connection to Redis is closed"))
            return
        self._waiting.append(future)
        if self._watchdog is None:
            self._heard = self._loop.time()
            self._watchdog = self._loop.call_later(REPLY_TIMEOUT, self._watch)
        self._write(hiredis.pack_command(args))  # type: ignore[arg-type]

    def push_command(self, *args: Arg) -> None:
        """A command that is answered by pushes alone (SSUBSCRIBE, SUNSUBSCRIBE)."""
        if not self.closed:
            self._write(hiredis.pack_command(args))  # type: ignore[arg-type]

    async def drained(self) -> None:
        """Waits while the socket's buffer is full."""
        if self._resume is not None:
            await asyncio.shield(self._resume)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._end(WireError("the connection to Redis was closed"))

    def _write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out = self._out
        if out and self._transport is not None and not self.closed:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()

    def _watch(self) -> None:
        self._watchdog = None
        if not self._waiting or self.closed:
            return
        silent = self._loop.time() - self._heard
        if silent >= REPLY_TIMEOUT:
            assert self._transport is not None
            self._transport.abort()
            self._end(WireError(f"Redis has not answered for {REPLY_TIMEOUT:.0f} s"))
        else:
            self._watchdog = self._loop.call_later(REPLY_TIMEOUT - silent, self._watch)

    def _end(self, error: Exception) -> None:
        if self.closed:
            return
        self.closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if future is not None and not future.done():
                future.set_exception(error)
        if self._resume is not None and not self._resume.done():
            self._resume.set_result(None)
        if self._on_lost is not None:
            self._on_lost(self)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        with contextlib.suppress(AttributeError, NotImplementedError):
            self._transport.set_write_buffer_limits(WRITE_HIGH_WATER)  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        reader = self._reader
        reader.feed(data)
        while True:
            try:
                message = reader.gets()
            except hiredis.ProtocolError as error:
                assert self._transport is not None
                self._transport.abort()
                self._end(WireError(f"Redis sent what is not RESP: {error}"))
                return
            if message is False:
                # RESP3's false comes as the same object as "nothing yet"; no command of ours is answered by it.
                return
            if isinstance(message, hiredis.PushNotification):
                if self._on_push is not None:
                    self._on_push(message)
                continue
            future = self._waiting.popleft()
            if future is None or future.done():
                continue
            if isinstance(message, hiredis.ReplyError):
                future.set_exception(message)
            else:
                future.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(WireError(f"the connection to Redis was lost{f': {exc}' if exc else ''}"))

    def pause_writing(self) -> None:
        self._resume = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._resume is not None and not self._resume.done():
            self._resume.set_result(None)
        self._resume = None
