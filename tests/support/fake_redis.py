"""A TCP server in the place of Redis, for what a real one never does at the right moment: silence, nonsense, delays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import hiredis

from tests.support.waiting import until

Command = list[bytes]
Answer = Callable[[Command, asyncio.StreamWriter], Awaitable[None]]

GREETING = b"%1\r\n+proto\r\n:3\r\n"


class FakeRedis:
    """``commands`` are all that came in; ``connections`` how many were made, ``open`` how many are."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.commands: list[Command] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self._writers.add(writer)
        requests = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                requests.feed(data)
                while (command := requests.gets()) is not False:
                    self.commands.append(command)
                    await self._answer(command, writer)
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    def reset(self) -> None:
        """Cuts every connection."""
        for writer in self._writers:
            writer.transport.abort()


async def greet(command: Command, writer: asyncio.StreamWriter) -> bool:
    """Answers HELLO; False for any other command."""
    if command[0] == b"HELLO":
        writer.write(GREETING)
    return command[0] == b"HELLO"


@asynccontextmanager
async def fake_redis(answer: Answer) -> AsyncGenerator[FakeRedis]:
    """``answer`` is awaited for each command, HELLO too, and writes the reply."""
    fake = FakeRedis(answer)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        fake.reset()
        await server.wait_closed()
        await until(lambda: fake.open == 0)
