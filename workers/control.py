"""The control thread of a worker process: lease renewal, the ledger drain, the end of generations whose worker died.

It has an event loop of its own, so nothing here waits behind streams. Each partition's ledger and lease index have one
leader among all worker processes, by an expiring lock that fences what it does. A worker for bulk goes before one whose
streams somebody watches: what a leader does takes the interpreter from them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import hiredis
from sqlalchemy.exc import SQLAlchemyError

from schemas.errors import Failure, TailraceError
from schemas.records import Ended
from schemas.settings import Settings
from schemas.states import State
from stores.books import Books
from stores.chunklog import ChunkLog
from stores.ledger import BATCH, LEADERSHIP_MS, Ledger
from stores.redis import Redis
from stores.scripts import EndResult, Rank, Renewal, Scripts

log = logging.getLogger("tailrace.control")

#: Between looks at an empty ledger, in seconds.
DRAIN_PAUSE = 0.2
#: Between looks for leases that ran out, in seconds.
REAP_PAUSE = 1.0
#: How long Redis must have been reachable beyond one lease before anything is reaped, in seconds.
REAP_MARGIN = 2.0
#: After a failure, in seconds.
FAILURE_PAUSE = 1.0


class Control:
    """``held`` is the generator's; ``on_renewal`` is told of leases that were lost or are to be cancelled."""

    def __init__(
        self,
        settings: Settings,
        books: Books,
        *,
        token: str,
        rank: Rank,
        held: dict[str, int],
        on_renewal: Callable[[str, int, Renewal], None],
    ) -> None:
        self._settings = settings
        self._books = books
        self._token = token
        self._rank = rank
        self._held = held
        self._on_renewal = on_renewal
        self._led: set[int] = set()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._main, name="control", daemon=True)
        self._reachable_since: float | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout)

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        redis = await Redis.open(
            self._settings.redis_url, partitions=self._settings.partitions, patience=float("inf")
        )
        self._redis, self._scripts, self._log = redis, Scripts(redis), ChunkLog(redis)
        self._ledger = Ledger(
            redis,
            self._books,
            token=self._token,
            log_ttl_interactive=self._settings.log_ttl_interactive,
            log_ttl_bulk=self._settings.log_ttl_bulk,
        )
        self._reachable_since = self._loop.time()
        jobs = [
            asyncio.create_task(self._forever(job, pause))
            for job, pause in (
                (self._renew, self._settings.renew_seconds),
                (self._lead, LEADERSHIP_MS / 3000),
                (self._drain, DRAIN_PAUSE),
                (self._reap, REAP_PAUSE),
            )
        ]
        await self._stop.wait()
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        redis.close()

    async def _forever(self, job: Callable[[], Coroutine[Any, Any, None]], pause: float) -> None:
        failing = False
        while True:
            try:
                await job()
                if failing:
                    log.warning("%s works again", job.__name__.strip("_"))
                failing = False
                await asyncio.sleep(pause)
            except (TailraceError, SQLAlchemyError, hiredis.ReplyError) as error:
                self._reachable_since = (
                    None if not isinstance(error, SQLAlchemyError) else self._reachable_since
                )
                if not failing:
                    log.warning("%s: %s", job.__name__.strip("_"), error)
                failing = True
                await asyncio.sleep(FAILURE_PAUSE)
            except Exception:
                log.exception("%s failed", job.__name__.strip("_"))
                await asyncio.sleep(FAILURE_PAUSE)

    async def _renew(self) -> None:
        by_partition: dict[int, dict[str, int]] = {}
        for generation, attempt in list(self._held.items()):
            by_partition.setdefault(self._redis.partition(generation), {})[generation] = attempt
        lease_ms = int(self._settings.lease_seconds * 1000)
        for partition, held in by_partition.items():
            for generation, renewal in (
                await self._scripts.renew(partition, held, lease_ms=lease_ms)
            ).items():
                if renewal is not Renewal.OK:
                    self._on_renewal(generation, held[generation], renewal)
        if self._reachable_since is None:
            await self._redis.command(0, "PING")
            self._reachable_since = asyncio.get_running_loop().time()

    async def _lead(self) -> None:
        for partition in range(self._redis.partitions):
            if await self._ledger.lead(partition, self._rank):
                self._led.add(partition)
            else:
                self._led.discard(partition)

    async def _drain(self) -> None:
        for partition in list(self._led):
            while await self._ledger.drain(partition) == BATCH:
                pass

    async def _reap(self) -> None:
        """End generations whose lease ran out: every log gets an end, also when its worker is dead.

        Not before Redis has been reachable for a lease and a margin: an outage must not look like dead workers.
        """
        now = asyncio.get_running_loop().time()
        if (
            self._reachable_since is None
            or now - self._reachable_since < self._settings.lease_seconds + REAP_MARGIN
        ):
            return
        for partition in list(self._led):
            keys = self._redis.keyspace[partition]
            seconds, micros = await self._redis.command(partition, "TIME")
            due = int(seconds) * 1000 + int(micros) // 1000
            expired = await self._redis.command(
                partition, "ZRANGE", keys.lease, "-inf", due, "BYSCORE", "LIMIT", 0, BATCH
            )
            for generation in expired:
                await self._end_lost(generation.decode())

    async def _end_lost(self, generation: str) -> None:
        state = await self._log.state(generation)
        if state is None or state.ended:
            return
        ended = Ended(
            generation=generation,
            state=State.FAILED.value,
            provider=state.info.provider,
            model=state.info.resolved_model,
            failure=Failure(
                "worker_lost",
                "The worker that streamed this answer was lost. Send the request again.",
                status=502,
            ),
        )
        if await self._scripts.end(ended, state.attempt, expired_only=True) is EndResult.ENDED:
            log.warning("%s: lease of attempt %d ran out, ended as failed", generation, state.attempt)
