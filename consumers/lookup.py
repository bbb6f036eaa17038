"""Finding a completion: in Redis while it runs and for a while after, in the books from then on."""

from __future__ import annotations

import asyncio

import msgspec

from schemas.errors import DeadlineExceeded, Failure
from schemas.records import Accepted
from schemas.states import State
from stores.books import Books
from stores.chunklog import ChunkLog, LogState
from stores.flights import Flights, Result
from stores.outcomes import EndEntry, OwnEnd
from stores.redis import Redis
from stores.rows import CompletionRow, GenerationRow, UsageRow


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One completion as its owner may see it, whether it still runs or not.

    Indexes count from ``base``; ``next`` is the one after the last chunk there is now. Those of a cache hit begin at 0:
    ``offset`` is what its generation has more. Times are epoch milliseconds. ``live`` is the generation's state in
    Redis; None where only the books know of it. ``own`` is the end of a completion that left before its generation
    ended. ``record`` is that of its acceptance, where Redis has it.
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
    offset: int = 0
    own: OwnEnd | None = None
    record: Accepted | None = None

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
        self._flights = Flights(redis)
        self._books = books

    async def find(self, completion_id: str) -> Completion | None:
        """None where there is none, or where it was deleted. Raises Unavailable."""
        live = await self._log.state(completion_id)
        if live is not None:
            return None if live.deleted else from_redis(live)
        record = await self._flights.pointer(completion_id)
        if record is not None:
            return await self.pointing(record)
        row = await asyncio.to_thread(self._books.completion, completion_id)
        if (row is None or not row.status.ended) and await self._redis.restored(completion_id):
            live = await self._log.state(completion_id)
            if live is not None:
                return None if live.deleted else from_redis(live)
            record = await self._flights.pointer(completion_id)
            if record is not None:
                return await self.pointing(record)
        if row is None:
            return None
        if row.generation is None and row.id != row.generation_id:
            state, own = await self._log.member(row.generation_id, row.id)
            if state is not None:
                return from_redis(state, accepted_of(row), own)
        return from_books(row)

    async def pointing(self, record: Accepted) -> Completion | None:
        """A completion that points to another one's generation."""
        state, own = await self._log.member(record.generation, record.id)
        if state is not None:
            return from_redis(state, record, own)
        row = await asyncio.to_thread(self._books.completion, record.id)
        if row is not None and row.generation is not None:
            return msgspec.structs.replace(from_books(row), record=record)
        generation = await asyncio.to_thread(self._books.generation, record.generation)
        if generation is not None:
            return from_result(record, generation)
        if await self._redis.restored(record.generation):
            state, own = await self._log.member(record.generation, record.id)
            if state is not None:
                return from_redis(state, record, own)
        return None if row is None else msgspec.structs.replace(from_books(row), record=record)


def from_redis(state: LogState, record: Accepted | None = None, own: OwnEnd | None = None) -> Completion:
    """The completion that created a generation; or the one of ``record``, which points to it."""
    if record is None:
        record, own = state.info, state.own
    offset = state.base if record.cache == "hit" else 0
    failure = None
    if own is not None:
        failure = failure_in(own.entry)
    elif state.end is not None:
        failure = failure_in(state.end)
    next_index = state.next if own is None else max(state.base, min(own.tail, state.next))
    ended_ms = state.ended_ms if own is None else own.ended_ms
    return Completion(
        id=record.id,
        generation=record.generation,
        tenant=record.tenant,
        key_id=record.key_id,
        end_user=record.end_user,
        model=record.model,
        provider=state.provider,
        resolved_model=state.model,
        queue=record.queue,
        store=record.store,
        metadata=record.metadata,
        cache=record.cache,
        state=state.state if own is None else State(own.state),
        failure=failure,
        attempt=state.attempt,
        base=state.base - offset,
        next=next_index - offset,
        created_ms=record.created_ms or state.created_ms,
        ended_ms=None if ended_ms is None else max(ended_ms, record.created_ms),
        fingerprint=record.fingerprint,
        live=state,
        offset=offset,
        own=own,
        record=record,
    )


def from_result(record: Accepted, result: Result | GenerationRow) -> Completion:
    """A completion that points to a finished answer."""
    return Completion(
        id=record.id,
        generation=record.generation,
        tenant=record.tenant,
        key_id=record.key_id,
        end_user=record.end_user,
        model=record.model,
        provider=result.provider,
        resolved_model=result.model,
        queue=record.queue,
        store=record.store,
        metadata=record.metadata,
        cache=record.cache,
        state=State.COMPLETED if isinstance(result, Result) else result.state,
        failure=None if isinstance(result, Result) else result.failure,
        attempt=0 if isinstance(result, Result) else result.attempt,
        base=0,
        next=result.next - result.base,
        created_ms=record.created_ms,
        ended_ms=max(record.created_ms, result.ended_ms),
        fingerprint=record.fingerprint,
        offset=result.base,
        record=record,
    )


def from_books(row: CompletionRow) -> Completion:
    generation, usage = row.generation, row.usage
    own: OwnEnd | None = None
    failure = generation.failure if generation is not None else None
    if row.tail is not None:
        error = _own_failure(row.status)
        own = OwnEnd(
            row.status.value,
            row.tail,
            row.ended_ms or row.created_ms,
            None if error is None else msgspec.to_builtins(error),
        )
        failure = error
    base = generation.base if generation is not None else 0
    next_index = generation.next if generation is not None else 0
    if own is not None:
        next_index = max(base, min(own.tail, next_index))
    offset = base if row.cache == "hit" else 0
    return Completion(
        id=row.id,
        generation=row.generation_id,
        tenant=row.tenant,
        key_id=row.key_id,
        end_user=row.end_user,
        model=row.model,
        provider=generation.provider if generation is not None else row.provider,
        resolved_model=generation.model if generation is not None else row.resolved_model,
        queue=row.queue,
        store=row.store,
        metadata=row.metadata,
        cache=row.cache,
        state=row.status,
        failure=failure,
        attempt=generation.attempt if generation is not None else 0,
        base=base - offset,
        next=next_index - offset,
        created_ms=row.created_ms,
        ended_ms=row.ended_ms,
        fingerprint=row.fingerprint,
        usage=usage,
        offset=offset,
        own=own,
    )


def accepted_of(row: CompletionRow) -> Accepted:
    """The record of a completion's acceptance, from the books."""
    return Accepted(
        id=row.id,
        generation=row.generation_id,
        tenant=row.tenant,
        key_id=row.key_id,
        end_user=row.end_user,
        model=row.model,
        provider=row.provider,
        resolved_model=row.resolved_model,
        queue=row.queue,
        fingerprint=row.fingerprint,
        store=row.store,
        metadata=row.metadata,
        cache=row.cache,
        created_ms=row.created_ms,
        deadline_ms=row.deadline_ms,
    )


def failure_in(end: EndEntry) -> Failure | None:
    """What an end says that went wrong."""
    return None if end.error is None else msgspec.convert(end.error, Failure)


def _own_failure(state: State) -> Failure | None:
    """Why a completion left that ended before its generation: cancelled, or past its deadline."""
    if state is State.FAILED:
        return DeadlineExceeded("The request's 'timeout' ran out before the answer was whole.").failure()
    return None
