"""What was accepted a moment ago, in case Redis forgets it.

Redis fsyncs its append-only file each second, and while an fsync takes longer it holds writes back for up to 2 s. So
the last writes go with its host, and on a busy disk with its process. Whoever accepted a completion in that time is
still there: when Redis is back, it accepts again what neither Redis nor the books know.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from schemas.errors import Unavailable
from stores.books import Books
from stores.redis import Redis

log = logging.getLogger("tailrace.producer")

#: How old the last write may be that Redis loses, in seconds.
LOSS = 4.0
#: Bytes of requests that are kept, the newest ones.
KEPT_BYTES = 64 * 1024 * 1024
#: How long Redis may take to have it all again, in seconds.
RESTORE_SECONDS = 60.0


class Remembered(msgspec.Struct):
    """``again`` accepts it once more."""

    id: str
    size: int
    again: Callable[[], Awaitable[None]]
    at: float = 0.0


class Recent:
    """The last acceptances of a process."""

    def __init__(self, redis: Redis, books: Books) -> None:
        self._redis = redis
        self._books = books
        self._entries: deque[Remembered] = deque()
        self._size = 0
        self._restoring: asyncio.Task[None] | None = None
        redis.on_return = self._on_return

    def add(self, id: str, size: int, again: Callable[[], Awaitable[None]]) -> None:
        """``size`` is what it keeps in memory, in bytes."""
        now = asyncio.get_running_loop().time()
        self._entries.append(Remembered(id, size, again, now))
        self._size += size
        while self._entries and (self._entries[0].at < now - LOSS or self._size > KEPT_BYTES):
            self._size -= self._entries.popleft().size

    async def restored(self, id: str) -> bool:
        """Waits until a completion that may be lost is accepted again; False where it isn't one of those."""
        restoring = self._restoring
        if restoring is None or not any(entry.id == id for entry in self._entries):
            return False
        await asyncio.shield(restoring)
        return True

    def _on_return(self, lost_at: float) -> None:
        entries = [entry for entry in self._entries if entry.at >= lost_at - LOSS]
        if entries:
            before = self._restoring
            self._restoring = asyncio.create_task(self._restore(entries, before))

    async def _restore(self, entries: list[Remembered], before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        try:
            async with asyncio.timeout(RESTORE_SECONDS):
                lost = await self._unknown(entries)
                for entry in lost:
                    await entry.again()
        except (Unavailable, TimeoutError) as error:
            log.error("what Redis lost may not be there again: %s", error)
            return
        if lost:
            log.warning("Redis had lost %d completions of the last seconds; accepted again", len(lost))

    async def _unknown(self, entries: list[Remembered]) -> list[Remembered]:
        """Those that neither Redis has nor the books know an end of."""
        states = await asyncio.gather(*(self._exists(entry.id) for entry in entries))
        lost = [entry for entry, there in zip(entries, states, strict=True) if not there]
        if not lost:
            return []
        try:
            over = await asyncio.to_thread(self._books.over_among, [entry.id for entry in lost])
        except SQLAlchemyError:
            over = set[str]()  # better twice than never
        return [entry for entry in lost if entry.id not in over]

    async def _exists(self, id: str) -> bool:
        keys = self._redis.keys(id)
        return bool(
            await self._redis.command(
                keys.partition, "EXISTS", keys.gen(id), keys.ptr(id), patience=RESTORE_SECONDS
            )
        )
