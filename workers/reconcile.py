"""What a partition's leader puts right: messages that were lost, work whose time has come, and completions of the books
that Redis has lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field

from producers.publish import Publisher
from schemas.errors import Failure, Unavailable
from schemas.records import Ended
from schemas.states import Queue, State
from stores.books import Books
from stores.chunklog import ChunkLog
from stores.redis import Redis
from stores.scripts import Scripts

log = logging.getLogger("tailrace.control")

#: Generations of one look.
BATCH = 500
#: After this long in the outbox a message is taken to be lost on its way to the broker, in seconds.
OUTBOX_AGE = 5.0
#: After this long below the mark a message is taken to be lost on its way from the broker, in seconds.
LOST_AGE = 10.0
#: After this long without a claim a queue that has work gets a probe; and another one, where that doesn't come out.
PROBE_AGE, PROBE_AGAIN = 2.0, 60.0
#: Completions that the books believe to be alive are looked for in Redis once they are this old, in milliseconds.
BOOKS_AGE_MS = 60_000

#: What ends a completion of which Redis has nothing.
LOST = Failure("lost", "Redis lost this request before it was answered. Send it again.", status=502)


@dataclass(slots=True)
class _Watch:
    """What the leader has seen of a queue, by its own clock: nothing here is needed by the next leader."""

    below: dict[tuple[str, int], float] = field(default_factory=dict[tuple[str, int], float])
    oldest: tuple[int, float] = (0, 0.0)
    probe: tuple[int, float] = (0, 0.0)


class Reconciler:
    def __init__(self, redis: Redis, books: Books, publisher: Publisher) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._log = ChunkLog(redis)
        self._books = books
        self._publisher = publisher
        self._watches: dict[tuple[int, str], _Watch] = {}

    async def dispatch(self, partition: int) -> None:
        """Parked work whose time has come goes back to its queue. Raises Unavailable."""
        keys = self._redis.keyspace[partition]
        now = await self._redis.now_ms(partition)
        due = await self._redis.command(
            partition, "ZRANGE", keys.parked, "-inf", now, "BYSCORE", "LIMIT", 0, BATCH
        )
        for member in due:
            generation = member.decode()
            queue = await self._redis.command(partition, "HGET", keys.gen(generation), "queue")
            await self._requeue(generation, (queue or Queue.INTERACTIVE.value.encode()).decode())

    async def wake(self, generation: str, queue: str) -> None:
        """Parked work goes back to its queue before its time. Raises Unavailable."""
        seq = await self._scripts.requeue(generation, queue, early=True)
        if seq:
            await self._publish(generation, queue, seq)

    async def messages(self, partition: int) -> None:
        """Messages that never reached the broker, or never left it for a worker, are put again. Raises Unavailable."""
        await self._outbox(partition)
        for queue in Queue:
            await self._lost(partition, queue.value)
            await self._probe(partition, queue.value)

    def forget(self, partition: int) -> None:
        """Somebody else leads the partition."""
        for queue in Queue:
            self._watches.pop((partition, queue.value), None)

    async def books(self) -> None:
        """End what the books believe to be alive and Redis has lost. Raises Unavailable and SQLAlchemy's errors."""
        before = time.time_ns() // 1_000_000 - BOOKS_AGE_MS
        after = ""
        while rows := await asyncio.to_thread(self._books.unsettled, before, after, BATCH):
            after = rows[-1].id
            states = await asyncio.gather(*(self._log.state(row.generation) for row in rows))
            gone = [row.id for row, state in zip(rows, states, strict=True) if state is None]
            # What was settled and left Redis between the two looks is not lost.
            still = await asyncio.to_thread(self._books.unsettled_among, gone)
            ended = [
                Ended(
                    generation=row.generation,
                    state=State.FAILED.value,
                    provider=row.provider,
                    model=row.resolved_model,
                    created_ms=row.created_ms,
                    ended_ms=time.time_ns() // 1_000_000,
                    failure=LOST,
                )
                for row in rows
                if row.id in still
            ]
            if ended:
                log.error("%d completions are lost: Redis has nothing of them", len(ended))
                await asyncio.to_thread(self._books.apply, ended, {})

    # Messages

    async def _requeue(self, generation: str, queue: str, lost: int = 0) -> None:
        seq = await self._scripts.requeue(generation, queue, lost)
        if seq:
            await self._publish(generation, queue, seq)

    async def _publish(self, generation: str, queue: str, seq: int) -> None:
        await self._publisher.publish(generation, queue, seq)
        with contextlib.suppress(Unavailable):  # then it is put once more, for nothing
            await self._scripts.published(generation)

    async def _outbox(self, partition: int) -> None:
        keys = self._redis.keyspace[partition]
        now = await self._redis.now_ms(partition)
        cursor = b"0"
        while True:
            cursor, fields = await self._redis.command(
                partition, "HSCAN", keys.outbox, cursor, "COUNT", BATCH
            )
            for name, value in zip(fields[::2], fields[1::2], strict=True):
                queue, seq, put_ms = value.decode().split(" ")
                if now - int(put_ms) >= OUTBOX_AGE * 1000:
                    generation = name.decode()
                    log.warning("%s: its message was never put, or nobody noted it", generation)
                    await self._publish(generation, queue, int(seq))
            if cursor == b"0":
                return

    async def _lost(self, partition: int, queue: str) -> None:
        """Later messages of the queue have been taken, and these weren't."""
        keys = self._redis.keyspace[partition]
        watch = self._watch(partition, queue)
        mark = int(await self._redis.command(partition, "GET", keys.mark(queue)) or 0)
        below = await self._redis.command(
            partition, "ZRANGE", keys.queued(queue), "-inf", mark, "BYSCORE", "LIMIT", 0, BATCH, "WITHSCORES"
        )
        now = time.monotonic()
        seen = {(member.decode(), int(float(score))) for member, score in below}
        watch.below = {entry: watch.below.get(entry, now) for entry in seen}
        for (generation, seq), since in list(watch.below.items()):
            if now - since >= LOST_AGE:
                log.warning("%s: message %d of '%s' was lost, it is put again", generation, seq, queue)
                await self._requeue(generation, queue, seq)

    async def _probe(self, partition: int, queue: str) -> None:
        """Keep a numbered message in a queue that has work and sees no claim, so that the mark moves there too."""
        keys = self._redis.keyspace[partition]
        watch = self._watch(partition, queue)
        first = await self._redis.command(partition, "ZRANGE", keys.queued(queue), 0, 0, "WITHSCORES")
        if not first:
            return
        oldest, now = int(float(first[0][1])), time.monotonic()
        if watch.oldest[0] != oldest:
            watch.oldest = (oldest, now)
        mark = int(await self._redis.command(partition, "GET", keys.mark(queue)) or 0)
        probe, sent = watch.probe
        if oldest <= mark or now - watch.oldest[1] < PROBE_AGE or (probe > mark and now - sent < PROBE_AGAIN):
            return
        seq = int(await self._redis.command(partition, "INCR", keys.seq(queue)))
        watch.probe = (seq, now)
        await self._publisher.probe(partition, queue, seq)

    def _watch(self, partition: int, queue: str) -> _Watch:
        return self._watches.setdefault((partition, queue), _Watch())
