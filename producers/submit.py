"""Accepting one completion: resolve, make the id, reserve, accept, put the message.

Only then is the caller answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from producers.catalog import Catalog
from producers.idempotency import Held, IdempotencyKeys, Reservation
from producers.publish import Publisher
from producers.recent import Recent
from producers.sharing import Shared, Sharing
from producers.work import Work, encode_work
from schemas.caching import BYPASS, CachePolicy
from schemas.errors import CacheMiss, Conflict, NotFound, Unavailable
from schemas.estimate import estimate
from schemas.fingerprint import fingerprint
from schemas.ids import new_completion_id
from schemas.keys import scoped_digest
from schemas.prices import Prices
from schemas.providers import Resolved
from schemas.records import Accepted, Ended, Usage
from schemas.request import ChatCompletionRequest
from schemas.states import Queue, State
from stores.books import Books
from stores.cache import DEFAULT_LIMITS, Cache, CacheLimits
from stores.chunklog import ChunkLog
from stores.keylimits import Ticket
from stores.outcomes import AcceptResult
from stores.permits import Permits
from stores.redis import Redis
from stores.scripts import Scripts
from stores.wire import Arg

#: Waits between the tries to cancel what Redis may or may not have accepted, in seconds.
LATE_PAUSES = (0.5, 1, 2, 4, 8, 16, 32)
#: How long after its end a generation can be found by its fingerprint, in milliseconds.
FINGERPRINT_WINDOW_MS = 3600 * 1000
#: Generations of one fingerprint that are looked at together, newest first; and how many are looked up in SQL at most.
FINGERPRINT_PAGE, FINGERPRINT_BOOKS = 32, 64
#: How long the index of a fingerprint stays after its newest generation was accepted, in milliseconds.
FINGERPRINT_TTL_MS = 4 * FINGERPRINT_WINDOW_MS
#: What a completion that points to another one's generation is remembered by, in bytes.
POINTER_BYTES = 1024
#: Completions that point to others' generations, of one fingerprint, that can be resumed by it: the newest.
HITS_INDEXED = 64


class Caller(msgspec.Struct, frozen=True):
    """Who asks: tenant and key, and the end user of X-On-Behalf-Of."""

    tenant: str
    key_id: str
    end_user: str | None = None


class Submission(msgspec.Struct, frozen=True):
    """An accepted completion. ``fresh`` is False where an Idempotency-Key led to one that was there already.
    ``shared``: somebody else's work answers it.
    """

    id: str
    created_ms: int
    resolved: Resolved
    fresh: bool = True
    cache: str = "bypass"
    shared: Shared | None = None


class Submitter:
    """Takes completions in. One for a process."""

    def __init__(
        self,
        redis: Redis,
        catalog: Catalog,
        publisher: Publisher,
        books: Books,
        limits: CacheLimits = DEFAULT_LIMITS,
    ) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._log = ChunkLog(redis)
        self.catalog = catalog
        self._publisher = publisher
        self._books = books
        self._keys = IdempotencyKeys(redis)
        self._permits = Permits(redis, window_ms=0)
        self._sharing = Sharing(redis, Cache(books.engine), limits)
        self._late: set[asyncio.Task[None]] = set()
        self.recent = Recent(redis, books)

    async def submit(
        self,
        request: ChatCompletionRequest,
        caller: Caller,
        *,
        queue: Queue = Queue.INTERACTIVE,
        sample: int | None = None,
        policy: CachePolicy = BYPASS,
        idempotency_key: str | None = None,
        prepare: Callable[[str], Awaitable[None]] | None = None,
        ticket: Ticket | None = None,
    ) -> Submission:
        """``prepare`` is given the id of new work and awaited before any worker can hear of it: a place to subscribe.
        ``ticket``: of a key with limits, which new work counts for.

        Raises ModelNotFound, Unprocessable for a reused Idempotency-Key, CacheMiss, LimitReached and Unavailable."""
        resolved = await self.catalog.resolve(request.model)
        params = request.params()
        digest = self._fingerprint(caller, resolved, params, sample)
        completion_id = new_completion_id()
        held: Held | None = None
        if idempotency_key is not None:
            mine = Reservation(completion_id, digest, caller.end_user, tenant=caller.tenant)
            held = await self._reserve(caller, idempotency_key, mine)
            if held.confirmed:
                return Submission(held.id, 0, resolved, fresh=False)
            if not held.fresh and await self._is_taken_back(held.id):
                await held.release()
                held = await self._reserve(caller, idempotency_key, mine)
            if not held.fresh and await self._in_books(held.id):
                await held.confirm()
                return Submission(held.id, 0, resolved, fresh=False)
            completion_id = held.id
        record = Accepted(
            id=completion_id,
            generation=completion_id,
            tenant=caller.tenant,
            key_id=caller.key_id,
            end_user=caller.end_user,
            model=request.model,
            provider=resolved.provider,
            resolved_model=resolved.model,
            queue=queue.value,
            fingerprint=digest,
            store=request.store is not False,
            metadata=params.get("metadata"),
            cache="miss" if policy.writes else "bypass",
            choices=request.n_choices if policy.writes else 1,
        )
        timeout_ms = 0 if request.timeout is None else max(1, int(request.timeout * 1000))
        # Behind a reservation that was never confirmed, an earlier call may have accepted it, one way or the other.
        retried = held is not None and not held.fresh
        new = not retried or await self._log.state(completion_id) is None
        if new:
            shared = await self._shared(record, policy, timeout_ms, held)
            if shared is not None:
                return await self._submitted(shared, resolved, held)
        work = Work(
            params=params,
            targets=[(t.provider, t.model) for t in resolved.targets],
            end_user=caller.end_user,
            choices=request.n_choices,
        )
        encoded = encode_work(work)
        if new and ticket is not None:
            record = await self._admit(ticket, record, work, len(encoded), policy, held)
        accepting = asyncio.create_task(self._scripts.accept(record, encoded, timeout_ms=timeout_ms))
        beside: list[Awaitable[None]] = []
        if queue is Queue.INTERACTIVE:
            beside.append(self._index(record))
        if prepare is not None:
            beside.append(prepare(completion_id))
        tasks = [asyncio.ensure_future(awaitable) for awaitable in beside]
        try:
            await asyncio.gather(accepting, *tasks)
        except Exception:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # what they hold is known to the caller then
            if policy.joins:
                await self._sharing.abandon(record)
            await self._take_back(accepting, record, held)
            raise
        accepted = accepting.result()

        async def again(over: bool) -> None:
            if held is not None and not await held.keep():
                return
            if not over:
                if queue is Queue.INTERACTIVE:
                    await self._index(record)
                await self._scripts.accept(record, encoded, timeout_ms=timeout_ms, again=True)
            if held is not None:
                await held.confirm()

        self.recent.add(completion_id, len(encoded), again)
        if accepted.fresh or held is not None:
            # The earlier call may have died before its message was out; one for work that is under way does nothing.
            try:
                if policy.joins:
                    await asyncio.gather(self._put(record, accepted), self._sharing.accepted(record))
                else:
                    await self._put(record, accepted)
            except Unavailable:
                await self._take_back(accepting, record, held)
                raise
        if held is not None:
            await held.confirm()
        return Submission(
            completion_id, accepted.created_ms, resolved, fresh=accepted.fresh, cache=record.cache
        )

    async def _reserve(self, caller: Caller, key: str, mine: Reservation) -> Held:
        """Where Redis has just come back, and may have forgotten whom the key stands for, only once it knows again."""
        while True:
            await self.recent.settled()
            returns = self.recent.returns
            held = await self._keys.reserve(caller.tenant, key, mine)
            if not held.fresh or returns == self.recent.returns:
                return held
            await held.release()

    async def _shared(
        self, record: Accepted, policy: CachePolicy, timeout_ms: int, held: Held | None
    ) -> Shared | None:
        """The completion, accepted with somebody else's work. Raises CacheMiss and Unavailable."""
        if policy is BYPASS:
            return None
        if held is not None and not held.fresh:
            known = await self._sharing.again(record.id)
            if known is not None:
                return Shared(known)
        try:
            return await self._sharing.share(record, policy, timeout_ms=timeout_ms)
        except CacheMiss:
            if held is not None:
                await held.give_back()
            raise

    async def _submitted(self, shared: Shared, resolved: Resolved, held: Held | None) -> Submission:
        record = shared.record
        await asyncio.gather(self._index(record, most=HITS_INDEXED), self._promoted(shared))
        if held is not None:
            await held.confirm()

        async def again(over: bool) -> None:
            if held is not None and not await held.keep():
                return
            if not over:
                await self._index(record, most=HITS_INDEXED)
                await self._sharing.repeat(record)
            if held is not None:
                await held.confirm()

        self.recent.add(record.id, POINTER_BYTES, again)
        return Submission(record.id, record.created_ms, resolved, cache=record.cache, shared=shared)

    async def _promoted(self, shared: Shared) -> None:
        """Bulk work that somebody waits for now goes before other bulk work. It was accepted whatever comes of this:
        a message that isn't put is in the outbox."""
        record = shared.record
        if shared.promoted is None:
            return
        provider = self.catalog.providers.providers.get(record.provider)
        with contextlib.suppress(Unavailable):
            if shared.promoted:
                await self._publisher.publish(record.generation, record.queue, shared.promoted)
                await self._scripts.published(record.generation)
            elif provider is not None and provider.limited:
                await self._permits.promote(provider, record.generation)

    async def _admit(
        self, ticket: Ticket, record: Accepted, work: Work, size: int, policy: CachePolicy, held: Held | None
    ) -> Accepted:
        """Raises LimitReached and Unavailable; then the request has reserved nothing any more."""
        prompt, answer = estimate(work.params)
        try:
            cost = 0
            if ticket.budgeted:
                usage = Usage(prompt_tokens=prompt, completion_tokens=answer)
                prices, now_ms = Prices(self.catalog.providers.providers), time.time_ns() // 1_000_000
                cost = await asyncio.to_thread(  # the first time it loads the list of prices
                    prices.cost_nano, record.provider, record.resolved_model, usage, now_ms
                )
            return await ticket.admit(record, tokens=prompt + answer, size=size, cost_nano=cost or 0)
        except Exception:
            if policy.joins:
                await self._sharing.abandon(record)
            if held is not None:
                await held.give_back()
            raise

    async def _take_back(
        self,
        accepting: Awaitable[AcceptResult],
        record: Accepted,
        held: Held | None,
    ) -> None:
        """The caller is told that nothing was kept, and may safely ask again: what was accepted must not wait for a
        message that nobody puts."""
        self.recent.forget(record.id)
        try:
            if (await accepting).fresh:
                await self._undo(record)
                if held is not None:
                    await held.release()
        except Unavailable:
            # Redis may have it all the same, or get it yet. Behind a reservation a retry goes on with it, or finds that
            # it was taken back.
            if held is None:
                task = asyncio.create_task(self._cancel_late(record))
                self._late.add(task)
                task.add_done_callback(self._late.discard)

    async def _cancel_late(self, record: Accepted) -> None:
        """Cancel what nobody knows to be there; it may appear as soon as Redis reads on."""
        for pause in LATE_PAUSES:
            await asyncio.sleep(pause)
            with contextlib.suppress(Unavailable):
                if await self._undo(record) != "gone":
                    return

    async def _put(self, record: Accepted, accepted: AcceptResult) -> None:
        await self._publisher.publish(record.id, record.queue, accepted.seq)
        with contextlib.suppress(Unavailable):
            # The message is out, so the work is accepted; what is left in the outbox is put once more, for nothing.
            await self._scripts.published(record.id)

    async def _undo(self, record: Accepted) -> str:
        """Cancel what its caller was never told of, so that resuming by fingerprint doesn't find it either."""
        if record.cache == "miss":
            await self._sharing.abandon(record)
        name = scoped_digest(record.tenant, record.end_user, record.fingerprint)
        keys = self._redis.keys(name)
        await self._redis.command(keys.partition, "ZREM", keys.fingerprint(name), record.id)
        return await self.cancel(record, record.queue)

    async def cancel(self, record: Accepted, queue: str) -> str:
        """Cancel a completion, and its generation, which waits in ``queue``, where that serves no other one:
        'cancelled', 'left', 'cancelling', 'ended' or 'gone'."""
        self.recent.forget(record.id)
        return await self._scripts.cancel(never_ran(record), queue, who=record)

    # Resuming

    async def by_idempotency_key(self, caller: Caller, key: str) -> str:
        """The completion that an Idempotency-Key stands for. Raises NotFound."""
        await self.recent.settled()
        reservation = await self._keys.find(caller.tenant, key)
        if reservation is None or reservation.end_user != caller.end_user:
            raise NotFound("No completion with this Idempotency-Key in the last 24 hours: nothing to resume.")
        return reservation.id

    async def by_fingerprint(self, request: ChatCompletionRequest, caller: Caller, sample: int | None) -> str:
        """The one generation of an equal request that runs, or ended within the last hour.

        Raises NotFound where there is none, Conflict where there are several.
        """
        await self.recent.settled()
        resolved = await self.catalog.resolve(request.model)
        digest = self._fingerprint(caller, resolved, request.params(), sample)
        name = scoped_digest(caller.tenant, caller.end_user, digest)
        keys = self._redis.keys(name)
        members: list[bytes] = await self._redis.command(
            keys.partition, "ZRANGE", keys.fingerprint(name), 0, -1, "REV"
        )
        now_s, _ = await self._redis.command(keys.partition, "TIME")
        oldest = int(now_s) * 1000 - FINGERPRINT_WINDOW_MS
        alive: list[tuple[str, str]] = []
        for at in range(0, len(members), FINGERPRINT_PAGE):
            page = [member.decode() for member in members[at : at + FINGERPRINT_PAGE]]
            alive += await self._run_or_ended(page, oldest, books=at < FINGERPRINT_BOOKS)
            if len({generation for _, generation in alive}) > 1:
                break
        if not alive:
            raise NotFound(
                "Nothing to resume: no equal request runs or ended within the last hour. Send x-completion-id to "
                "name a completion, or leave x-last-chunk-index out to start a new one."
            )
        if len({generation for _, generation in alive}) > 1:
            raise Conflict(
                "Several equal requests match: send x-completion-id to say which one to resume.",
                param="x-completion-id",
                code="ambiguous_resume",
            )
        return alive[0][0]

    # Inside

    async def _run_or_ended(
        self, completions: list[str], oldest_ms: int, *, books: bool
    ) -> list[tuple[str, str]]:
        """Those that run or have ended since then, and are not deleted, each with its generation. ``books``: whose log
        has left Redis, too."""
        states = await asyncio.gather(*(self._log.state(completion) for completion in completions))
        found: list[tuple[str, str]] = []
        for completion, state in zip(completions, states, strict=True):
            if state is not None:
                if not state.deleted and (state.ended_ms is None or state.ended_ms >= oldest_ms):
                    found.append((completion, completion))
                continue
            pointer = await self._sharing.again(completion)
            if pointer is not None and pointer.created_ms >= oldest_ms:
                found.append((completion, pointer.generation))
                continue
            row = await asyncio.to_thread(self._books.completion, completion) if books else None
            if row is not None and (row.ended_ms is None or row.ended_ms >= oldest_ms):
                found.append((completion, row.generation_id))
        return found

    @staticmethod
    def _fingerprint(caller: Caller, resolved: Resolved, params: dict[str, Any], sample: int | None) -> str:
        return fingerprint(
            tenant=caller.tenant,
            provider=resolved.provider,
            model=resolved.model,
            params=params,
            sample=sample,
        )

    async def _index(self, record: Accepted, *, most: int | None = None) -> None:
        """Make the completion findable by its fingerprint. Whoever reads it looks. ``most``: among so many others."""
        name = scoped_digest(record.tenant, record.end_user, record.fingerprint)
        keys = self._redis.keys(name)
        index = keys.fingerprint(name)
        made_ms = int(record.id.removeprefix("chatcmpl-")[:12], 16)
        commands: list[tuple[Arg, ...]] = [
            ("ZADD", index, made_ms, record.id),
            ("PEXPIRE", index, FINGERPRINT_TTL_MS),
            ("ZREMRANGEBYSCORE", index, "-inf", made_ms - FINGERPRINT_TTL_MS),
        ]
        if most is not None:
            commands[2] = ("ZREMRANGEBYRANK", index, 0, -most - 1)
        await self._redis.commands(keys.partition, commands)

    async def _is_taken_back(self, completion_id: str) -> bool:
        """A call whose caller was told that nothing was kept has cancelled it, and could not give its key back."""
        state = await self._log.state(completion_id)
        if state is not None:
            return state.state is State.CANCELLED and state.attempt == 0
        row = await asyncio.to_thread(self._books.completion, completion_id)
        return (
            row is not None
            and row.status is State.CANCELLED
            and row.generation is not None
            and row.generation.attempt == 0
        )

    async def _in_books(self, completion_id: str) -> bool:
        return await asyncio.to_thread(self._books.completion, completion_id) is not None


def never_ran(record: Accepted) -> Ended:
    """The end of a completion that is cancelled before any worker had it."""
    return Ended(
        generation=record.generation,
        state=State.CANCELLED.value,
        provider=record.provider,
        model=record.resolved_model,
        failure=None,
    )
