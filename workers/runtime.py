"""What a worker process holds: one asyncio loop for the bytes of all its streams, and the control thread."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from secrets import token_hex
from typing import Any

import uvloop
from sqlalchemy import Engine

from consumers.hub import Hub
from schemas.batches import JOB_LEASE_MS
from schemas.errors import Unavailable
from schemas.keys import Keys
from schemas.messaging import STOPPING, Job, WakeUp
from schemas.prices import Prices
from schemas.providers import Resolved
from schemas.records import VERSION
from schemas.settings import Settings
from stores.books import Books
from stores.config import read_providers
from stores.flights import Flights
from stores.outcomes import Crashes, Renewal
from stores.redis import Redis
from stores.scripts import Scripts
from stores.slices import Slices as SliceTable
from stores.sql import make_engine
from stores.wire import WireError
from workers.bulk.slices import Slices
from workers.control import Control
from workers.generate import Generator

log = logging.getLogger("tailrace.worker")

#: How long a thread may keep the interpreter from the others, in seconds. Celery's thread and the streams' share it;
#: with Python's own 5 ms each read of a stream could wait that long.
SWITCH_INTERVAL = 0.0002
#: How long running streams may go on after SIGTERM, in seconds; then other workers go on with them.
GRACE = 4.0
#: How long they may then take to say so in Redis, in seconds; a lease that runs out says it for those that can't.
LAST_WORDS = 5.0

#: How often a worker that starts tries to listen for cancels, a second apart.
LISTEN_TRIES = 30


class Runtime:
    """Started once a process, before its first task; stopped after its last."""

    def __init__(self, settings: Settings, *, slots: int, bulk: bool = False) -> None:
        self.settings = settings
        self._slots = slots
        self._bulk = bulk
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._providers = read_providers(settings)
        self.engine: Engine = make_engine(settings.database_url, connect=False)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="streams", daemon=True)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._stopping = False
        self._drainer = threading.Thread(target=self._drain, name="drain", daemon=True)
        self._attempts: set[asyncio.Task[str]] = set()

    def start(self) -> None:
        """Raises ConfigurationError and Unavailable."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        gc.freeze()  # what is there now stays: a full collection need not look at it each time

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._open())
        except BaseException as error:  # noqa: BLE001 (start raises it in the thread that asked)
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        self._loop.run_forever()
        self._loop.close()

    async def _open(self) -> None:
        self._redis = await Redis.open(
            self.settings.redis_url, partitions=self.settings.partitions, patience=30.0
        )
        scripts = Scripts(self._redis)
        self.generator = Generator(
            scripts,
            self._providers,
            worker=self.worker,
            lease_ms=int(self.settings.lease_seconds * 1000),
            crashes=Crashes(self.settings.max_crashes),
            window_ms=int(self.settings.limit_window_seconds * 1000),
        )
        self._slices = Slices(
            self.settings, self._redis, scripts, self.generator, self._providers, self.engine
        )
        self._hub = Hub(self._redis)
        for keys in self._redis.keyspace:
            await self._listen(keys)
        self._control = Control(
            self.settings,
            Books(self.engine, prices=Prices(self._providers.providers)),
            self._providers,
            token=self.worker,
            bulk=self._bulk,
            slots=self._slots,
            held=self.generator.held,
            begin=self.begin,
            on_renewal=lambda g, f, r: self._loop.call_soon_threadsafe(self._on_renewal, g, f, r) and None,
        )
        self.generator.gate.on_woken = self._control.wake
        self._control.start()

    async def _listen(self, keys: Keys) -> None:
        """Raises Unavailable where Redis stays away."""
        for _ in range(LISTEN_TRIES):
            try:
                return await self._hub.listen(keys.partition, keys.control, self._on_control)
            except WireError as error:
                log.warning("Redis went away while the worker started: %s", error)
                await asyncio.sleep(1.0)
        raise Unavailable("Redis is not available.")

    def begin(self, message: WakeUp, on_end: Callable[[str | BaseException], None]) -> None:
        """One attempt at one generation, from any thread. ``on_end`` is called on the loop of the streams, with what
        became of it; STOPPING where none was made, because this process is to stop."""
        try:
            self._loop.call_soon_threadsafe(self._begin, message, on_end)
        except RuntimeError:  # the loop is closed by now
            on_end(STOPPING)

    def _begin(self, message: WakeUp, on_end: Callable[[str | BaseException], None]) -> None:
        if self._stopping:
            on_end(STOPPING)
            return
        if message["v"] > VERSION:
            log.error("a message of version %s: update this worker", message["v"])
            on_end("newer")
            return
        queue, seq = message["queue"], message["seq"]
        partition = message.get("partition")
        self._follow(
            self.generator.run(message["id"], queue, seq)
            if partition is None
            else self.generator.probed(partition, queue, seq),
            on_end,
        )

    def begin_slice(self, job: Job, on_end: Callable[[str | BaseException], None]) -> None:
        """A slice of a batch, as ``begin``."""
        try:
            self._loop.call_soon_threadsafe(self._begin_slice, job, on_end)
        except RuntimeError:  # the loop is closed by now
            on_end(STOPPING)

    def _begin_slice(self, job: Job, on_end: Callable[[str | BaseException], None]) -> None:
        if self._stopping:
            on_end(STOPPING)
        elif job["v"] > VERSION:
            log.error("a message of version %s: update this worker", job["v"])
            on_end("newer")
        else:
            self._follow(self._slices.run(job), on_end)

    def _follow(self, work: Coroutine[Any, Any, str], on_end: Callable[[str | BaseException], None]) -> None:
        attempt = self._loop.create_task(work)
        self._attempts.add(attempt)

        def done(attempt: asyncio.Task[str]) -> None:
            self._attempts.discard(attempt)
            error = None if attempt.cancelled() else attempt.exception()
            on_end("stopped" if attempt.cancelled() else error if error is not None else attempt.result())

        attempt.add_done_callback(done)

    def submit(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def stopping(self) -> bool:
        """A job in a thread is to end soon; another worker does it."""
        return self._stopping

    def now_ms(self) -> int:
        """Redis's time, for a thread. Raises Unavailable."""
        return self.submit(self._redis.now_ms(0)).result()

    def resolve(self, model: str) -> Resolved:
        """What a model name means, for a thread. Raises ModelNotFound."""
        return self.submit(self._slices.catalog.resolve(model)).result()

    def take_job(self, batch: str, token: str) -> str | None:
        """A batch's own job for whoever brings its token: the token from now on; None where it is another's."""
        own = token_hex(8)
        until = self.now_ms() + JOB_LEASE_MS
        return own if SliceTable(self.engine).take_job(batch, token, own, until) else None

    def books(self) -> Books:
        return Books(self.engine)

    def uncache(self, fingerprints: Sequence[str]) -> None:
        """Drop Redis's copies of results that are gone. Raises Unavailable."""
        self.submit(Flights(self._redis).cool(*fingerprints)).result()

    def drain(self) -> None:
        """SIGTERM: let running streams end for a while, then hand them on. Returns at once."""
        if not self._stopping:
            self._stopping = True
            self._control.drain()
            self._loop.call_soon_threadsafe(self._slices.release)
            self._drainer.start()

    def _drain(self) -> None:
        until = time.monotonic() + GRACE
        while self.generator.held and time.monotonic() < until:
            time.sleep(0.05)
        self._loop.call_soon_threadsafe(self.generator.release)

    def stop(self) -> None:
        """When no new task comes: see the running ones off, whose pool waits for them without bound."""
        self.drain()
        self._drainer.join()
        self.submit(self._see_off()).result()
        self._control.stop()
        self.submit(self._close()).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self.engine.dispose()

    async def _see_off(self) -> None:
        if self._attempts:
            _, late = await asyncio.wait(self._attempts, timeout=LAST_WORDS)
            for attempt in late:
                attempt.cancel()

    async def _close(self) -> None:
        await self._hub.close()
        await self._slices.close()
        await self.generator.close()
        self._redis.close()

    def _on_control(self, payload: bytes) -> None:
        verb, *rest = payload.decode().split(" ")
        if verb == "cancel":
            generation, attempt = rest
            self.generator.cancel(generation, attempt)
        elif verb == "recover":
            self._control.recover()
        elif verb == "slices":
            self._control.deal()
        elif verb == "circuits":
            self.generator.circuits.look()

    def _on_renewal(self, generation: str, fence: str, renewal: Renewal) -> None:
        if renewal is Renewal.CANCEL_ASKED:
            self.generator.cancel(generation, fence)
        else:
            self.generator.lost(generation, fence)
