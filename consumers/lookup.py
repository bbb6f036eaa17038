"""Finding a completion: in Redis while it runs and for a while after, in the books from then on."""

from __future__ import annotations

import asyncio

import msgspec

from schemas.errors import Failure
from schemas.states import State
from stores.books import Books
from stores.chunklog import ChunkLog, LogState
from stores.redis import Redis
from stores.rows import CompletionRow, UsageRow


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One completion as its owner may see it, whether it still runs or not.

    Indexes count from ``base``; ``next`` is the one after the last chunk there is now. Times are epoch milliseconds.
    ``live`` is the generation's state in Redis; None where only the books know of it.
    """

    id: str
    generation: str
    tenant: str
    key_id: str
    end_user: str | None
    model: str
    provider: str
    resolved_model: str
    queue: str
    store: bool
    metadata: dict[str, str] | None
    cache: str
    state: State
    failure: Failure | None
    attempt: int
    base: int
    next: int
    created_ms: int
    ended_ms: int | None
    usage: UsageRow | None = None
    fingerprint: str = ""
    live: LogState | None = None

    @property
    def ended(self) -> bool:
        return self.state.ended

    @property
    def created(self) -> int:
        """In seconds, as chunks have it."""
        return self.created_ms // 1000


class Finder:
    """Looks completions up by id."""

    def __init__(self, redis: Redis, books: Books) -> None:
        self._redis = redis
        self._log = ChunkLog(redis)
        self._books = books

    async def find(self, completion_id: str) -> Completion | None:
        """None where there is none, or where it was deleted. Raises Unavailable."""
        live = await self._log.state(completion_id)
        if live is not None:
            return from_redis(live)
        row = await asyncio.to_thread(self._books.completion, completion_id)
        if (row is None or not row.status.ended) and await self._redis.restored(completion_id):
            live = await self._log.state(completion_id)
            if live is not None:
                return from_redis(live)
        return None if row is None else from_books(row)


def from_redis(state: LogState) -> Completion:
    info = state.info
    failure = None
    if state.end is not None and state.end.error is not None:
        failure = msgspec.convert(state.end.error, Failure)
    return Completion(
        id=info.id,
        generation=info.generation,
        tenant=info.tenant,
        key_id=info.key_id,
        end_user=info.end_user,
        model=info.model,
        provider=info.provider,
        resolved_model=info.resolved_model,
        queue=info.queue,
        store=info.store,
        metadata=info.metadata,
        cache=info.cache,
        state=state.state,
        failure=failure,
        attempt=state.attempt,
        base=state.base,
        next=state.next,
        created_ms=state.created_ms,
        ended_ms=state.ended_ms,
        fingerprint=info.fingerprint,
        live=state,
    )


def from_books(row: CompletionRow) -> Completion:
    generation, usage = row.generation, row.usage
    return Completion(
        id=row.id,
        generation=row.generation_id,
        tenant=row.tenant,
        key_id=row.key_id,
        end_user=row.end_user,
        model=row.model,
        provider=row.provider,
        resolved_model=row.resolved_model,
        queue=row.queue,
        store=row.store,
        metadata=row.metadata,
        cache=row.cache,
        state=row.status,
        failure=generation.failure if generation is not None else None,
        attempt=generation.attempt if generation is not None else 0,
        base=generation.base if generation is not None else 0,
        next=generation.next if generation is not None else 0,
        created_ms=row.created_ms,
        ended_ms=row.ended_ms,
        fingerprint=row.fingerprint,
        usage=usage,
    )
