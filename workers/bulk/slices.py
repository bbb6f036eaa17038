"""Slices of batches on the loop of the streams: all that this process has, and what they share.

A slice is believed to be this process's as long as it says so in SQL; whoever gets it after that finds in Redis and in
the books how far each row is, and does what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from secrets import token_hex

import httpx
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from producers.catalog import Catalog
from producers.sharing import Sharing
from schemas.batches import JOB_LEASE_MS
from schemas.errors import Unavailable
from schemas.messaging import Job
from schemas.prices import Prices
from schemas.providers import Providers
from schemas.settings import Settings
from stores.admission import Admission
from stores.answers import Answers
from stores.apikeys import ApiKeys
from stores.books import Books
from stores.cache import Cache, CacheLimits
from stores.chunklog import ChunkLog
from stores.flights import Flights
from stores.keylimits import KeyLimits
from stores.redis import Redis
from stores.scripts import Scripts
from stores.slices import Keep
from stores.slices import Slices as SliceTable
from workers.bulk.budgets import Budgets
from workers.bulk.ends import Ends
from workers.bulk.run import SliceRun
from workers.bulk.tools import Tools
from workers.generate import Generator

log = logging.getLogger("tailrace.batches")

#: Rows that a process streams at once.
STREAMS = 400
#: Between the times when a process says what it is at, and hears which batches are stopped, in seconds.
KEEP_PAUSE = 1.0


class Slices:
    """One for a worker process; everything here happens on its loop."""

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        scripts: Scripts,
        generator: Generator,
        providers: Providers,
        engine: Engine,
    ) -> None:
        table = SliceTable(engine)
        cache = Cache(engine)
        self._http = httpx.AsyncClient(timeout=5.0)
        self.catalog = Catalog(providers, self._http)
        self._tools = Tools(
            redis=redis,
            scripts=scripts,
            log=ChunkLog(redis),
            flights=Flights(redis),
            generator=generator,
            catalog=self.catalog,
            sharing=Sharing(redis, cache, CacheLimits.of(settings)),
            cache=cache,
            books=Books(engine),
            table=table,
            answers=Answers(engine),
            ends=Ends(table),
            budgets=Budgets(
                ApiKeys(engine),
                KeyLimits(redis, Books(engine), window_ms=int(settings.limit_window_seconds * 1000)),
                Prices(providers.providers),
            ),
            admission=Admission(redis, ledger_limit=settings.ledger_limit),
            streams=asyncio.Semaphore(STREAMS),
            answering=asyncio.Lock(),
        )
        self._runs: set[SliceRun] = set()
        self._keeping: asyncio.Task[None] | None = None
        self._stopping = False

    async def run(self, job: Job) -> str:
        """Do what there is to do of a slice. Returns what became of it, for Celery's view."""
        batch, first, token = job["batch"], job.get("first", 0), token_hex(8)
        try:
            until = await self._tools.redis.now_ms(0) + JOB_LEASE_MS
            taken = await asyncio.to_thread(self._tools.table.take, batch, first, job["token"], token, until)
        except (Unavailable, SQLAlchemyError) as error:
            log.warning("%s, rows from %d: left to be dealt again: %s", batch, first, error)
            return "unavailable"
        if taken is None:
            return "stale"
        run = SliceRun(self._tools, taken, again=job.get("again", True), on_idle=self._idle)
        if self._stopping:
            run.release()
        self._runs.add(run)
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.get_running_loop().create_task(self._keep())
        try:
            return await run.run()
        finally:
            self._runs.discard(run)
            await self._call()

    async def _idle(self, run: SliceRun) -> None:
        """Others may have its place while it waits for the books."""
        with contextlib.suppress(Unavailable, SQLAlchemyError):  # it is said again soon
            until = await self._tools.redis.now_ms(0) + JOB_LEASE_MS
            await asyncio.to_thread(self._tools.table.keep, [_keep_of(run)], until)
            await self._call()

    async def _call(self) -> None:
        """Tell the leader that there may be something to deal."""
        control = self._tools.redis.keyspace[0].control
        with contextlib.suppress(Unavailable):  # then it looks a little later
            await self._tools.redis.command(0, "SPUBLISH", control, "slices", patience=0)

    def release(self) -> None:
        """The process is to stop: begin no more, and hand every slice back."""
        self._stopping = True
        for run in self._runs:
            run.release()

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        self._tools.ends.close()
        await self._http.aclose()

    async def _keep(self) -> None:
        """Say what is this process's, and hear what isn't any more or is to stop."""
        failing = False
        while self._runs:
            held = [*self._runs]
            try:
                await self._tools.admission.look()
                until = await self._tools.redis.now_ms(0) + JOB_LEASE_MS
                now = asyncio.get_running_loop().time()
                kept = await asyncio.to_thread(self._tools.table.keep, [_keep_of(run) for run in held], until)
                for run in held:
                    run.kept(now, stopped=kept.get((run.slice.batch, run.slice.first)))
                failing = False
            except (Unavailable, SQLAlchemyError) as error:
                if not failing:
                    log.warning("slices can't be kept: %s", error)
                failing = True
            await asyncio.sleep(KEEP_PAUSE)


def _keep_of(run: SliceRun) -> Keep:
    slice, (completed, failed) = run.slice, run.counts
    return Keep(slice.batch, slice.first, slice.token, run.concurrency, completed, failed)
