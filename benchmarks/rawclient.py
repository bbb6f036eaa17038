"""The cheapest client for a streamed answer: what it costs is the same, and small, whoever answers.

No HTTP parsing: pieces are kept as they come, the end is the empty chunk of HTTP's chunked coding. That takes under a
microsecond a piece, where an HTTP library takes tens.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

#: How every chunk begins on the wire, in all framings that are measured.
FRAME = b"data: {"
_END = b"\r\n0\r\n\r\n"
_COMPLETION_ID = re.compile(rb"\r\nx-completion-id: ([^\r]+)\r\n")


@dataclass(slots=True)
class Answer:
    """The bytes of one answer as they came. Times are nanoseconds of the machine's monotonic clock."""

    sent: int
    first: int = 0  # when its first chunk came; 0: none did
    pieces: list[bytes] = field(default_factory=list[bytes])
    times: list[int] = field(default_factory=list[int])

    @property
    def raw(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def frames(self) -> int:
        return self.raw.count(FRAME)

    @property
    def whole(self) -> bool:
        """Answered with 200, and without an error where chunks should be."""
        raw = self.raw
        return raw.startswith(b"HTTP/1.1 200") and b"event: error" not in raw and b'data: {"error"' not in raw

    @property
    def completion(self) -> str | None:
        found = _COMPLETION_ID.search(self.raw)
        return found[1].decode() if found else None


class Connection(asyncio.Protocol):
    """One kept-alive connection, one request at a time. ``counted`` is how many chunks came over it so far."""

    def __init__(self) -> None:
        self.counted = 0
        self._answer: Answer | None = None
        self._tail = b""
        self._begun: asyncio.Future[Answer] | None = None
        self._whole: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, url: str) -> Connection:
        at = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(cls, at.hostname or "", at.port or 80)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request; the future is its whole answer. Raises ConnectionError where it breaks off."""
        self._whole, self._begun = self._send(request), None
        return self._whole

    def ask_first(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request; the future is what came of its answer by the first chunk, or all of an answer without one."""
        self._whole, self._begun = None, self._send(request)
        return self._begun

    def close(self) -> None:
        self._transport.abort()

    def _send(self, request: bytes) -> asyncio.Future[Answer]:
        self._tail = b""
        self._answer = Answer(time.monotonic_ns())
        self._transport.write(request)
        return self._loop.create_future()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        answer = self._answer
        if answer is None:
            return
        answer.times.append(now)
        answer.pieces.append(data)
        frames = data.count(FRAME)
        if frames:
            self.counted += frames
            if not answer.first:
                answer.first = now
                self._resolve(self._begun, answer)
        tail = data if len(data) >= len(_END) else self._tail + data
        if tail.endswith(_END):
            self._answer = None
            self._resolve(self._begun, answer)
            self._resolve(self._whole, answer)
        else:
            self._tail = tail[-len(_END) :]

    def connection_lost(self, exc: Exception | None) -> None:
        got = self._answer.raw[:300] if self._answer else b""
        for future in (self._begun, self._whole):
            if future is not None and not future.done():
                future.set_exception(ConnectionError(f"the connection ended ({exc}) after {got!r}"))

    @staticmethod
    def _resolve(future: asyncio.Future[Answer] | None, answer: Answer) -> None:
        if future is not None and not future.done():
            future.set_result(answer)


def request(url: str, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
    """An HTTP request as bytes; POST where there is a body."""
    at = urlsplit(url)
    path = f"{at.path}?{at.query}" if at.query else at.path
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"host: {at.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
