"""Whether new work is let in: not while Redis is nearly full, nor while the books are far behind.

At its memory limit Redis would refuse the accept script anyway, but Celery's broker on it loses messages and its
workers end; so admission closes well before. What was accepted runs on, and readers read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import hiredis

from schemas.errors import Unavailable
from stores.redis import Node, Redis
from stores.wire import Arg

log = logging.getLogger("tailrace.admission")

#: The share of a node's ``maxmemory`` from which on nothing new is let in.
MEMORY_SHARE = 0.8
#: Between looks, in seconds, and how long a node may take to answer one.
LOOK_PAUSE = 1.0
LOOK_PATIENCE = 1.0
#: When those who are refused are told to come again, in seconds.
RETRY_AFTER = 10


class Admission:
    """``closed`` is why nothing new is let in, None while it is. A node that doesn't answer changes nothing."""

    def __init__(self, redis: Redis, *, ledger_limit: int) -> None:
        self._redis = redis
        self._limit = ledger_limit
        self.closed: str | None = None

    def check(self) -> None:
        """Raises Unavailable while nothing new is let in."""
        if self.closed is not None:
            raise Unavailable(
                f"{self.closed} What was accepted goes on. Try again later.",
                retry_after=RETRY_AFTER,
            )

    async def watch(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_PAUSE)
            await self.look()

    async def look(self) -> None:
        with contextlib.suppress(Unavailable, hiredis.ReplyError):
            seen = await asyncio.gather(*(self._look(*each) for each in self._redis.nodes().items()))
            was, self.closed = self.closed, self._reason(seen)
            if (was is None) != (self.closed is None):
                log.warning("admission %s", f"closed: {self.closed}" if self.closed else "is open again")

    async def _look(self, node: Node, partitions: list[int]) -> tuple[float, int]:
        """The share of its memory that a node uses, and the records on its ledgers."""
        commands: list[tuple[Arg, ...]] = [("INFO", "memory")]
        commands += [("XLEN", self._redis.keyspace[partition].ledger) for partition in partitions]
        info, *lengths = await self._redis.commands(partitions[0], commands, patience=LOOK_PATIENCE)
        return memory_share(info), sum(lengths)

    def _reason(self, seen: list[tuple[float, int]]) -> str | None:
        fullest = max(share for share, _ in seen)
        if fullest >= MEMORY_SHARE:
            return f"Redis uses {fullest:.0%} of its memory; new work waits until that is below {MEMORY_SHARE:.0%}."
        behind = sum(records for _, records in seen)
        if behind > self._limit:
            return f"The database is {behind:,} records behind; new work waits until that is at most {self._limit:,}."
        return None


def memory_share(info: bytes) -> float:
    """``used_memory`` as a share of ``maxmemory``, from INFO's section ``memory``; 0 where there is no limit."""
    fields = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    limit = int(fields.get(b"maxmemory", 0))
    return int(fields[b"used_memory"]) / limit if limit else 0.0
