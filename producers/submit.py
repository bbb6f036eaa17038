"""Accepting one completion: resolve, make the id, reserve, accept, put the message.

Only then is the caller answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from producers.catalog import Catalog
from producers.publish import Publisher
from producers.recent import Recent
from schemas.errors import Conflict, NotFound, Unavailable, Unprocessable
from schemas.fingerprint import fingerprint
from schemas.ids import new_completion_id
from schemas.keys import scoped_digest
from schemas.providers import Resolved
from schemas.records import VERSION, Accepted, Ended
from schemas.request import ChatCompletionRequest
from schemas.states import Queue, State
from stores.books import Books
from stores.chunklog import ChunkLog
from stores.outcomes import AcceptResult
from stores.redis import Redis
from stores.scripts import Scripts

#: Waits between the tries to cancel what Redis may or may not have accepted, in seconds.
LATE_PAUSES = (0.5, 1, 2, 4, 8, 16, 32)
#: How long an Idempotency-Key is remembered, in seconds.
IDEMPOTENCY_TTL = 24 * 3600
#: How long after its end a generation can be found by its fingerprint, in milliseconds.
FINGERPRINT_WINDOW_MS = 3600 * 1000
#: Generations of one fingerprint that are looked at together, newest first; and how many are looked up in SQL at most.
FINGERPRINT_PAGE, FINGERPRINT_BOOKS = 32, 64
#: How long the index of a fingerprint stays after its newest generation was accepted, in milliseconds.
FINGERPRINT_TTL_MS = 4 * FINGERPRINT_WINDOW_MS


class Caller(msgspec.Struct, frozen=True):
    """Who asks: tenant and key, and the end user of X-On-Behalf-Of."""

    tenant: str
    key_id: str
    end_user: str | None = None


class Work(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker needs of a request; kept in Redis until the generation ends."""

    params: dict[str, Any]
    targets: list[tuple[str, str]]
    end_user: str | None = None
    choices: int = 1
    v: int = VERSION


class Submission(msgspec.Struct, frozen=True):
    """An accepted completion. ``fresh`` is False where an Idempotency-Key led to one that was there already."""

    id: str
    created_ms: int
    resolved: Resolved
    fresh: bool = True


class Reservation(msgspec.Struct):
    """What an Idempotency-Key stands for."""

    id: str
    fingerprint: str
    end_user: str | None = None
    confirmed: bool = False


_work_encoder = msgspec.json.Encoder()
_work_decoder = msgspec.json.Decoder(Work)
_reservation_decoder = msgspec.json.Decoder(Reservation)


def decode_work(data: bytes) -> Work:
    return _work_decoder.decode(data)


class Submitter:
    """Takes completions in. One for a process."""

    def __init__(self, redis: Redis, catalog: Catalog, publisher: Publisher, books: Books) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._log = ChunkLog(redis)
        self.catalog = catalog
        self._publisher = publisher
        self._books = books
        self._late: set[asyncio.Task[None]] = set()
        self.recent = Recent(redis, books)

    async def submit(
        self,
        request: ChatCompletionRequest,
        caller: Caller,
        *,
        queue: Queue = Queue.INTERACTIVE,
        sample: int | None = None,
        idempotency_key: str | None = None,
        prepare: Callable[[str], Awaitable[None]] | None = None,
    ) -> Submission:
        """``prepare`` is given the id and awaited before any worker can hear of it: a place to subscribe.

        Raises ModelNotFound, Unprocessable for a reused Idempotency-Key, and Unavailable."""
        resolved = await self.catalog.resolve(request.model)
        params = request.params()
        digest = self._fingerprint(caller, resolved, params, sample)
        completion_id = new_completion_id()
        reservation: Reservation | None = None
        if idempotency_key is not None:
            reservation = await self._reserve(caller, idempotency_key, completion_id, digest)
            if reservation.confirmed:
                return Submission(reservation.id, 0, resolved, fresh=False)
            if reservation.id != completion_id and await self._is_taken_back(reservation.id):
                await self._release(caller, idempotency_key)
                reservation = await self._reserve(caller, idempotency_key, completion_id, digest)
            if reservation.id != completion_id and await self._in_books(reservation.id):
                await self._confirm(caller, idempotency_key, reservation)
                return Submission(reservation.id, 0, resolved, fresh=False)
            completion_id = reservation.id
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
        )
        work = Work(
            params=params,
            targets=[(t.provider, t.model) for t in resolved.targets],
            end_user=caller.end_user,
            choices=request.n_choices,
        )
        timeout_ms = 0 if request.timeout is None else max(1, int(request.timeout * 1000))
        encoded = encode_work(work)
        accepting = asyncio.create_task(self._scripts.accept(record, encoded, timeout_ms=timeout_ms))
        beside: list[Awaitable[None]] = []
        if queue is Queue.INTERACTIVE:
            beside.append(self._index(caller, digest, completion_id))
        if prepare is not None:
            beside.append(prepare(completion_id))
        tasks = [asyncio.ensure_future(awaitable) for awaitable in beside]
        try:
            await asyncio.gather(accepting, *tasks)
        except Exception:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # what they hold is known to the caller then
            await self._take_back(accepting, record, caller, idempotency_key)
            raise
        accepted = accepting.result()

        async def again() -> None:
            key: Reservation | None = None
            if idempotency_key is not None:
                key = Reservation(completion_id, digest, caller.end_user)
                held = await self._keep(caller, idempotency_key, key)
                if held is not None and _reservation_decoder.decode(held).id != completion_id:
                    return  # a retry has taken its place, whose caller had lost the answer
            if queue is Queue.INTERACTIVE:
                await self._index(caller, digest, completion_id)
            await self._scripts.accept(record, encoded, timeout_ms=timeout_ms, again=True)
            if idempotency_key is not None and key is not None:
                await self._confirm(caller, idempotency_key, key)

        self.recent.add(completion_id, len(encoded), again)
        if accepted.fresh or reservation is not None:
            # Behind a reservation that was never confirmed, an earlier call may have died before its message was out;
            # a message for work that is under way does nothing.
            try:
                await self._put(record, accepted)
            except Unavailable:
                await self._take_back(accepting, record, caller, idempotency_key)
                raise
        if idempotency_key is not None and reservation is not None:
            await self._confirm(caller, idempotency_key, reservation)
        return Submission(completion_id, accepted.created_ms, resolved, fresh=accepted.fresh)

    async def _take_back(
        self,
        accepting: Awaitable[AcceptResult],
        record: Accepted,
        caller: Caller,
        idempotency_key: str | None,
    ) -> None:
        """The caller is told that nothing was kept, and may safely ask again: what was accepted must not wait for a
        message that nobody puts."""
        self.recent.forget(record.id)
        try:
            if (await accepting).fresh:
                await self._undo(record)
                if idempotency_key is not None:
                    await self._release(caller, idempotency_key)
        except Unavailable:
            # Redis may have it all the same, or get it yet. Behind a reservation a retry goes on with it, or finds that
            # it was taken back.
            if idempotency_key is None:
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
        name = scoped_digest(record.tenant, record.end_user, record.fingerprint)
        keys = self._redis.keys(name)
        await self._redis.command(keys.partition, "ZREM", keys.fingerprint(name), record.id)
        return await self.cancel(record)

    async def cancel(self, record: Accepted) -> str:
        """Cancel a completion's generation: 'cancelled', 'cancelling', 'ended' or 'gone'."""
        self.recent.forget(record.id)
        return await self._scripts.cancel(never_ran(record), record.queue)

    # Resuming

    async def by_idempotency_key(self, caller: Caller, key: str) -> str:
        """The completion that an Idempotency-Key stands for. Raises NotFound."""
        name = self._idempotency_name(caller, key)
        keys = self._redis.keys(name)
        await self.recent.settled()
        data = await self._redis.command(keys.partition, "GET", keys.idempotency(name))
        reservation = _reservation_decoder.decode(data) if data else None
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
        alive: list[str] = []
        for at in range(0, len(members), FINGERPRINT_PAGE):
            page = [member.decode() for member in members[at : at + FINGERPRINT_PAGE]]
            alive += await self._run_or_ended(page, oldest, books=at < FINGERPRINT_BOOKS)
            if len(alive) > 1:
                break
        if not alive:
            raise NotFound(
                "Nothing to resume: no equal request runs or ended within the last hour. Send x-completion-id to "
                "name a completion, or leave x-last-chunk-index out to start a new one."
            )
        if len(alive) > 1:
            raise Conflict(
                "Several equal requests match: send x-completion-id to say which one to resume.",
                param="x-completion-id",
                code="ambiguous_resume",
            )
        return alive[0]

    # Inside

    async def _run_or_ended(self, generations: list[str], oldest_ms: int, *, books: bool) -> list[str]:
        """Those that run or have ended since then, and are not deleted. ``books``: whose log has left Redis, too."""
        states = await asyncio.gather(*(self._log.state(generation) for generation in generations))
        found: list[str] = []
        for generation, state in zip(generations, states, strict=True):
            if state is not None:
                ended_ms = state.ended_ms
            else:
                row = await asyncio.to_thread(self._books.completion, generation) if books else None
                if row is None:
                    continue
                ended_ms = row.ended_ms
            if ended_ms is None or ended_ms >= oldest_ms:
                found.append(generation)
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

    async def _index(self, caller: Caller, digest: str, completion_id: str) -> None:
        """Make the generation findable by its fingerprint. Written before it is accepted; whoever reads it looks."""
        name = scoped_digest(caller.tenant, caller.end_user, digest)
        keys = self._redis.keys(name)
        index = keys.fingerprint(name)
        made_ms = int(completion_id.removeprefix("chatcmpl-")[:12], 16)
        await self._redis.commands(
            keys.partition,
            [
                ("ZADD", index, made_ms, completion_id),
                ("PEXPIRE", index, FINGERPRINT_TTL_MS),
                ("ZREMRANGEBYSCORE", index, "-inf", made_ms - FINGERPRINT_TTL_MS),
            ],
        )

    @staticmethod
    def _idempotency_name(caller: Caller, key: str) -> str:
        return scoped_digest(caller.tenant, key)

    async def _reserve(self, caller: Caller, key: str, completion_id: str, digest: str) -> Reservation:
        mine = Reservation(completion_id, digest, caller.end_user)
        data = await self._keep(caller, key, mine)
        if data is None:
            return mine
        held = _reservation_decoder.decode(data)
        if held.fingerprint != digest or held.end_user != caller.end_user:
            raise Unprocessable(
                "This Idempotency-Key was used with another request. Send a new key, or the same request.",
                param="Idempotency-Key",
            )
        return held

    async def _keep(self, caller: Caller, key: str, reservation: Reservation) -> bytes | None:
        """What the key stands for already; None where it is this by now."""
        name = self._idempotency_name(caller, key)
        keys = self._redis.keys(name)
        data = msgspec.json.encode(reservation)
        return await self._redis.command(
            keys.partition, "SET", keys.idempotency(name), data, "NX", "GET", "EX", IDEMPOTENCY_TTL
        )

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

    async def _release(self, caller: Caller, key: str) -> None:
        name = self._idempotency_name(caller, key)
        keys = self._redis.keys(name)
        await self._redis.command(keys.partition, "DEL", keys.idempotency(name))

    async def _confirm(self, caller: Caller, key: str, reservation: Reservation) -> None:
        """From here on the key's completion is in Redis or in the books, and is never made again."""
        name = self._idempotency_name(caller, key)
        keys = self._redis.keys(name)
        reservation.confirmed = True
        await self._redis.command(
            keys.partition, "SET", keys.idempotency(name), msgspec.json.encode(reservation), "XX", "KEEPTTL"
        )


def encode_work(work: Work) -> bytes:
    try:
        return _work_encoder.encode(work)
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError):
        return json.dumps(msgspec.to_builtins(work), separators=(",", ":")).encode()


def never_ran(record: Accepted) -> Ended:
    """The end of a completion that is cancelled before any worker had it."""
    return Ended(
        generation=record.generation,
        state=State.CANCELLED.value,
        provider=record.provider,
        model=record.resolved_model,
        failure=None,
    )
