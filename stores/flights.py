"""What equal requests share, in Redis: who fetches their answer (the *flight* of a fingerprint), the hot copy of a
result that is cached, and the completions that point to a generation of another one.

A flight is reserved for a completion before that is accepted, and kept when it was. A flight whose generation never
came is another's after ``PRODUCER_PATIENCE_MS``.
"""

from __future__ import annotations

from typing import Literal

import hiredis
import msgspec

from schemas.keys import deadline_of
from schemas.records import Accepted, StoredLog, decode_record, encode, open_record
from schemas.states import Queue
from stores.chunklog import LogState
from stores.redis import Redis, Script, full

_SEEK, _KEEP, _JOIN, _POINT, _DROP = (
    Script("seek"),
    Script("keep"),
    Script("join"),
    Script("point"),
    Script("drop"),
)
_WARM = Script("warm")

_INTERACTIVE, _BULK = Queue.INTERACTIVE.value, Queue.BULK.value

#: How long a reservation lasts, in milliseconds.
RESERVATION_MS = 10_000
#: How long the others wait for what was reserved to be accepted, in milliseconds.
PRODUCER_PATIENCE_MS = 2_000
#: How long a flight is kept that nobody ends: by then Redis has lost its generation. In milliseconds.
FLIGHT_TTL_MS = 24 * 3600 * 1000
#: Hot copies that one command drops.
COOLED_AT_ONCE = 500

Mode = Literal["join", "read", "ask"]


class Result(msgspec.Struct, frozen=True):
    """A finished answer that others may have: its generation, when that ended, and its log where it is at hand."""

    generation: str
    provider: str
    model: str
    ended_ms: int
    base: int
    next: int
    log: StoredLog | None = None

    @property
    def size(self) -> int:
        return 0 if self.log is None else len(self.log.head) + len(self.log.items)


class Hit(msgspec.Struct, frozen=True):
    result: Result
    age_ms: int


class Flying(msgspec.Struct, frozen=True):
    """Somebody fetches the answer. ``waited_ms``: since when it is reserved; None for one that was accepted."""

    generation: str
    waited_ms: int | None


class Reserved(msgspec.Struct, frozen=True):
    """The one who asked is to fetch it."""


class Nothing(msgspec.Struct, frozen=True):
    """There is no result."""


class Joined(msgspec.Struct, frozen=True):
    """``completed``: the completion points to a finished answer that may serve others."""

    how: Literal["joined", "completed", "ended", "gone"]
    deadline_ms: int | None = None
    #: It was bulk work, and is interactive now: the number of the message to put, 0 where it needs none.
    promoted: int | None = None


class _Meta(msgspec.Struct, frozen=True):
    generation: str
    provider: str
    model: str
    base: int
    next: int


_meta_decoder = msgspec.json.Decoder(_Meta)
_metadata_decoder = msgspec.json.Decoder(dict[str, str] | None)


class Flights:
    """On one key space."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def seek(
        self,
        fingerprint: str,
        completion: str,
        mode: Mode,
        *,
        max_age_ms: int | None = None,
        instead: str = "",
    ) -> Hit | Flying | Reserved | Nothing:
        """What answers a request. ``instead``: the generation that is known to be of no use. Raises Unavailable."""
        keys = self._redis.keys(fingerprint)
        try:
            answer = await self._redis.script(
                keys.partition,
                _SEEK,
                [keys.hot(fingerprint), keys.flight(fingerprint)],
                [completion, mode, "" if max_age_ms is None else max_age_ms, RESERVATION_MS, instead],
            )
        except hiredis.ReplyError as error:
            raise full(error) from None
        match answer[0]:
            case b"hit":
                _, age_ms, meta, items = answer
                found = _meta_decoder.decode(meta)
                log = None
                if items is not None:
                    head, _, rest = items.partition(b"\n")
                    log = StoredLog(head, rest, found.base, found.next)
                # The time of the end is of no use to whom the age was told.
                result = Result(found.generation, found.provider, found.model, 0, found.base, found.next, log)
                return Hit(result, age_ms)
            case b"flight":
                _, generation, ttl_ms = answer
                waited = RESERVATION_MS - ttl_ms if ttl_ms <= RESERVATION_MS else None
                return Flying(generation.decode(), waited)
            case b"reserved":
                return Reserved()
            case _:
                return Nothing()

    async def keep(self, fingerprint: str, generation: str) -> None:
        """What was reserved is accepted."""
        await self._keep(fingerprint, generation, FLIGHT_TTL_MS)

    async def land(self, fingerprint: str, generation: str) -> None:
        """Nobody is to join the generation any more, or it never came to be."""
        await self._keep(fingerprint, generation, 0)

    async def _keep(self, fingerprint: str, generation: str, ttl_ms: int) -> None:
        keys = self._redis.keys(fingerprint)
        await self._redis.script(keys.partition, _KEEP, [keys.flight(fingerprint)], [generation, ttl_ms])

    async def warm(self, fingerprint: str, result: Result, *, owner: str, ttl_ms: int, largest: int) -> None:
        """Put a result's hot copy; of one that is larger, only where it is. Nothing happens where somebody else than
        ``owner`` fetches a newer one. Memory that is full is no error."""
        keys = self._redis.keys(fingerprint)
        log = result.log
        meta = _Meta(result.generation, result.provider, result.model, result.base, result.next)
        items = log.head + b"\n" + log.items if log is not None and result.size <= largest else b""
        try:
            await self._redis.script(
                keys.partition,
                _WARM,
                [keys.hot(fingerprint), keys.flight(fingerprint)],
                [owner, ttl_ms, result.ended_ms, encode(meta), items],
            )
        except hiredis.ReplyError as error:
            if not str(error).startswith("OOM"):
                raise

    async def cool(self, *fingerprints: str) -> None:
        """Drop the hot copies of results."""
        by_partition: dict[int, list[str]] = {}
        for fingerprint in fingerprints:
            keys = self._redis.keys(fingerprint)
            by_partition.setdefault(keys.partition, []).append(keys.hot(fingerprint))
        for partition, names in by_partition.items():
            for first in range(0, len(names), COOLED_AT_ONCE):
                await self._redis.command(partition, "DEL", *names[first : first + COOLED_AT_ONCE])

    async def join(
        self, generation: str, completion: str, *, timeout_ms: int = 0, promote: bool = False
    ) -> Joined:
        """``timeout_ms`` from now is the completion's deadline, 0 is none. ``promote``: somebody waits for it, so that
        bulk work becomes interactive. Raises Unavailable."""
        keys = self._redis.keys(generation)
        try:
            how, due, promoted = await self._redis.script(
                keys.partition,
                _JOIN,
                [
                    *(keys.gen(generation), keys.members(generation), keys.deadlines),
                    *(keys.seq(_INTERACTIVE), keys.queued(_INTERACTIVE), keys.queued(_BULK), keys.outbox),
                ],
                [completion, timeout_ms, deadline_of(generation, completion), generation, int(promote)],
            )
        except hiredis.ReplyError as error:
            raise full(error) from None
        return Joined(how.decode(), due or None, promoted if promoted >= 0 else None)

    async def point(self, record: Accepted) -> Accepted | None:
        """Accept a completion of another one's generation. The record as it was accepted, by this call or before;
        None where the completion has a generation of its own. Raises Unavailable."""
        keys = self._redis.keys(record.id)
        try:
            info = await self._redis.script(
                keys.partition,
                _POINT,
                [keys.ptr(record.id), keys.gen(record.id), keys.ledger],
                [open_record(record)],
            )
        except hiredis.ReplyError as error:
            raise full(error) from None
        if info is None:
            return None
        accepted = decode_record(info)
        assert isinstance(accepted, Accepted)
        return accepted

    async def pointer(self, completion: str) -> Accepted | None:
        """The record of a completion that points to another one's generation; None where Redis has none (any more)."""
        keys = self._redis.keys(completion)
        info, metadata = await self._redis.command(
            keys.partition, "HMGET", keys.ptr(completion), "info", "metadata"
        )
        if info is None:
            return None
        record = decode_record(info)
        assert isinstance(record, Accepted)
        if metadata is not None:
            record = msgspec.structs.replace(record, metadata=_metadata_decoder.decode(metadata))
        return record

    async def drop(self, generation: str, completion: str) -> None:
        """A completion of an ended generation is deleted: its pointer goes, and state and log with the last one."""
        own, keys = self._redis.keys(completion), self._redis.keys(generation)
        await self._redis.script(
            keys.partition,
            _DROP,
            [keys.gen(generation), keys.log(generation), keys.members(generation)],
            [generation, completion],
        )
        await self._redis.command(own.partition, "DEL", own.ptr(completion))


def whole(state: LogState) -> bool:
    """Whether a generation has an answer that may serve others: all of it, from the target that was asked for first."""
    info = state.info
    first = (state.provider, state.model) == (info.provider, info.resolved_model)
    return first and state.ended and not state.deleted and state.whole > 0 and state.whole == info.choices
