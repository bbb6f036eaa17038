"""From the partitions' ledger streams into the books, in bulk.

One leader per partition drains: it reads records, fetches the logs of the generations that ended, enters all of it in
one SQL transaction and only then, in one script that its lock fences, removes the records and gives the Redis keys
their TTL. A crash in between repeats the transaction, which changes nothing.

A record that SQL refuses is found by halving the batch. It goes to the partition's dead letters, with an error in the
process's log, and the others are entered; its generation's keys stay, so that it can be entered later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import hiredis
import msgspec

from schemas.errors import TailraceError
from schemas.records import VERSION, Accepted, Ended, Record, StoredLog, decode_record, is_newer
from schemas.states import Queue
from stores.books import Books
from stores.cache import DEFAULT_LIMITS, Cache, CacheLimits
from stores.chunklog import ChunkLog, LogState
from stores.flights import Flights, Result, whole
from stores.outcomes import ANYTIME, Calm, Rank
from stores.redis import Redis
from stores.rows import CacheRow
from stores.scripts import Scripts
from stores.sql import refusal

log = logging.getLogger("tailrace.ledger")

#: The role whose lock a drain holds.
ROLE = "ledger"
#: Records of one transaction.
BATCH = 500
#: How long leadership lasts without renewal, in milliseconds.
LEADERSHIP_MS = 5_000
#: How long the log of an ended generation waits for its completion, whose acceptance is a dead letter, in milliseconds.
WAITING_TTL_MS = 7 * 24 * 3600 * 1000
#: How often the cache is looked through for what is too old or too much, in seconds.
TRIM_SECONDS = 30.0
#: How long the hot copy of what bulk work made stays at most, in milliseconds: longer than a slice begins rows after
#: its look into the cache. Batches would fill Redis with them.
BULK_HOT_MS = 75_000


class _Entry(msgspec.Struct, frozen=True):
    id: bytes
    record: Record


class _Page(msgspec.Struct):
    """A page of a ledger: what can be entered, what is no record (id → why), the last one of a later version."""

    size: int
    entries: list[_Entry] = []
    refused: dict[bytes, str] = {}
    left: bytes | None = None


class _Ends(msgspec.Struct):
    """The generations that ended, of those that Redis still has: their states, the logs to keep, and those of them that
    may answer others."""

    states: dict[str, LogState] = {}
    logs: dict[str, StoredLog] = {}
    cached: dict[str, CacheRow] = {}
    unreadable: dict[str, str] = {}


class _Entered(msgspec.Struct):
    """``settled`` and ``missing`` as in Applied; ``refused`` maps entry ids to the reason."""

    settled: dict[str, str] = {}
    missing: set[str] = set()
    refused: dict[bytes, str] = {}


class Ledger:
    """Drains the ledgers of one key space. ``token`` names the process among those that would lead."""

    def __init__(
        self,
        redis: Redis,
        books: Books,
        *,
        token: str,
        log_ttl_interactive: float,
        log_ttl_bulk: float,
        limits: CacheLimits = DEFAULT_LIMITS,
    ) -> None:
        self._redis = redis
        self._books = books
        self._token = token
        self._scripts = Scripts(redis)
        self._log = ChunkLog(redis)
        self._flights = Flights(redis)
        self._cache = Cache(books.engine)
        self._limits = limits
        self._trim_at = 0.0
        self._ttl_ms = {
            Queue.INTERACTIVE.value: int(log_ttl_interactive * 1000),
            Queue.BULK.value: int(log_ttl_bulk * 1000),
        }
        #: By partition the entry up to which a ledger holds nothing but records of a later version.
        self._left: dict[int, bytes] = {}

    async def lead(self, partition: int, rank: Rank = Rank.FIRST, calm: Calm = ANYTIME) -> bool:
        """Become or stay the partition's leader, for ``LEADERSHIP_MS``."""
        return await self._scripts.lead(partition, ROLE, self._token, LEADERSHIP_MS, rank, calm)

    async def drain(self, partition: int) -> int:
        """Enter the oldest records of a partition that this process leads; how many it looked at, 0 where by now
        somebody else leads it and the records stay.

        Raises Unavailable, and SQLAlchemy's errors where the database is away: then the records stay.
        """
        page = await self._page(partition)
        if not page.size:
            return 0
        ends = await self._ends([e.record.generation for e in page.entries if isinstance(e.record, Ended)])
        readable: list[_Entry] = []
        for entry in page.entries:
            why = ends.unreadable.get(entry.record.generation) if isinstance(entry.record, Ended) else None
            if why is None:
                readable.append(entry)
            else:
                page.refused[entry.id] = why
        entered = await self._enter(readable, ends)
        # Completions whose acceptance comes after their end, as a dead letter that was tried again does, or one that
        # points to a generation of which another completion was deleted.
        late = await self._ends(
            [
                g
                for g in dict.fromkeys(
                    g for id, g in entered.settled.items() if id == g or g in entered.missing
                )
                if g not in ends.states
            ]
        )
        logs = {g: stored for g, stored in late.logs.items() if g in entered.missing}
        if logs:
            await asyncio.to_thread(self._books.apply, [], logs)
        refused = page.refused | entered.refused
        if refused and not await self._bury(partition, page, refused):
            return 0
        done = [entry for entry in readable if entry.id not in refused]
        over = {e.record.generation: e.record for e in done if isinstance(e.record, Ended)}
        states = {g: state for g, state in ends.states.items() if g in over}
        ttls = self._ttls({**states, **late.states}, entered.settled) | self._pointer_ttls(done)
        await self._publish([over[g] for g in states if g in entered.settled], ends)
        if not await self._scripts.settle(partition, ROLE, self._token, [e.id for e in done], ttls):
            return 0
        if page.left is not None:
            self._left[partition] = page.left
        if ends.cached:
            await self._trim()
        return page.size

    async def _page(self, partition: int) -> _Page:
        left = self._left.get(partition)
        start = "-" if left is None else b"(" + left
        rows: list[Any] = await self._redis.command(
            partition, "XRANGE", self._redis.keyspace[partition].ledger, start, "+", "COUNT", BATCH
        )
        page = _Page(len(rows))
        for id, fields in rows:
            data = fields[1] if fields[0] == b"r" else b""
            try:
                record = decode_record(data)
                newer = record.v > VERSION
                if not newer:
                    page.entries.append(_Entry(id, record))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                newer = is_newer(data)
                if not newer:
                    page.refused[id] = f"not a record: {error}"
            if newer:
                page.left = id
        if page.left is not None:
            log.warning(
                "partition %d: records of a later version stay on the ledger; update this worker", partition
            )
        return page

    async def _ends(self, generations: Sequence[str]) -> _Ends:
        """What Redis has of them; of a generation whose own completion is not stored, no log."""
        found = _Ends()

        async def fetch(generation: str) -> None:
            try:
                state = await self._log.state(generation)
                if state is None:
                    return
                if state.next > state.base and state.info.store:
                    found.logs[generation] = await self._log.whole(generation, state)
                    if state.info.cache == "miss" and whole(state):
                        found.cached[generation] = self._cache_row(state)
                found.states[generation] = state
            except Exception as error:
                if _is_redis(error):
                    raise
                found.unreadable[generation] = f"its log can't be read: {type(error).__name__}: {error}"

        await asyncio.gather(*map(fetch, generations))
        return found

    async def _enter(self, entries: Sequence[_Entry], ends: _Ends) -> _Entered:
        """Enter all that SQL takes, halving what it refuses. Raises where the database is away."""
        if not entries:
            return _Entered()
        entered = await asyncio.to_thread(self._try, entries, ends)
        if isinstance(entered, _Entered):
            return entered
        if len(entries) == 1:
            return _Entered(refused={entries[0].id: entered})
        middle = len(entries) // 2
        one, two = await self._enter(entries[:middle], ends), await self._enter(entries[middle:], ends)
        return _Entered(one.settled | two.settled, one.missing | two.missing, one.refused | two.refused)

    def _try(self, entries: Sequence[_Entry], ends: _Ends) -> _Entered | str:
        """Enter these, or say why they are refused."""
        own = {e.record.generation for e in entries if isinstance(e.record, Ended)}
        logs = {g: ends.logs[g] for g in own & ends.logs.keys()}
        cached = [ends.cached[g] for g in sorted(own & ends.cached.keys())]
        try:
            applied = self._books.apply([e.record for e in entries], logs, cached)
        except Exception as error:
            reason = refusal(error)
            if reason is None:
                raise
            return reason
        return _Entered(applied.settled, applied.missing)

    async def _bury(self, partition: int, page: _Page, refused: Mapping[bytes, str]) -> bool:
        if not await self._scripts.bury(partition, ROLE, self._token, refused):
            return False
        names = {e.id: f"{type(e.record).__name__} {e.record.generation}" for e in page.entries}
        for id, reason in refused.items():
            log.error(
                "partition %d: record %s (%s) can't be entered into the books and is a dead letter now: %s. "
                "`tailrace doctor --retry-dead` tries it again.",
                partition,
                id.decode(),
                names.get(id, "unreadable"),
                reason,
            )
        return True

    def _ttls(self, states: Mapping[str, LogState], settled: Mapping[str, str]) -> dict[str, int]:
        ttls: dict[str, int] = {}
        for generation, state in states.items():
            ttl = WAITING_TTL_MS
            if generation in settled:
                ttl = self._ttl_ms.get(state.info.queue, self._ttl_ms[Queue.INTERACTIVE.value])
            own = self._redis.keys(generation)
            ttls |= {own.gen(generation): ttl, own.log(generation): ttl, own.members(generation): ttl}
        return ttls

    def _pointer_ttls(self, done: Sequence[_Entry]) -> dict[str, int]:
        """From here on SQL knows what they point to."""
        pointing = [
            e.record for e in done if isinstance(e.record, Accepted) and e.record.id != e.record.generation
        ]
        return {
            # The reaper looks for it at its deadline.
            self._redis.keys(r.id).ptr(r.id): self._ttl_ms.get(r.queue, self._ttl_ms[Queue.INTERACTIVE.value])
            + max(0, (r.deadline_ms or 0) - r.created_ms)
            for r in pointing
        }

    # The cache

    def _cache_row(self, state: LogState) -> CacheRow:
        ended_ms = state.ended_ms or state.created_ms
        return CacheRow(state.info, ended_ms, ended_ms + int(self._limits.seconds * 1000))

    async def _publish(self, settled: Sequence[Ended], ends: _Ends) -> None:
        """What SQL has is found by its fingerprint from now on; nobody needs to look at its generation any more."""

        async def publish(ended: Ended) -> None:
            generation = ended.generation
            state = ends.states[generation]
            if state.info.cache != "miss":
                return
            fingerprint = state.info.fingerprint
            row = ends.cached.get(generation)
            if row is not None:
                result = Result(
                    generation=generation,
                    provider=ended.provider,
                    model=ended.model,
                    ended_ms=row.ended_ms,
                    base=state.base,
                    next=state.next,
                    log=ends.logs[generation],
                )
                limits = self._limits
                bulk = state.info.queue == Queue.BULK.value
                await self._flights.warm(
                    fingerprint,
                    result,
                    owner=generation,
                    ttl_ms=min(limits.hot_ms, BULK_HOT_MS) if bulk else limits.hot_ms,
                    largest=limits.hot_bytes,
                )
            await self._flights.land(fingerprint, generation)

        await asyncio.gather(*map(publish, settled))

    async def _trim(self) -> None:
        """Now and then, drop results that are too old or too many."""
        now = asyncio.get_running_loop().time()
        if now >= self._trim_at:
            self._trim_at = now + TRIM_SECONDS
            gone = await asyncio.to_thread(self._cache.trim, self._limits.bytes)
            await self._flights.cool(*gone)


async def retry_dead(redis: Redis, partition: int) -> int:
    """Put all dead letters of a partition back on the ledger; how many there were."""
    key = redis.keyspace[partition].dead
    newest: list[Any] = await redis.command(partition, "XREVRANGE", key, "+", "-", "COUNT", 1)
    if not newest:
        return 0
    last = newest[0][0]  # those that die again meanwhile come after it
    scripts, moved = Scripts(redis), 0
    while page := await redis.command(partition, "XRANGE", key, "-", last, "COUNT", BATCH):
        moved += await scripts.revive(partition, [row[0] for row in page])
    return moved


def _is_redis(error: Exception) -> bool:
    """The fault is Redis's, not that of what was read. A key that something else was written over is none of those."""
    if isinstance(error, hiredis.ReplyError):
        return not str(error).startswith("WRONGTYPE")
    return isinstance(error, TailraceError)
