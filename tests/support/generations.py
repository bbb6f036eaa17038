"""Generations to try the stores with: records, chunks to append, and what Redis holds of one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import redis

from schemas.errors import Failure
from schemas.ids import new_completion_id
from schemas.keys import Keys
from schemas.records import Accepted, Attempted, Ended, Record, decode_record
from schemas.states import Queue, State
from stores.chunklog import ChunkLog
from stores.outcomes import NOTHING, AcceptResult, Batch, Claim, Crashes, Left
from stores.redis import Redis
from stores.scripts import Scripts

HEAD = b'{"top":{"system_fingerprint":"fp"},"choice":{"logprobs":null}}'
LEASE_MS = 60_000
LOST = Failure("worker_lost", "The worker was lost.")
CRASHES = Crashes()


def accepted(id: str | None = None, **fields: Any) -> Accepted:
    """The record of a completion with a generation of its own."""
    id = id or new_completion_id()
    return msgspec.structs.replace(
        Accepted(
            id=id,
            generation=id,
            tenant="acme",
            key_id="key_1",
            model="fake",
            provider="fake",
            resolved_model="m",
            queue=Queue.INTERACTIVE.value,
            fingerprint="f" * 64,
        ),
        **fields,
    )


def ended(generation: str, state: State = State.COMPLETED, **fields: Any) -> Ended:
    return msgspec.structs.replace(
        Ended(generation=generation, state=state.value, provider="fake", model="m"), **fields
    )


def past(number: int = 1, state: str = "lost", **fields: Any) -> Attempted:
    """The record of an attempt that did not end its generation."""
    return msgspec.structs.replace(
        Attempted(number=number, provider="fake", model="m", state=state), **fields
    )


def texts(first: int, count: int) -> list[bytes]:
    """The items of chunks whose text is their index."""
    return [b'"%d"' % index for index in range(first, first + count)]


def batch(
    first: int, count: int = 1, *, items: Sequence[bytes] | None = None, head: bytes | None = None
) -> Batch:
    """Consecutive chunks; a head goes with index 0, or where it is given."""
    items = texts(first, count) if items is None else items
    if head is None:
        head = HEAD if first == 0 else b""
    return Batch(first, len(items), b"\n".join(items), head)


@dataclass
class Room:
    """A key space with its scripts and logs, and what a worker does in it."""

    redis: Redis
    scripts: Scripts
    log: ChunkLog

    async def accept(self, record: Accepted | None = None, request: bytes = b'{"v":1}') -> str:
        """Accept and publish; the id."""
        record = record or accepted()
        result: AcceptResult = await self.scripts.accept(record, request)
        assert result.fresh
        await self.scripts.published(record.id)
        return record.id

    async def claim(
        self, generation: str, *, worker: str = "w", lease_ms: int = LEASE_MS, **options: Any
    ) -> Claim:
        queue: str = options.pop("queue", Queue.INTERACTIVE.value)
        claim = await self.scripts.claim(generation, queue=queue, worker=worker, lease_ms=lease_ms, **options)
        assert isinstance(claim, Claim), claim
        return claim

    async def running(self, record: Accepted | None = None) -> str:
        """A generation that a worker has claimed; the id."""
        record = record or accepted()
        await self.accept(record)
        await self.claim(record.id, queue=record.queue)
        return record.id

    async def left(self, generation: str, attempt: int = 1, batch: Batch = NOTHING, **options: Any) -> Left:
        """What became of an attempt that its worker gives up."""
        record: Attempted = options.pop("record", None) or past(attempt, "released")
        return await self.scripts.leave(generation, record, batch, crashes=CRASHES, **options)

    async def reaped(self, generation: str, attempt: int = 1, **options: Any) -> str:
        """What the reaper is told of an attempt."""
        record: Attempted = options.pop("record", None) or past(attempt)
        crashes: Crashes = options.pop("crashes", CRASHES)
        return await self.scripts.reap(generation, attempt, record, crashes=crashes, **options)

    async def finished(self, items: Sequence[bytes], record: Accepted | None = None, *, size: int = 3) -> str:
        """A completed generation with a chunk for each item, ``size`` of them to an entry; the id."""
        generation = await self.running(record)
        for first in range(0, len(items), size):
            await self.scripts.append(generation, 1, batch(first, items=items[first : first + size]))
        last = ended(generation)
        if record is not None:
            last = msgspec.structs.replace(last, provider=record.provider, model=record.resolved_model)
        await self.scripts.end(last, 1)
        return generation


@asynccontextmanager
async def room(url: str, **options: Any) -> AsyncGenerator[Room]:
    space = await Redis.open(url, **options)
    try:
        yield Room(space, Scripts(space), ChunkLog(space))
    finally:
        space.close()


def now_ms(client: redis.Redis) -> int:
    """The server's time."""
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000


def expire_lease(client: redis.Redis, generation: str) -> None:
    """As if the lease had been given long ago."""
    assert client.zadd(Keys(0).lease, {generation: 1}, xx=True, ch=True) == 1


def listen(client: redis.Redis, channel: str) -> Callable[[], list[str]]:
    """Subscribes; the function gives all messages so far."""
    subscription: Any = client.pubsub()
    subscription.ssubscribe(channel)
    assert subscription.get_sharded_message(timeout=5)["type"] == "ssubscribe"

    def messages() -> list[str]:
        found: list[str] = []
        while message := subscription.get_sharded_message(timeout=0.05):
            found.append(message["data"])
        return found

    return messages


def entries(client: redis.Redis, key: str) -> list[tuple[str, dict[str, str]]]:
    """All of a stream."""
    return cast("list[tuple[str, dict[str, str]]]", client.xrange(key))


def log_of(client: redis.Redis, generation: str) -> list[tuple[str, dict[str, str]]]:
    return entries(client, Keys(0).log(generation))


def scores(client: redis.Redis, key: str) -> dict[str, float]:
    """All of a sorted set."""
    return dict(cast("list[tuple[str, float]]", client.zrange(key, 0, -1, withscores=True)))


def kinds(client: redis.Redis) -> set[str]:
    """What kinds of keys there are: the word after the hash tag."""
    return {key.split(":")[2] for key in cast("list[str]", client.keys())}


def ledger(client: redis.Redis, keys: Keys) -> list[Record]:
    """The records of a partition's ledger, oldest first."""
    return [decode_record(fields["r"]) for _, fields in entries(client, keys.ledger)]


def everything(client: redis.Redis) -> dict[str, Any]:
    """All that the server holds, by key, but for times to live."""
    held: dict[str, Any] = {}
    for key in cast("list[str]", client.keys()):
        kind = client.type(key)
        if kind == "hash":
            held[key] = client.hgetall(key)
        elif kind == "zset":
            held[key] = scores(client, key)
        elif kind == "stream":
            held[key] = entries(client, key)
        else:
            held[key] = client.get(key)
    return held


def waits_in(client: redis.Redis, generation: str) -> set[str]:
    """The kinds of sorted sets and hashes that name a generation."""
    return {
        key.split(":", 2)[2]
        for key, value in everything(client).items()
        if isinstance(value, dict) and generation in value and not key.endswith(":deadlines")
    }


def last_end(client: redis.Redis) -> Ended:
    record = ledger(client, Keys(0))[-1]
    assert isinstance(record, Ended)
    return record


def keep(client: redis.Redis) -> None:
    """Remember all that the server holds, in its next database."""
    keys = cast("list[str]", client.keys())
    with client.pipeline(transaction=True) as pipeline:
        pipeline.swapdb(0, 1)
        pipeline.flushdb()
        pipeline.swapdb(0, 1)
        for key in keys:
            pipeline.copy(key, key, destination_db="1", replace=True)
        pipeline.execute()


def set_back(client: redis.Redis) -> None:
    """What a host's crash does that costs Redis its last writes: all is as it was at ``keep``."""
    client.flushdb()
    client.swapdb(0, 1)
