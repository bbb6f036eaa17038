"""A key space with books and readers, in one process: generations are written, settled, expired, and followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import redis

from consumers.follow import Follow, Followers, renderer_for
from consumers.lookup import Completion
from stores.books import Books
from stores.ledger import Ledger
from stores.migration import migrate
from stores.redis import Redis
from stores.sql import make_engine
from tests.support.generations import Room, batch, room, texts
from tests.support.waiting import until

#: Longer than any test, in seconds.
LONG_TTL = 600.0
#: Gone at once.
NO_TTL = 0.001

Chunks = list[tuple[int, dict[str, Any]]]
Items = list[tuple[int, bytes]]


def ledger_of(
    space: Redis, books: Books, *, token: str = "me", interactive: float = LONG_TTL, bulk: float = LONG_TTL
) -> Ledger:
    return Ledger(space, books, token=token, log_ttl_interactive=interactive, log_ttl_bulk=bulk)


@dataclass
class House:
    """``client`` is a synchronous one of the same server."""

    room: Room
    client: redis.Redis
    books: Books
    followers: Followers

    async def find(self, id: str) -> Completion:
        found = await self.followers.finder.find(id)
        assert found is not None
        return found

    async def open(self, id: str, after: int = -1) -> Follow:
        return await self.followers.open(await self.find(id), after)

    async def prepared(self, id: str) -> Follow:
        """A follow that was subscribed before the completion is accepted by ``accept``."""
        reader = await self.followers.prepare(id)
        return self.followers.attach(reader, await self.find(id))

    async def write(self, generation: str, sizes: Sequence[int], first: int = 0) -> int:
        """An entry of each size, of chunks whose text is their index; the index after the last one."""
        for size in sizes:
            await self.room.scripts.append(generation, 1, batch(first, size))
            first += size
        return first

    async def settle(self, *, ttl: float = LONG_TTL) -> None:
        """All that the ledgers hold goes into the books, and the keys get their TTL (seconds)."""
        ledger = ledger_of(self.room.redis, self.books, interactive=ttl, bulk=ttl)
        for partition in range(self.room.redis.partitions):
            assert await ledger.lead(partition)
            while await ledger.drain(partition):
                pass

    async def expire(self, id: str) -> None:
        """Settled, and its keys' time is over."""
        await self.settle(ttl=NO_TTL)
        keys = self.room.redis.keys(id)
        await until(lambda: not self.client.exists(keys.gen(id), keys.log(id)))

    def channels(self) -> list[str]:
        """The sharded channels that anybody is subscribed to."""
        return cast("list[str]", self.client.execute_command("PUBSUB", "SHARDCHANNELS"))


@asynccontextmanager
async def house(url: str, client: redis.Redis, database_url: str, **options: Any) -> AsyncGenerator[House]:
    """The books are made; nothing is subscribed to after its end."""
    engine = make_engine(database_url)
    try:
        await asyncio.to_thread(migrate, engine)
        books = Books(engine)
        async with room(url, **options) as space:
            followers = Followers(space.redis, books)
            try:
                yield House(space, client, books, followers)
            finally:
                await followers.close()
    finally:
        engine.dispose()


async def items(follow: Follow) -> Items:
    """(index, item) pairs to the end, each index once and in order."""
    found: Items = []
    try:
        while follow.end is None:
            for entry in await follow.next():
                found += ((entry.first + place, item) for place, item in enumerate(entry.items))
    finally:
        follow.close()
    return found


async def chunks(follow: Follow) -> Chunks:
    """(index, chunk) pairs to the end, as clients see them."""
    return [pair async for pair in follow.chunks(renderer_for(follow.completion))]


def numbered(first: int, after_last: int) -> Items:
    """What ``items`` gives of ``House.write``."""
    return list(enumerate(texts(first, max(0, after_last - first)), first))
