"""Reading a chunk log from Redis: the state of its generation and ranges of its entries.

Entry IDs are `<index of the last chunk + 1>-0` for chunks and `<next>-1` and up for markers and the end, so "everything
after index N" is the range that starts after `<N + 1>-0`: a seek, whatever the length of the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from schemas.codec import split_items
from schemas.records import Accepted, StoredLog, decode_record
from schemas.states import ENDED, State
from stores.outcomes import EndEntry, OwnEnd, decode_target
from stores.redis import PATIENCE, Redis
from stores.wire import Arg

#: Entries that one XRANGE asks for.
PAGE = 512

_FIELDS = ("state", "attempt", "next", "base", "created_ms", "head", "info", "end", "cancel", "ended_ms", "leased_ms",
           "metadata", "target", "queue", "own", "whole", "deleted")  # fmt: skip


class LogState(msgspec.Struct, frozen=True):
    """A generation as its hash shows it. ``provider`` and ``model`` are those of its last attempt, ``queue`` is that of
    its next message.

    ``own`` is the end of the completion that created it, where that left before the others. ``whole`` counts the
    choices of an answer that may serve others. ``deleted``: the completion that created it was.
    """

    generation: str
    state: State
    attempt: int
    next: int
    base: int
    created_ms: int
    head: bytes
    info: Accepted
    end: EndEntry | None
    cancelling: bool
    ended_ms: int | None
    leased_ms: int | None
    provider: str
    model: str
    queue: str
    own: OwnEnd | None = None
    whole: int = 0
    deleted: bool = False

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Entry(msgspec.Struct, frozen=True):
    """One entry: consecutive ``items`` of which the first has the index ``first``, or the log's ``end``, or a
    ``restart``: what comes before ``first`` was abandoned, and a new attempt begins there; or ``left``: one of several
    completions ends there.

    ``head`` is that of the items: there with the first ones of an attempt on the channel, and with all that ``read``
    gives.
    """

    first: int
    items: list[bytes] = []
    end: EndEntry | None = None
    head: bytes | None = None
    restart: bool = False
    left: OwnEnd | None = None

    @property
    def next(self) -> int:
        return self.first + len(self.items)


_end_decoder = msgspec.json.Decoder(EndEntry)
_own_decoder = msgspec.json.Decoder(OwnEnd)
_metadata_decoder: msgspec.json.Decoder[dict[str, str] | None] = msgspec.json.Decoder(dict[str, str] | None)


def parse_entry(entry_id: bytes, fields: list[bytes], head: bytes | None = None) -> Entry | None:
    """An entry of a range; None for a marker that this version has no use for."""
    index = int(entry_id[: entry_id.index(b"-")])
    if fields[0] == b"c":
        items = split_items(fields[1])
        return Entry(index - len(items), items, head=head)
    return _parse_marker(fields[0], index, fields[1])


def _parse_marker(kind: bytes, index: int, body: bytes) -> Entry | None:
    if kind == b"e":
        return Entry(index, end=_end_decoder.decode(body))
    if kind == b"r":
        return Entry(int(body), restart=True)
    if kind == b"l":
        return Entry(index, left=_own_decoder.decode(body))
    return None


def parse_message(payload: bytes) -> Entry | None:
    """An entry as the channel carries it: ``<id> <kind>`` on a line of its own, then the entry."""
    title, _, body = payload.partition(b"\n")
    entry_id, _, kind = title.partition(b" ")
    index = int(entry_id[: entry_id.index(b"-")])
    if kind == b"c":
        items = split_items(body)
        return Entry(index - len(items), items)
    if kind == b"h":
        head, _, body = body.partition(b"\n")
        items = split_items(body)
        return Entry(index - len(items), items, head=head)
    return _parse_marker(kind, index, body)


def _belongs(entry: Entry, base: int) -> bool:
    """Whether an entry concerns readers of the attempt that begins at ``base``, the last one there is."""
    if entry.end is not None or entry.left is not None:
        return True
    return entry.first >= base and not entry.restart


class ChunkLog:
    """The chunk logs of one key space."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def state(self, generation: str, *, patience: float = PATIENCE) -> LogState | None:
        """None where Redis has no such generation (any more). Raises Unavailable."""
        keys = self.redis.keys(generation)
        values = await self.redis.command(
            keys.partition, "HMGET", keys.gen(generation), *_FIELDS, patience=patience
        )
        return self._state(generation, values)

    async def member(self, generation: str, completion: str) -> tuple[LogState | None, OwnEnd | None]:
        """The state, and the end that a completion which joined has for itself. Raises Unavailable."""
        keys = self.redis.keys(generation)
        commands: list[tuple[Arg, ...]] = [
            ("HMGET", keys.gen(generation), *_FIELDS),
            ("HGET", keys.members(generation), completion),
        ]
        values, own = await self.redis.commands(keys.partition, commands)
        return self._state(generation, values), _own_decoder.decode(own) if own else None

    async def read(
        self, generation: str, after: int, *, count: int = PAGE, patience: float = PATIENCE
    ) -> tuple[LogState | None, list[Entry], bool]:
        """The state, what belongs to its attempt of up to ``count`` entries after index ``after``, and whether there
        are more.

        Both are of one moment: an end in the state is in the entries, and of attempts that were abandoned by then
        nothing is. ``base`` in the state says where the attempt begins: read on from there, if ``after`` is before it.
        The first entry may begin before ``after + 1``: entries hold several chunks.
        """
        keys = self.redis.keys(generation)
        commands: list[tuple[Arg, ...]] = [
            ("MULTI",),
            ("HMGET", keys.gen(generation), *_FIELDS),
            ("XRANGE", keys.log(generation), f"({after + 1}-0", "+", "COUNT", count),
            ("EXEC",),
        ]
        *_, (values, rows) = await self.redis.commands(keys.partition, commands, patience=patience)
        state = self._state(generation, values)
        if state is None:
            return None, [], False
        found = [parse_entry(row[0], row[1], state.head) for row in rows]
        entries = [entry for entry in found if entry is not None and _belongs(entry, state.base)]
        return state, entries, len(rows) == count

    async def entries(self, generation: str, after: int, *, count: int = PAGE) -> tuple[list[Entry], bool]:
        """All entries, those of abandoned attempts and restart markers too; without the state and its head."""
        keys = self.redis.keys(generation)
        rows: list[Any] = await self.redis.command(
            keys.partition, "XRANGE", keys.log(generation), f"({after + 1}-0", "+", "COUNT", count
        )
        found = [parse_entry(row[0], row[1]) for row in rows]
        return [entry for entry in found if entry is not None], len(rows) == count

    async def pages(self, generation: str, after: int) -> AsyncIterator[list[Entry]]:
        """All entries after ``after`` that are there now, page by page."""
        more = True
        while more:
            entries, more = await self.entries(generation, after)
            if entries:
                after = max(after, entries[-1].next - 1)
                yield entries

    async def whole(self, generation: str, state: LogState) -> StoredLog:
        """The finished log of the final attempt, for SQL to keep."""
        parts: list[bytes] = []
        async for entries in self.pages(generation, state.base - 1):
            for entry in entries:
                parts.extend(entry.items)
        return StoredLog(state.head, b"\n".join(parts), state.base, state.base + len(parts))

    @staticmethod
    def _state(generation: str, values: list[bytes | None]) -> LogState | None:
        (
            state,
            attempt,
            next_index,
            base,
            created_ms,
            head,
            info,
            end,
            cancel,
            ended_ms,
            leased_ms,
            metadata,
            target,
            queue,
            own,
            whole,
            deleted,
        ) = values
        if state is None or info is None:
            return None
        record = decode_record(info)
        assert isinstance(record, Accepted)
        if metadata is not None:
            record = msgspec.structs.replace(record, metadata=_metadata_decoder.decode(metadata))
        first = (record.provider, record.resolved_model)
        provider, model = decode_target(target) if target else first
        return LogState(
            generation=generation,
            state=State(state.decode()),
            attempt=int(attempt or 0),
            next=int(next_index or 0),
            base=int(base or 0),
            created_ms=int(created_ms or 0),
            head=head or b"{}",
            info=record,
            end=_end_decoder.decode(end) if end else None,
            cancelling=cancel is not None,
            ended_ms=int(ended_ms) if ended_ms else None,
            leased_ms=int(leased_ms) if leased_ms else None,
            provider=provider,
            model=model,
            queue=(queue or record.queue.encode()).decode(),
            own=_own_decoder.decode(own) if own else None,
            whole=int(whole or 0),
            deleted=deleted is not None,
        )
