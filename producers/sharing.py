"""Before a request is accepted as work: an answer that is there already, or on its way for an equal request.

Only what a request may share by its ``CachePolicy`` comes here. Where nothing answers it, its fingerprint's flight is
reserved for it, and others will join the generation that it becomes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from schemas.caching import CachePolicy
from schemas.errors import CacheMiss, Unavailable
from schemas.records import Accepted
from schemas.states import Queue
from stores.cache import Cache, CacheLimits
from stores.chunklog import ChunkLog
from stores.flights import PRODUCER_PATIENCE_MS, Flights, Flying, Hit, Nothing, Reserved, Result, whole
from stores.redis import Redis

log = logging.getLogger("tailrace.submit")

#: Pauses between looks at a flight whose generation is not there yet, in seconds: doubled from the first to the last.
PAUSE_FIRST, PAUSE_LAST = 0.01, 0.16


class Shared(msgspec.Struct, frozen=True):
    """A completion that was accepted with another one's generation: ``result`` where that is finished."""

    record: Accepted
    result: Result | None = None
    age_ms: int = 0
    #: Bulk work that it joined, and that is interactive now: the number of the message to put, 0 where it needs none.
    promoted: int | None = None


class Sharing:
    """Answers from elsewhere; one for a process."""

    def __init__(self, redis: Redis, cache: Cache, limits: CacheLimits) -> None:
        self._flights = Flights(redis)
        self._log = ChunkLog(redis)
        self._cache = cache
        self._limits = limits

    async def share(
        self, record: Accepted, policy: CachePolicy, *, timeout_ms: int = 0, books: bool = True
    ) -> Shared | None:
        """The completion, accepted, where somebody else's work answers it. None: it is to be accepted as work of its
        own, and until then its flight is reserved. ``books``: look into those too.

        Raises CacheMiss where nothing else will do, and Unavailable.
        """
        if not policy.reads:
            if policy.only:
                raise miss()
            if policy.joins:
                await self._flights.seek(record.fingerprint, record.id, "ask")
            return None
        max_age_ms = None if policy.max_age is None else policy.max_age * 1000
        instead = ""
        pause = PAUSE_FIRST
        while True:
            found = await self._flights.seek(
                record.fingerprint,
                record.id,
                "join" if policy.joins else "read",
                max_age_ms=max_age_ms,
                instead=instead,
            )
            match found:
                case Hit(result, age_ms):
                    shared = await self._hit(record, result, age_ms)
                    if shared is not None:
                        return shared
                    await self._flights.cool(record.fingerprint)
                case Flying(generation) if not policy.joins and not await self._is_whole(generation):
                    instead = generation
                case Flying(generation, waited_ms):
                    joined = await self._flights.join(
                        generation,
                        record.id,
                        timeout_ms=timeout_ms,
                        promote=record.queue == Queue.INTERACTIVE.value,
                    )
                    match joined.how:
                        case "joined":
                            due = msgspec.structs.replace(record, deadline_ms=joined.deadline_ms)
                            shared = await self._point(due, generation, "join")
                            if shared is None or joined.promoted is None:
                                return shared
                            return msgspec.structs.replace(shared, promoted=joined.promoted)
                        case "completed":
                            shared = await self._finished(record, generation, max_age_ms)
                            if shared is not None:
                                return shared
                            instead = generation
                        case "gone" if waited_ms is not None and waited_ms < PRODUCER_PATIENCE_MS:
                            await asyncio.sleep(pause)
                            pause = min(2 * pause, PAUSE_LAST)
                        case _:
                            instead = generation
                case Reserved() | Nothing():
                    shared = await self._from_books(record, max_age_ms) if books else None
                    if isinstance(found, Reserved) and shared is not None:
                        await self.abandon(record)
                    if shared is None and policy.only:
                        raise miss()
                    return shared

    async def accepted(self, record: Accepted) -> None:
        """What was reserved is accepted: others may wait for it as long as it takes."""
        with contextlib.suppress(Unavailable):  # whoever finds its generation joins it all the same
            await self._flights.keep(record.fingerprint, record.id)

    async def abandon(self, record: Accepted) -> None:
        """What was reserved is not accepted."""
        with contextlib.suppress(Unavailable):
            await self._flights.land(record.fingerprint, record.id)

    async def again(self, completion_id: str) -> Accepted | None:
        """The record of a completion that an earlier call accepted with another one's generation."""
        return await self._flights.pointer(completion_id)

    async def repeat(self, record: Accepted) -> None:
        """Accept a completion again, of which Redis has lost the pointer. Raises Unavailable."""
        if record.cache == "join":
            await self._flights.join(record.generation, record.id)
        await self._flights.point(msgspec.structs.replace(record, created_ms=0))

    # Inside

    async def _hit(self, record: Accepted, result: Result, age_ms: int) -> Shared | None:
        """None where the text of the result is gone."""
        if result.log is None:
            stored = await self._text(record, result)
            if stored is None:
                return None
            result = stored
        shared = await self._point(record, result.generation, "hit")
        return None if shared is None else msgspec.structs.replace(shared, result=result, age_ms=age_ms)

    async def _text(self, record: Accepted, result: Result) -> Result | None:
        """A result that is too large for a copy in Redis, from the books."""
        with contextlib.suppress(SQLAlchemyError):
            found = await asyncio.to_thread(self._cache.find, record.tenant, record.fingerprint)
            if found is not None and found[0].generation == result.generation:
                return found[0]
        return None

    async def _is_whole(self, generation: str) -> bool:
        state = await self._log.state(generation)
        return state is not None and whole(state)

    async def _finished(self, record: Accepted, generation: str, max_age_ms: int | None) -> Shared | None:
        """From the log of a generation that the books don't have yet; None where it is of no use."""
        state, now = await asyncio.gather(
            self._log.state(generation), self._log.redis.now_ms(self._log.redis.partition(generation))
        )
        if state is None or not whole(state):
            return None
        ended_ms = state.ended_ms or state.created_ms
        age_ms = max(0, now - ended_ms)
        if max_age_ms is not None and age_ms > max_age_ms:
            return None
        stored = await self._log.whole(generation, state)
        info = state.info
        result = Result(
            generation, info.provider, info.resolved_model, ended_ms, stored.base, stored.next, stored
        )
        return await self._hit(record, result, age_ms)

    async def _from_books(self, record: Accepted, max_age_ms: int | None) -> Shared | None:
        """A result that has left Redis; its copy is put there again. A database that is away is no cache."""
        try:
            found = await asyncio.to_thread(
                self._cache.find, record.tenant, record.fingerprint, max_age_ms=max_age_ms
            )
        except SQLAlchemyError as error:
            log.warning("the cache is left out, for the database failed: %s", error)
            return None
        if found is None:
            return None
        result, age_ms = found
        limits = self._limits
        await self._flights.warm(
            record.fingerprint,
            result,
            owner=record.id,
            ttl_ms=limits.hot_ms,
            largest=limits.hot_bytes,
        )
        return await self._hit(record, result, age_ms)

    async def _point(self, record: Accepted, generation: str, outcome: str) -> Shared | None:
        """None where the completion has become a generation of its own, by another call with its Idempotency-Key."""
        pointing = msgspec.structs.replace(record, generation=generation, cache=outcome)
        accepted = await self._flights.point(pointing)
        return None if accepted is None else Shared(accepted)


def miss() -> CacheMiss:
    return CacheMiss("Nothing is cached for this request. Leave 'only-if-cached' out to ask the model.")
