"""What was accepted a moment ago, in case Redis forgets it.

Redis fsyncs its append-only file each second, and while an fsync takes longer it holds writes back for up to 2 s. So
the last writes go with its host, and on a busy disk with its process. Whoever accepted a completion in that time is
still there: when Redis is back, it accepts again what neither Redis nor the books know. The outbox puts the messages.
Of what the books know, an Idempotency-Key may be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from schemas.errors import Unavailable
from stores.books import Books
from stores.redis import Redis

log = logging.getLogger("tailrace.producer")

#: How long before Redis was last heard of the oldest write was that it may have lost, in seconds, amply.
LOSS = 10.0
#: Bytes of requests that are kept, the newest ones.
KEPT_BYTES = 64 * 1024 * 1024
#: How long Redis may take to have it all again, in seconds, and a reader waits for it.
RESTORE_SECONDS, READER_SECONDS = 60.0, 10.0
#: Without the books nobody knows whether what Redis lacks has ended. What is older than this, in seconds, counts so.
SURE_SECONDS = 600.0


class Remembered(msgspec.Struct):
    """``again`` accepts it once more; given True, for what is over, only its Idempotency-Key is kept again."""

    id: str
    size: int
    again: Callable[[bool], Awaitable[None]]
    at: float = 0.0


class Recent:
    """The last acceptances of a process."""

    def __init__(self, redis: Redis, books: Books) -> None:
        self._redis = redis
        self._books = books
        self._entries: deque[Remembered] = deque()
        self._size = 0
        self._restoring: asyncio.Task[None] | None = None
        #: How often Redis came back.
        self.returns = 0
        #: What the last restoring looked at.
        self._looked: set[str] = set()
        redis.on_return = self._on_return
        redis.restored = self.restored

    def add(self, id: str, size: int, again: Callable[[bool], Awaitable[None]]) -> None:
        """``size`` is what it keeps in memory, in bytes."""
        now = asyncio.get_running_loop().time()
        self._entries.append(Remembered(id, size, again, now))
        self._size += size
        oldest = min(now, self._redis.lost_since or now) - LOSS
        while self._entries and (self._entries[0].at < oldest or self._size > KEPT_BYTES):
            self._size -= self._entries.popleft().size

    def forget(self, id: str) -> None:
        """It was taken back, or cancelled."""
        entry = next((entry for entry in reversed(self._entries) if entry.id == id), None)
        if entry is not None:
            self._entries.remove(entry)
            self._size -= entry.size

    async def restored(self, id: str) -> bool:
        """Waits until a completion that may be lost is accepted again; False where it isn't one of those."""
        if self._restoring is None or id not in self._looked:
            return False
        await asyncio.wait({self._restoring}, timeout=READER_SECONDS)
        return True

    async def settled(self) -> None:
        """Waits while anything is accepted again."""
        if self._restoring is not None:
            await asyncio.wait({self._restoring}, timeout=READER_SECONDS)

    def _on_return(self, lost_at: float) -> None:
        self.returns += 1
        entries = [entry for entry in self._entries if entry.at >= lost_at - LOSS]
        if entries:
            running = self._restoring is not None and not self._restoring.done()
            self._looked = {entry.id for entry in entries} | (self._looked if running else set())
            self._restoring = asyncio.create_task(self._restore(entries, self._restoring))

    async def _restore(self, entries: list[Remembered], before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        again = failed = 0
        try:
            async with asyncio.timeout(RESTORE_SECONDS):
                for entry, over in await self._lost(entries):
                    try:
                        await entry.again(over)
                        again += not over
                    except Exception as error:  # noqa: BLE001 - the others are not to go with it
                        failed += 1
                        log.error("%s was accepted, and Redis has lost it: %s", entry.id, error)
        except (Unavailable, TimeoutError) as error:
            log.error("what Redis lost may not be there again: %s", error)
        except Exception:
            log.exception("what Redis lost may not be there again")
        if again or failed:
            log.warning(
                "Redis had lost %d completions of the last seconds; %d are there again", again + failed, again
            )

    async def _lost(self, entries: list[Remembered]) -> list[tuple[Remembered, bool]]:
        """Those that Redis has not, and whether the books know an end of them."""
        states = await asyncio.gather(*(self._exists(entry.id) for entry in entries))
        lost = [entry for entry, there in zip(entries, states, strict=True) if not there]
        if not lost:
            return []
        with contextlib.suppress(SQLAlchemyError):
            over = await asyncio.to_thread(self._books.over_among, [entry.id for entry in lost])
            return [(entry, entry.id in over) for entry in lost]
        sure = asyncio.get_running_loop().time() - SURE_SECONDS
        return [(entry, False) for entry in lost if entry.at > sure]

    async def _exists(self, id: str) -> bool:
        keys = self._redis.keys(id)
        return bool(
            await self._redis.command(
                keys.partition, "EXISTS", keys.gen(id), keys.ptr(id), patience=RESTORE_SECONDS
            )
        )
