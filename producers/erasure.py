"""The end of a tenant: its keys, its completions with their texts and records, its batches and files, and what
Redis has of them.

First its keys are revoked, then what runs is cancelled, then all goes. The keys' own rows go last, so that an erasure
that was interrupted is simply run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Engine, delete, exists, select, update

from producers.idempotency import Reservation
from producers.submit import never_ran
from schemas.batches import BatchStatus, Stopped
from schemas.errors import ConfigurationError, Unavailable
from schemas.keys import Keys, scoped_digest
from schemas.records import Accepted, Departed, decode_record
from schemas.states import State
from schemas.tables import api_keys, batch_slices, batches, cache, completions, generations, usage
from stores.chunklog import ChunkLog
from stores.files import Files
from stores.flights import Flights
from stores.redis import Redis
from stores.retention import drop_batches
from stores.scripts import Scripts
from stores.sql import LOCK_BOOKS, among, lock, reading, writing
from stores.storage import Storage
from stores.wire import Arg

#: Completions of one transaction; keys or entries of one command.
BATCH = 500
#: How long what runs may take to end, and between looks at it, in seconds.
STOP_SECONDS, LOOK_PAUSE = 120.0, 0.25
#: How long a worker may go on with a job of a batch that was taken from it, in seconds.
JOB_SECONDS = 20.0

_c, _g, _u, _k, _a = completions.c, generations.c, usage.c, cache.c, api_keys.c
_b, _s = batches.c, batch_slices.c
_PARTS = ("state", "window", "open", "waiting", "charged")


class Erased(msgspec.Struct):
    keys: int = 0
    completions: int = 0
    batches: int = 0
    files: int = 0


class _Row(msgspec.Struct, frozen=True):
    id: str
    generation: str
    fingerprint: str
    end_user: str | None


class _Letter(NamedTuple):
    """A dead letter."""

    generation: str
    tenant: str | None
    partition: int
    entry: bytes


class Erasure:
    """``key_seconds`` is how long gateways go on with what they know of a key."""

    def __init__(self, redis: Redis, engine: Engine, storage: Storage, *, key_seconds: float) -> None:
        self._redis = redis
        self._engine = engine
        self._storage = storage
        self._files = Files(engine)
        self._key_seconds = key_seconds
        self._scripts = Scripts(redis)
        self._log = ChunkLog(redis)
        self._flights = Flights(redis)

    async def erase(self, tenant: str) -> Erased:
        """Raises Unavailable where its work can't be stopped: its keys are revoked, and the rest is still there.

        Raises ConfigurationError, before anything is done, where its files are in another storage."""
        if await asyncio.to_thread(self._files.are_elsewhere, self._storage, tenant):
            raise ConfigurationError(
                "The tenant's files are not where TAILRACE_FILES and TAILRACE_HOME say: "
                "run this with those of the gateway."
            )
        erased = Erased()
        keys = await asyncio.to_thread(self._revoke, tenant)
        if keys:
            await asyncio.sleep(self._key_seconds + 1)
        if await asyncio.to_thread(self._end_batches, tenant):
            await asyncio.sleep(JOB_SECONDS)
        dead = await self._dead_letters()
        await self._stop(tenant, {letter.generation for letter in dead})
        while rows := await asyncio.to_thread(self._some, tenant):
            # First Redis: what SQL doesn't name any more nobody would find there.
            await self._forget(tenant, rows)
            mine = {row.generation for row in rows}
            await self._drop_letters([letter for letter in dead if letter.generation in mine])
            erased.completions += await asyncio.to_thread(self._delete, rows)
        await self._drop_letters([letter for letter in dead if letter.tenant == tenant])
        for keyspace in self._redis.keyspace:
            await self._sweep(keyspace, tenant)
        for key_id in keys:
            own = self._redis.keys(key_id)
            await self._redis.command(own.partition, "DEL", *(own.keylimit(key_id, part) for part in _PARTS))
        erased.batches = await asyncio.to_thread(drop_batches, self._engine, _b.tenant == tenant)
        erased.files = await asyncio.to_thread(self._delete_files, tenant)
        erased.keys = await asyncio.to_thread(self._delete_rest, tenant)
        return erased

    # Stopping

    def _revoke(self, tenant: str) -> list[str]:
        with writing(self._engine) as connection:
            open_keys = update(api_keys).where(_a.tenant == tenant, _a.revoked_ms.is_(None))
            connection.execute(open_keys.values(revoked_ms=time.time_ns() // 1_000_000))
            return [*connection.scalars(select(_a.id).where(_a.tenant == tenant))]

    def _end_batches(self, tenant: str) -> bool:
        """Nothing more of its batches is begun, and nobody's is a job of theirs; whether somebody had one."""
        mine = select(_b.id).where(_b.tenant == tenant, _b.ended_ms.is_(None))
        over = {
            "status": BatchStatus.CANCELLED.value,
            "stopped": Stopped.CANCELLED.value,
            "ended_ms": time.time_ns() // 1_000_000,
            "token": None,
        }
        with writing(self._engine) as connection:
            jobs = connection.scalar(select(_b.id).where(_b.id.in_(mine), _b.token.is_not(None)).limit(1))
            slices = update(batch_slices).where(_s.batch_id.in_(mine), _s.token.is_not(None))
            taken = connection.execute(slices.values(token=None)).rowcount
            connection.execute(update(batches).where(_b.id.in_(mine)).values(over))
        return jobs is not None or taken > 0

    async def _stop(self, tenant: str, dead: set[str]) -> None:
        """Cancel what has not ended, until the books have every end that they can take: none that is a dead letter."""
        until = time.monotonic() + STOP_SECONDS
        while True:
            waiting = await self._on_ledgers(tenant)
            running = [
                row for row in await asyncio.to_thread(self._running, tenant) if row.generation not in dead
            ]
            if not waiting and not running:
                return
            if time.monotonic() > until:
                raise Unavailable(
                    f"{max(waiting, len(running))} completions of the tenant have not ended. Its keys are revoked; "
                    "start a worker and run this again."
                )
            for row in running:
                state, record = await self._log.state(row.generation), None
                if state is not None:
                    own = row.id == row.generation
                    record = state.info if own else await self._flights.pointer(row.id)
                if state is not None and record is not None:
                    await self._scripts.cancel(never_ran(record), state.queue, who=record)
            await asyncio.sleep(LOOK_PAUSE)

    def _running(self, tenant: str) -> list[_Row]:
        statement = _ROWS.where(_c.tenant == tenant, _c.status == State.QUEUED.value).limit(BATCH)
        with reading(self._engine) as connection:
            return [_Row(*row) for row in connection.execute(statement)]

    async def _on_ledgers(self, tenant: str) -> int:
        """Records of the tenant that the books don't have yet."""
        found = 0
        for keys in self._redis.keyspace:
            async for _, data in self._entries(keys.partition, keys.ledger):
                found += _tenant_of(data) == tenant
        return found

    async def _entries(self, partition: int, stream: str) -> AsyncIterator[tuple[bytes, bytes]]:
        start: Arg = "-"
        while page := await self._redis.command(partition, "XRANGE", stream, start, "+", "COUNT", BATCH):
            for id, fields in page:
                yield id, dict(zip(fields[::2], fields[1::2], strict=True)).get(b"r", b"")
            start = b"(" + page[-1][0]

    # Deleting

    def _some(self, tenant: str) -> list[_Row]:
        with reading(self._engine) as connection:
            return [_Row(*row) for row in connection.execute(_ROWS.where(_c.tenant == tenant).limit(BATCH))]

    def _delete(self, rows: Sequence[_Row]) -> int:
        ids, runs = {"ids": [row.id for row in rows]}, {"ids": sorted({row.generation for row in rows})}
        with writing(self._engine) as connection:
            lock(connection, LOCK_BOOKS)
            connection.execute(delete(usage).where(among(_u.completion_id)), ids)
            deleted = connection.execute(delete(completions).where(among(_c.id)), ids).rowcount
            connection.execute(delete(generations).where(among(_g.id), _UNUSED), runs)
            return deleted

    def _delete_rest(self, tenant: str) -> int:
        """What outlived its completions, and the keys; how many keys there were."""
        with writing(self._engine) as connection:
            lock(connection, LOCK_BOOKS)
            connection.execute(delete(cache).where(_k.tenant == tenant))
            # The first completion of a generation has its id.
            pruned = select(_u.completion_id).where(_u.tenant == tenant)
            connection.execute(delete(generations).where(_g.id.in_(pruned), _UNUSED))
            connection.execute(delete(usage).where(_u.tenant == tenant))
            return connection.execute(delete(api_keys).where(_a.tenant == tenant)).rowcount

    def _delete_files(self, tenant: str) -> int:
        try:
            return self._files.remove_tenant(tenant, self._storage)
        except OSError as error:
            raise Unavailable(
                f"The storage of files failed: {error}. The files of the tenant are still there; run this again."
            ) from error

    async def _forget(self, tenant: str, rows: Iterable[_Row]) -> None:
        names: dict[int, list[str]] = {}

        def add(keys: Keys, *found: str) -> None:
            names.setdefault(keys.partition, []).extend(found)

        for row in rows:
            for id in {row.id, row.generation}:
                own = self._redis.keys(id)
                add(own, own.gen(id), own.req(id), own.log(id), own.ptr(id), own.members(id))
            shared = self._redis.keys(row.fingerprint)
            add(shared, shared.flight(row.fingerprint), shared.hot(row.fingerprint))
            name = scoped_digest(tenant, row.end_user, row.fingerprint)
            index = self._redis.keys(name)
            add(index, index.fingerprint(name))
        for partition, found in names.items():
            for first in range(0, len(found), BATCH):
                await self._redis.command(partition, "DEL", *found[first : first + BATCH])

    async def _sweep(self, keys: Keys, tenant: str) -> None:
        """What no completion names: Idempotency-Keys, turns in the lines of providers."""
        for name in await self._names(keys, keys.idempotency("*")):
            data = await self._redis.command(keys.partition, "GET", name)
            if data and msgspec.json.decode(data, type=Reservation).tenant == tenant:
                await self._redis.command(keys.partition, "DEL", name)
        for name in await self._names(keys, keys.permits("*", "tags")):
            turns = [f"last:{queue}:{tenant}" for queue in ("interactive", "bulk")]
            await self._redis.command(keys.partition, "HDEL", name, *turns)

    async def _dead_letters(self) -> list[_Letter]:
        found: list[_Letter] = []
        for keys in self._redis.keyspace:
            async for id, data in self._entries(keys.partition, keys.dead):
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                    found.append(
                        _Letter(decode_record(data).generation, _tenant_of(data), keys.partition, id)
                    )
        return found

    async def _drop_letters(self, letters: Iterable[_Letter]) -> None:
        for letter in letters:
            await self._scripts.discard(letter.partition, [letter.entry])

    async def _names(self, keys: Keys, pattern: str) -> list[bytes]:
        found: list[bytes] = []
        cursor: Any = b"0"
        while True:
            cursor, page = await self._redis.command(
                keys.partition, "SCAN", cursor, "MATCH", pattern, "COUNT", BATCH
            )
            found += page
            if cursor in (b"0", 0):
                return found


_UNUSED = ~exists().where(_c.generation_id == _g.id)
_ROWS = select(_c.id, _c.generation_id, _c.fingerprint, _c.end_user)


def _tenant_of(data: bytes) -> str | None:
    """Whose completion a record is of; None of an end, which names none, and of what is no record."""
    try:
        record = decode_record(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if isinstance(record, Departed):
        record = record.accepted
    return record.tenant if isinstance(record, Accepted) else None
