"""The tests' fake backend as a process of its own, with a clock in its chunks: ``python -m benchmarks.backend``.

Where a chunk's text is ``STAMP``, it is sent as the time of its writing (nanoseconds of the machine's monotonic clock),
so that whoever reads the chunk on the same machine knows how long it was on its way.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from typing import Any, cast

from tests.support.backend import Backend, _Connection, new_loop

STAMP = "@" * 20
_DIGITS = len(STAMP) - 1
_STAMPED = re.compile(rb"@(\d{%d})" % _DIGITS)


def stamps(data: bytes) -> list[int]:
    """The times in a piece of an answer."""
    return [int(stamp) for stamp in _STAMPED.findall(data)]


class _Stamping:
    """A transport that puts the time in."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._mark = STAMP.encode()

    def write(self, data: bytes) -> None:
        if self._mark in data:
            data = data.replace(self._mark, b"@%0*d" % (_DIGITS, time.monotonic_ns()))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _StampingConnection(_Connection):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Stamping(self.transport))


class StampingBackend(Backend):
    async def serve(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        listening = socket.create_server(("127.0.0.1", self.port), backlog=2048)
        self.port = listening.getsockname()[1]
        return await loop.create_server(lambda: _StampingConnection(self, loop), sock=listening, backlog=2048)


def main() -> None:
    """Print ``base_url`` once it listens; run until SIGTERM or SIGINT."""
    backend = StampingBackend(record=False)
    loop = new_loop()
    server = loop.run_until_complete(backend.serve())
    print(backend.url, flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, loop.stop)
    loop.run_forever()
    server.close()
    loop.close()


if __name__ == "__main__":
    main()
