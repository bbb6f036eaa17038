"""From the partitions' ledger streams into the books, in bulk.

One leader per partition drains: it reads records, fetches the logs of the generations that ended, enters all of it in
one SQL transaction and only then, in one script that its lock fences, removes the records and gives the Redis keys
their TTL. A crash in between repeats the transaction, which changes nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

from schemas.records import Accepted, Ended, StoredLog, decode_record
from schemas.states import Queue
from stores.books import Books
from stores.chunklog import ChunkLog, LogState
from stores.redis import Redis
from stores.scripts import Rank, Scripts

#: The role whose lock a drain holds.
ROLE = "ledger"
#: Records of one transaction.
BATCH = 500
#: How long leadership lasts without renewal, in milliseconds.
LEADERSHIP_MS = 10_000


class Ledger:
    """Drains the ledgers of one key space. ``token`` names the process among those that would lead."""

    def __init__(
        self, redis: Redis, books: Books, *, token: str, log_ttl_interactive: float, log_ttl_bulk: float
    ) -> None:
        self._redis = redis
        self._books = books
        self._token = token
        self._scripts = Scripts(redis)
        self._log = ChunkLog(redis)
        self._ttl_ms = {
            Queue.INTERACTIVE.value: int(log_ttl_interactive * 1000),
            Queue.BULK.value: int(log_ttl_bulk * 1000),
        }

    async def lead(self, partition: int, rank: Rank = Rank.FIRST) -> bool:
        """Become or stay the partition's leader, for ``LEADERSHIP_MS``."""
        return await self._scripts.lead(partition, ROLE, self._token, LEADERSHIP_MS, rank)

    async def drain(self, partition: int) -> int:
        """Enter the oldest records of a partition that this process leads; how many there were, 0 where by now
        somebody else leads it and the records stay.

        Raises Unavailable, and SQLAlchemy's errors where the database is away: then the records stay.
        """
        keys = self._redis.keyspace[partition]
        rows: list[Any] = await self._redis.command(
            partition, "XRANGE", keys.ledger, "-", "+", "COUNT", BATCH
        )
        if not rows:
            return 0
        records = [decode_record(row[1][1]) for row in rows]
        ended = [r.generation for r in records if isinstance(r, Ended)]
        states = await asyncio.gather(*(self._log.state(g) for g in ended))
        present = {g: s for g, s in zip(ended, states, strict=True) if s is not None}
        logs = await self._logs(present)
        await asyncio.to_thread(self._books.apply, records, logs)
        ttls: dict[str, int] = {}
        for generation, state in present.items():
            ttl = self._ttl_ms.get(state.info.queue, self._ttl_ms[Queue.INTERACTIVE.value])
            own = self._redis.keys(generation)
            ttls |= {own.gen(generation): ttl, own.log(generation): ttl}
        ids = [row[0] for row in rows]
        return len(rows) if await self._scripts.settle(partition, ROLE, self._token, ids, ttls) else 0

    async def _logs(self, states: dict[str, LogState]) -> dict[str, StoredLog]:
        """The logs that the books are to keep: of a generation whose own completion is not stored, none is."""
        wanted = [g for g, s in states.items() if s.next > s.base and _stored(s.info)]
        logs = await asyncio.gather(*(self._log.whole(g, states[g]) for g in wanted))
        return dict(zip(wanted, logs, strict=True))


def _stored(info: Accepted) -> bool:
    return info.store
