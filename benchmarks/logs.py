"""The size of a chunk log in Redis, and resuming anywhere in a long one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from benchmarks.jobs import Resume, Times
from benchmarks.load import Load
from benchmarks.stack import Stack
from schemas.codec import ChunkEncoder
from schemas.ids import new_completion_id
from schemas.records import Accepted, Ended
from schemas.states import Queue, State
from stores.outcomes import Append, Batch, Claim, EndResult
from stores.redis import Redis
from stores.scripts import Scripts
from tests.support.orders import CREATED, ID, dump

#: Chunks of the long log.
LONG = 100_000
#: Appends on their way at once while a log is made: they arrive in order all the same.
AHEAD = 500
#: The lease of a log in the making, in milliseconds: nobody renews it.
LEASE_MS = 600_000
#: How long the books may take to take a long log in, in seconds.
SETTLE = 60.0

#: What one-token chunks say.
TOKENS = (" the", " of", " stream", " and", ",", " water", " is", " turbine", ".", " a")


@dataclass(frozen=True, slots=True)
class Log:
    """A log that was written past the worker, each chunk an entry of its own."""

    scripts: Scripts
    claim: Claim
    chunks: int

    @property
    def id(self) -> str:
        return self.claim.generation

    async def end(self) -> None:
        ended = Ended(generation=self.id, state=State.COMPLETED.value, provider="fake", model="fake")
        result = await self.scripts.end(ended, self.claim.attempt, Batch(self.chunks, 0, b""))
        assert result is EndResult.ENDED, result


async def write(redis: Redis, stack: Stack, chunks: int) -> Log:
    """A running generation of the stack's tenant with so many one-token chunks."""
    scripts = Scripts(redis)
    id = new_completion_id()
    record = Accepted(
        id=id,
        generation=id,
        tenant=stack.tenant,
        key_id=stack.key_id,
        model="fake:fake",
        provider="fake",
        resolved_model="fake",
        queue=Queue.INTERACTIVE.value,
        fingerprint="0" * 64,
    )
    await scripts.accept(record, b"{}")
    await scripts.published(id)
    claim = await scripts.claim(id, queue=record.queue, worker="bench", lease_ms=LEASE_MS)
    assert isinstance(claim, Claim), claim
    encoder = ChunkEncoder()
    items = [_item(encoder, index) for index in range(len(TOKENS) + 1)]
    pending: list[Awaitable[Append]] = [
        scripts.append(id, claim.attempt, Batch(0, 1, items[0], encoder.head))
    ]
    rest = (
        scripts.append(id, claim.attempt, Batch(i, 1, items[1 + i % len(TOKENS)])) for i in range(1, chunks)
    )
    for append in rest:
        pending.append(append)
        if len(pending) == AHEAD:
            await _all(pending)
            pending = []
    await _all(pending)
    return Log(scripts, claim, chunks)


async def _all(pending: Sequence[Awaitable[Append]]) -> None:
    codes = await asyncio.gather(*pending)
    assert all(code is Append.OK for code in codes), codes


def _item(encoder: ChunkEncoder, index: int) -> bytes:
    """A chunk as the worker would have it from the fake backend."""
    choice = {
        "index": 0,
        "delta": {"content": TOKENS[index % len(TOKENS)]},
        "logprobs": None,
        "finish_reason": None,
    }
    chunk = {"id": ID, "object": "chat.completion.chunk", "created": CREATED, "model": "fake"}
    item = encoder.encode(dump({**chunk, "system_fingerprint": "fp_fake", "choices": [choice]}))
    assert item is not None
    return item


async def bytes_per_chunk(stack: Stack, chunks: int = 100) -> float:
    """What Redis says that the log takes, by chunk."""
    redis = await Redis.open(stack.redis_url)
    try:
        log = await write(redis, stack, chunks)
        keys = redis.keys(log.id)
        size = int(await redis.command(keys.partition, "MEMORY", "USAGE", keys.log(log.id), "SAMPLES", 0))
        entries = int(await redis.command(keys.partition, "XLEN", keys.log(log.id)))
        assert entries == chunks, entries
        await log.end()
        return size / chunks
    finally:
        redis.close()


async def resumes(stack: Stack, load: Load, *, count: int) -> dict[str, dict[int, list[float]]]:
    """Milliseconds from a GET to its first chunk, by index, in a log that is still open and after its end."""
    indexes = [-1, 0, LONG // 4, LONG // 2, 3 * LONG // 4, LONG - 100, LONG - 2]
    redis = await Redis.open(stack.redis_url)
    try:
        log = await write(redis, stack, LONG)
        url = f"{stack.url}/v1/chat/completions/{log.id}/stream?after="
        found: dict[str, dict[int, list[float]]] = {}
        found["open"] = _resume(load, url, stack.tailrace.headers, indexes, count)
        await log.end()
        await _settled(redis, log.id)
        found["ended"] = _resume(load, url, stack.tailrace.headers, indexes, count)
        return found
    finally:
        redis.close()


def _resume(
    load: Load, url: str, headers: dict[str, str], indexes: list[int], count: int
) -> dict[int, list[float]]:
    load.run(Resume(url, headers, indexes, 1))
    done = load.run(Resume(url, headers, indexes, count))
    assert isinstance(done, Times)
    return {int(index): times for index, times in done.by_name.items()}


async def _settled(redis: Redis, id: str) -> None:
    """The books have it: then its log has a TTL."""
    keys = redis.keys(id)
    until = time.monotonic() + SETTLE
    while int(await redis.command(keys.partition, "PTTL", keys.log(id))) < 0:
        if time.monotonic() > until:
            raise RuntimeError("the ledger did not settle the long log")
        await asyncio.sleep(0.1)
