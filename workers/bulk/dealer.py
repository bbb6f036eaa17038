"""Dealing what batches need to the workers: their validation, their slices, their files.

The leader of partition 0 does. What it knows is in SQL, so that a crash loses nothing: a job is somebody's until a
time, which whoever is at it moves on; past it, it is dealt again. What is remembered here is whose turn it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import TypeVar

import msgspec

from producers.publish import Publisher
from schemas.batches import FINALIZE, JOB_LEASE_MS, SLICE, VALIDATE, BatchStatus, Stopped
from schemas.errors import Unavailable
from schemas.messaging import Job, job, slice_job
from schemas.providers import Provider
from schemas.states import Queue
from stores.dealing import Counted, Deal, Dealing, OpenBatch, SliceRow
from stores.redis import Redis
from workers.bulk.fair import RoundRobin

log = logging.getLogger("tailrace.batches")

#: Between looks at the open batches, in seconds; and while there are none.
PAUSE, IDLE = 0.25, 1.0
#: Slices of one provider that a worker for bulk has at once.
PLACES = 4
#: Rows that may wait for a provider which has a limit of calls at once.
IN_LINE = 4
#: A worker for bulk is believed to live so long after it said so, in milliseconds.
ALIVE_MS = 10_000
#: How long the key with the workers lasts without any, in milliseconds.
WORKERS_TTL_MS = 60_000
#: Between counts of how many rows of each batch failed, in seconds; and how many must have ended before they count.
COUNT_PAUSE, COUNT_LEAST = 1.0, 100

T = TypeVar("T")


class Capacity(msgspec.Struct, frozen=True):
    """What the living workers for bulk can take."""

    workers: int
    slots: int

    @property
    def slices(self) -> int:
        """A quarter of the slots is for jobs, and for rows that were parked."""
        return self.slots - self.slots // 4

    @property
    def jobs(self) -> int:
        return max(1, self.slots // 4) if self.slots else 0


async def register(redis: Redis, worker: str, slots: int) -> None:
    """This worker for bulk lives. Raises Unavailable."""
    key = redis.keyspace[0].bulk
    now = await redis.now_ms(0)
    await redis.commands(
        0,
        [
            ("ZADD", key, now + ALIVE_MS, f"{worker} {slots}"),
            ("ZREMRANGEBYSCORE", key, "-inf", now),
            ("PEXPIRE", key, WORKERS_TTL_MS),
        ],
    )


async def unregister(redis: Redis, worker: str, slots: int) -> None:
    """It takes no more. Raises Unavailable."""
    await redis.command(0, "ZREM", redis.keyspace[0].bulk, f"{worker} {slots}")


class BatchDealer:
    """Everything here happens on the control thread's loop, and SQL in a thread."""

    def __init__(
        self, redis: Redis, dealing: Dealing, publisher: Publisher, providers: Mapping[str, Provider]
    ) -> None:
        self._redis = redis
        #: What bulk may have at once of providers with such a limit, and a few that stand in line.
        self._limits = {
            name: int(provider.max_concurrency * provider.bulk_share) + IN_LINE
            for name, provider in providers.items()
            if provider.max_concurrency is not None
        }
        self._dealing = dealing
        self._publisher = publisher
        self._turns: defaultdict[str, RoundRobin] = defaultdict(RoundRobin)
        self._providers: dict[str, list[str]] = {}
        self._look_at = self._count_at = 0.0

    async def deal(self, *, called: bool) -> None:
        """A look at all open batches, where it is time for one or a worker has called. Raises Unavailable and
        SQLAlchemy's errors."""
        clock = asyncio.get_running_loop().time
        if clock() < self._look_at and not called:
            return
        self._look_at = clock() + IDLE
        batches = await self._sql(self._dealing.open)
        if not batches:
            self._turns.clear()
            self._providers.clear()
            return
        self._look_at = clock() + PAUSE
        now = await self._redis.now_ms(0)
        counted: dict[str, Counted] = {}
        if clock() >= self._count_at:
            self._count_at = clock() + COUNT_PAUSE
            sending = [batch.id for batch in batches if batch.sends]
            counted = await self._sql(lambda: self._dealing.counted(sending))
        capacity = await self._capacity(now)
        for task, message in await self._sql(lambda: self._round(batches, now, counted, capacity)):
            with contextlib.suppress(Unavailable):  # then it is dealt again
                await self._publisher.send(task, message, Queue.BULK.value)

    async def _sql(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def _capacity(self, now_ms: int) -> Capacity:
        living = await self._redis.command(
            0, "ZRANGE", self._redis.keyspace[0].bulk, f"({now_ms}", "+inf", "BYSCORE"
        )
        return Capacity(len(living), sum(int(member.rpartition(b" ")[2]) for member in living))

    # In a thread

    def _round(
        self, batches: Sequence[OpenBatch], now_ms: int, counted: dict[str, Counted], capacity: Capacity
    ) -> list[tuple[str, Job]]:
        """The messages to send: what they say is in SQL already."""
        self._stop(batches, now_ms, counted)
        return self._jobs(batches, now_ms, capacity) + self._slices(batches, now_ms, capacity)

    def _stop(self, batches: Sequence[OpenBatch], now_ms: int, counted: dict[str, Counted]) -> None:
        for batch in batches:
            if not batch.sends:
                continue
            if now_ms >= batch.expires_ms:
                self._dealing.stop(batch, Stopped.EXPIRED)
            elif batch.id in counted:
                count = counted[batch.id]
                ended = count.completed + count.failed
                if ended >= COUNT_LEAST and count.failed > batch.max_error_rate * ended:
                    log.warning("%s is stopped: %d of %d rows failed", batch.id, count.failed, ended)
                    self._dealing.stop(batch, Stopped.ERRORS, [_too_many(batch, count.failed, ended)])

    def _jobs(self, batches: Sequence[OpenBatch], now_ms: int, capacity: Capacity) -> list[tuple[str, Job]]:
        """Validations and files, of the tenant that has the fewest under way."""
        waiting: list[OpenBatch] = []
        busy: Counter[str] = Counter()
        for batch in batches:
            if batch.has_job:
                if batch.until_ms is not None and batch.until_ms >= now_ms:
                    busy[batch.tenant] += 1
                else:
                    waiting.append(batch)
        messages: list[tuple[str, Job]] = []
        while waiting and busy.total() < capacity.jobs:
            batch = min(waiting, key=lambda b: (busy[b.tenant], b.id))
            waiting.remove(batch)
            token = token_hex(8)
            if self._dealing.assign(batch, token, now_ms + JOB_LEASE_MS):
                busy[batch.tenant] += 1
                task = VALIDATE if batch.status == BatchStatus.VALIDATING else FINALIZE
                messages.append((task, job(batch.id, token)))
        return messages

    def _slices(self, batches: Sequence[OpenBatch], now_ms: int, capacity: Capacity) -> list[tuple[str, Job]]:
        dealt_of = {batch.id: batch for batch in batches if not batch.has_job}
        if not dealt_of:
            return []
        late = self._dealing.recall([*dealt_of], now_ms)
        if late:
            log.warning("%d slices were not heard of any more and are dealt again", late)
        dealt = self._dealing.dealt([*dealt_of])
        under_way = {slice.batch for slice in dealt}
        for batch in dealt_of.values():
            if batch.id not in under_way and self._dealing.over(batch, now_ms):
                self._look_at = 0.0  # its files are dealt at once
        free = capacity.slices - len(dealt)
        deals: list[Deal] = []
        if free > 0:
            deals = self._ending([b for b in dealt_of.values() if not b.sends], free)
            sending = [b for b in dealt_of.values() if b.sends]
            deals += self._sending(sending, dealt, free - len(deals), PLACES * capacity.workers)
        if not deals:
            return []
        self._dealing.deal(deals, now_ms + JOB_LEASE_MS)
        return [(SLICE, slice_job(deal.batch, deal.token, deal.first, again=deal.again)) for deal in deals]

    def _ending(self, batches: Sequence[OpenBatch], free: int) -> list[Deal]:
        """Slices of batches that are stopped, whose rows under way somebody is to end."""
        deals: list[Deal] = []
        for batch in batches:
            found = self._dealing.begun(batch.id, free - len(deals)) if free > len(deals) else []
            deals += [Deal(slice.batch, slice.first, token_hex(8), 0, True) for slice in found]
        return deals

    def _sending(
        self, batches: Sequence[OpenBatch], dealt: Sequence[SliceRow], free: int, places: int
    ) -> list[Deal]:
        """``free`` slices at most, and of each provider ``places`` with those that are dealt. What is left of a batch's
        concurrency goes in equal parts to its slices, and no more of it than their providers take."""
        concurrent: Counter[str] = Counter()
        taken: Counter[str] = Counter()
        busy: Counter[str] = Counter()
        for slice in dealt:
            concurrent[slice.batch] += slice.concurrency
            if slice.concurrency:  # else all of it has been streamed
                taken.update(slice.provider.split(","))
            for name in slice.provider.split(","):
                busy[name] += slice.concurrency
        left = {batch.id: batch.max_concurrency - concurrent[batch.id] for batch in batches}
        groups: dict[str, list[OpenBatch]] = {}
        for batch in batches:
            if left[batch.id] > 0:
                for provider in self._providers_of(batch):
                    groups.setdefault(provider, []).append(batch)
        chosen: list[SliceRow] = []
        used = {provider for batch in batches for provider in self._providers_of(batch)}
        self._turns = defaultdict(RoundRobin, {provider: self._turns[provider] for provider in used})
        for provider, candidates in groups.items():
            names = provider.split(",")
            room = min(places - max(taken[name] for name in names), free - len(chosen))
            room = min([room, *(self._limits[name] - busy[name] for name in names if name in self._limits)])
            if room <= 0:
                continue
            # Of its batches a tenant deals first what has the fewest rows under way.
            candidates.sort(key=lambda batch: (concurrent[batch.id], batch.id))
            ready: defaultdict[str, list[list[SliceRow]]] = defaultdict(list)
            for batch in candidates:
                others = sum(slice.batch == batch.id for slice in chosen)
                most = min(room, left[batch.id] - others)
                if most > 0:
                    ready[batch.tenant].append(self._dealing.ready(batch.id, provider, most))
            lines = {tenant: _in_turn(slices) for tenant, slices in ready.items()}
            waiting = {tenant: [slice.rows for slice in line] for tenant, line in lines.items()}
            for tenant in self._turns[provider].choose(waiting, room):
                chosen.append(lines[tenant].pop(0))
                taken.update(names)
                busy.update(names)
        deals: list[Deal] = []
        number = Counter(slice.batch for slice in chosen)
        for slice in chosen:
            names = slice.provider.split(",")
            most = [slice.rows, *(self._limits[n] - busy[n] + 1 for n in names if n in self._limits)]
            part = max(1, min(-(-left[slice.batch] // number[slice.batch]), *most))
            left[slice.batch] -= part
            number[slice.batch] -= 1
            for name in names:
                busy[name] += part - 1  # one is counted already
            deals.append(Deal(slice.batch, slice.first, token_hex(8), part, slice.known))
        return deals

    def _providers_of(self, batch: OpenBatch) -> list[str]:
        known = self._providers.get(batch.id)
        if known is None:
            known = self._providers[batch.id] = self._dealing.providers(batch.id)
        return known


def _in_turn(lists: Sequence[Sequence[SliceRow]]) -> list[SliceRow]:
    """The first ones of all lists, then the second ones, and so on."""
    longest = max(map(len, lists), default=0)
    return [slices[at] for at in range(longest) for slices in lists if at < len(slices)]


def _too_many(batch: OpenBatch, failed: int, ended: int) -> dict[str, str | int | None]:
    return {
        "code": "too_many_errors",
        "message": f"{failed} of the {ended} rows that ended had failed, which is more than max_error_rate "
        f"({batch.max_error_rate:g}) allows. The others were not sent.",
        "param": None,
        "line": None,
    }
