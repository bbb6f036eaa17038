"""A TCP proxy that loses answers to order: the server has done the work, and the caller never hears of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Proxy:
    """``lose(after)`` cuts the connection where the answer to the next request that contains ``after`` would come."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._lose: bytes | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.lost = 0

    def lose(self, after: bytes = b"EVALSHA") -> None:
        self._lose = after

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        losing = False

        async def requests() -> None:
            nonlocal losing
            while data := await reader.read(1 << 20):
                if self._lose is not None and self._lose in data:
                    self._lose = None
                    losing = True
                far_writer.write(data)

        async def answers() -> None:
            while data := await far_reader.read(1 << 20):
                if losing:
                    self.lost += 1
                    return
                writer.write(data)

        pumps = [asyncio.create_task(requests()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.transport.abort()
            far_writer.transport.abort()
            self._tasks.discard(task)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def proxy(host: str, port: int) -> AsyncGenerator[Proxy]:
    made = Proxy(host, port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()
        await server.wait_closed()
