"""The control thread of a worker process: lease renewal, recovery, and for the partitions that it leads the ledger
drain, the reaper, the reconciler and the dealing of batches.

It has an event loop of its own, so nothing here waits behind streams. Each partition has one leader among all worker
processes, by an expiring lock that fences what it does. A worker for bulk goes before one whose streams somebody
watches: what a leader does takes the interpreter from them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import hiredis
from sqlalchemy.exc import SQLAlchemyError

from producers.publish import make_publisher
from schemas.errors import TailraceError
from schemas.messaging import WakeUp, wake_up
from schemas.providers import Providers
from schemas.settings import Settings
from schemas.states import Queue
from stores.books import Books
from stores.cache import CacheLimits
from stores.dealing import Dealing
from stores.ledger import BATCH, LEADERSHIP_MS, Ledger
from stores.outcomes import Calm, Crashes, Rank, Renewal
from stores.permits import Permits
from stores.redis import Redis
from stores.scripts import Scripts
from workers.bulk.dealer import BatchDealer, register, unregister
from workers.dealing import Dealer
from workers.reaper import Reaper
from workers.reconcile import Reconciler
from workers.solo import Nursery

log = logging.getLogger("tailrace.control")

#: Between looks at an empty ledger, in seconds.
DRAIN_PAUSE = 0.2
#: Between looks for leases that ran out and deadlines that passed, in seconds.
REAP_PAUSE = 1.0
#: How long Redis must have been reachable beyond one lease before anything is reaped, in seconds.
REAP_MARGIN = 2.0
#: Between looks at parked work, in seconds.
DISPATCH_PAUSE = 0.25
#: Between looks for messages that were lost, in seconds.
MESSAGES_PAUSE = 1.0
#: Between comparisons of the books with Redis, in seconds.
BOOKS_PAUSE = 60.0
#: Between the times when a worker for bulk says that it lives, in seconds.
REGISTER_PAUSE = 2.0
#: Between looks at open batches, in seconds, while there are any.
BATCHES_PAUSE = 0.25
#: Between looks for work to recover, in seconds, where nobody calls.
RECOVER_PAUSE = 1.0
#: Streams that a process may recover at once, beyond what its pool runs.
RECOVERIES = 64
#: Processes that a worker may have for suspects at once, of some 5 MB each.
SUSPECTS = 64
#: How long suspects wait for the leader to take them before other workers do, in milliseconds: one nursery will do.
LEADERS_SUSPECTS_MS = 2000
#: How long these may take to hand their generations on when the worker is stopped, in seconds.
LEAVE_SECONDS = 5.0
#: After a failure, in seconds.
FAILURE_PAUSE = 1.0
#: How long a round waits for a partition whose node doesn't answer, in seconds.
PARTITION_SECONDS = 1.0


class Control:
    """``bulk``: this worker takes batches. ``slots`` is how many streams the pool takes; ``held`` is the generator's;
    ``begin`` starts an attempt on the loop of the streams and tells of its end there; ``on_renewal`` is told of leases
    that were lost or are to be cancelled.
    """

    def __init__(
        self,
        settings: Settings,
        books: Books,
        providers: Providers,
        *,
        token: str,
        bulk: bool,
        slots: int,
        held: dict[str, str],
        begin: Callable[[WakeUp, Callable[[str | BaseException], None]], None],
        on_renewal: Callable[[str, str, Renewal], None],
    ) -> None:
        self._settings = settings
        self._books = books
        self._providers = providers
        self._token = token
        self._bulk = bulk
        self._rank = Rank.FIRST if bulk else Rank.SECOND
        self._slots = slots
        self._held = held
        self._begin = begin
        self._on_renewal = on_renewal
        self._led: set[int] = set()
        self._under_way: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._errors: dict[str, BaseException] = {}
        self._recovering: set[str] = set()
        self._suspects: set[str] = set()
        self._nursery = Nursery()
        self._draining = False
        self._stop: asyncio.Event | None = None
        self._called: asyncio.Event | None = None
        self._slice_over: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dealer: Dealer | None = None
        self._thread = threading.Thread(target=self._main, name="control", daemon=True)
        self._leaving = threading.Thread(target=self._nursery.stop, args=(LEAVE_SECONDS,), name="nursery")

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        self._tell(self._stop)
        self._thread.join(timeout)
        if self._draining:
            self._leaving.join()

    def drain(self) -> None:
        """Recover nothing more; suspects are handed on. From any thread, and returns at once."""
        self._draining = True
        self._leaving.start()

    def recover(self) -> None:
        """There is work to recover; from any thread."""
        self._tell(self._called)

    def deal(self) -> None:
        """A slice of a batch is over, somewhere; from any thread."""
        self._tell(self._slice_over)

    def wake(self, provider: str, generations: list[str]) -> None:
        """The provider has permits for them; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._woken, provider, generations)

    def _woken(self, provider: str, generations: list[str]) -> None:
        if self._dealer is not None:
            self._dealer.wake(provider, generations)

    def _tell(self, event: asyncio.Event | None) -> None:
        if self._loop is not None and event is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(event.set)

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._called, self._slice_over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        settings = self._settings
        redis = await Redis.open(settings.redis_url, partitions=settings.partitions, patience=float("inf"))
        self._redis, self._scripts = redis, Scripts(redis)
        self._ledger = Ledger(
            redis,
            self._books,
            token=self._token,
            log_ttl_interactive=settings.log_ttl_interactive,
            log_ttl_bulk=settings.log_ttl_bulk,
            limits=CacheLimits.of(settings),
        )
        lease_ms = int(settings.lease_seconds * 1000)
        renew_ms, margin_ms = int(settings.renew_seconds * 1000), int(REAP_MARGIN * 1000)
        self._calm = Calm(lasts_ms=lease_ms + margin_ms, gap_ms=max(lease_ms - renew_ms, renew_ms))
        self._reaper = Reaper(
            redis, lease_ms=lease_ms, crashes=Crashes(settings.max_crashes), calm=self._calm
        )
        publisher = make_publisher(settings)
        self._reconciler = Reconciler(redis, self._books, publisher)
        permits = Permits(redis, window_ms=int(settings.limit_window_seconds * 1000))
        dealer = self._dealer = Dealer(redis, permits, self._providers, self._reconciler)
        dealing = Dealing(self._books.engine)
        self._batch_dealer = BatchDealer(redis, dealing, publisher, self._providers.providers)
        jobs = [
            asyncio.create_task(self._forever(job, pause))
            for job, pause in (
                (self._renew, settings.renew_seconds),
                (self._recover, 0.0),
                (self._lead, min(LEADERSHIP_MS / 3000, self._calm.gap_ms / 2000)),
                (self._drain, DRAIN_PAUSE),
                (self._reap, REAP_PAUSE),
                (self._expire, REAP_PAUSE),
                (self._dispatch, DISPATCH_PAUSE),
                (self._messages, MESSAGES_PAUSE),
                (self._compare, BOOKS_PAUSE),
                (self._register, REGISTER_PAUSE),
                (self._batches, 0.0),
            )
        ]
        await self._stop.wait()
        jobs += self._under_way.values()
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await dealer.close()
        await publisher.close()
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
                if not failing:
                    log.warning("%s: %s", job.__name__.strip("_"), error)
                failing = True
                await asyncio.sleep(FAILURE_PAUSE)
            except Exception:
                log.exception("%s failed", job.__name__.strip("_"))
                await asyncio.sleep(FAILURE_PAUSE)

    async def _renew(self) -> None:
        by_partition: dict[int, dict[str, str]] = {}
        for generation, fence in list(self._held.items()):
            by_partition.setdefault(self._redis.partition(generation), {})[generation] = fence
        lease_ms = int(self._settings.lease_seconds * 1000)

        async def renew(partition: int) -> None:
            held = by_partition[partition]
            renewed = await self._scripts.renew(partition, held, lease_ms=lease_ms)
            for generation, renewal in renewed.items():
                if renewal is not Renewal.OK:
                    self._on_renewal(generation, held[generation], renewal)

        await self._each("renew", by_partition, renew)

    async def _each(
        self, what: str, partitions: Iterable[int], job: Callable[[int], Coroutine[Any, Any, None]]
    ) -> None:
        """A job for each partition, by itself: one whose node is away holds up no other. Where it is still under way it
        is not begun again. Raises the first error since the last round."""
        tasks: list[asyncio.Task[None]] = []
        for partition in partitions:
            if (what, partition) not in self._under_way:
                task = asyncio.create_task(job(partition))
                self._under_way[what, partition] = task
                task.add_done_callback(functools.partial(self._over, what, partition))
                tasks.append(task)
        if tasks:
            await asyncio.wait(tasks, timeout=PARTITION_SECONDS)
        error = self._errors.pop(what, None)
        if error is not None:
            raise error

    def _over(self, what: str, partition: int, task: asyncio.Task[None]) -> None:
        self._under_way.pop((what, partition), None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._errors.setdefault(what, error)

    async def _recover(self) -> None:
        """Claim work that waits for another attempt straight into the loop of the streams."""
        assert self._called is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._called.wait(), RECOVER_PAUSE)
        self._called.clear()
        await self._each("recover", range(self._redis.partitions), self._recover_from)
        await self._recover_suspects()

    async def _recover_from(self, partition: int) -> None:
        waiting = await self._redis.command(
            partition, "ZRANGE", self._redis.keyspace[partition].recovery, 0, self._slots + RECOVERIES - 1
        )
        for generation in waiting:
            if len(self._held.keys() | self._recovering) >= self._slots + RECOVERIES:
                return
            self._take_over(generation.decode())

    async def _recover_suspects(self) -> None:
        """Generations that may be what killed their workers get a process of their own."""
        if self._suspects:
            self._suspects.difference_update(self._nursery.finished())
            if not self._nursery.alive:
                self._suspects.clear()
        await self._each("suspects", range(self._redis.partitions), self._recover_suspects_from)

    async def _recover_suspects_from(self, partition: int) -> None:
        waiting = await self._redis.command(
            partition, "ZRANGE", self._redis.keyspace[partition].suspects, 0, SUSPECTS - 1, "WITHSCORES"
        )
        latest = float("inf")
        if waiting and partition not in self._led:
            latest = await self._redis.now_ms(partition) - LEADERS_SUSPECTS_MS
        for member, since in waiting:
            suspect = member.decode()
            if suspect in self._suspects or float(since) > latest:
                continue
            if not self._draining and len(self._suspects) < SUSPECTS:
                self._nursery.start(suspect)
                self._suspects.add(suspect)

    def _take_over(self, generation: str) -> None:
        if generation in self._recovering:
            return
        self._recovering.add(generation)

        def ended(_: str | BaseException) -> None:
            self._recovering.discard(generation)

        self._begin(wake_up(generation, Queue.INTERACTIVE.value, 0), ended)

    async def _lead(self) -> None:
        async def lead(partition: int) -> None:
            if await self._ledger.lead(partition, self._rank, self._calm):
                self._led.add(partition)
            elif partition in self._led:
                self._led.discard(partition)
                self._reconciler.forget(partition)

        await self._each("lead", range(self._redis.partitions), lead)

    async def _drain(self) -> None:
        async def drain(partition: int) -> None:
            while await self._ledger.drain(partition) == BATCH:
                pass

        await self._each("drain", list(self._led), drain)

    async def _reap(self) -> None:
        await self._each("reap", list(self._led), self._reaper.reap)

    async def _expire(self) -> None:
        await self._each("expire", list(self._led), self._reaper.expire)

    async def _dispatch(self) -> None:
        async def dispatch(partition: int) -> None:
            await self._reconciler.dispatch(partition)
            if self._dealer is not None:
                await self._dealer.deal(partition)

        await self._each("dispatch", list(self._led), dispatch)

    async def _messages(self) -> None:
        await self._each("messages", list(self._led), self._reconciler.messages)

    async def _compare(self) -> None:
        if 0 in self._led:
            await self._reconciler.books()

    async def _register(self) -> None:
        if self._bulk and not self._draining:
            await register(self._redis, self._token, self._slots)
        elif self._bulk:
            await unregister(self._redis, self._token, self._slots)

    async def _batches(self) -> None:
        assert self._slice_over is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._slice_over.wait(), BATCHES_PAUSE)
        called = self._slice_over.is_set()
        self._slice_over.clear()
        if 0 in self._led:
            await self._batch_dealer.deal(called=called)
