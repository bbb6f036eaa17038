"""Following a completion from any index, live or finished, from Redis or from the books.

``Followers.open`` settles where the reader starts, and says at once what can't be: an index before the final attempt's
first chunk, or beyond the tail of a log that is still open. The ``Follow`` that it gives then yields entries in order,
each index once, and a last one with the log's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from consumers.hub import Hub
from consumers.lookup import Completion, Finder, from_books, from_redis, from_result
from consumers.reader import LogReader
from schemas.codec import Renderer, chunks_of, split_items
from schemas.errors import Conflict, Failure, GenerationFailed, NotFound, Restarted, Unavailable
from schemas.fold import Fold
from schemas.records import StoredLog
from schemas.states import State
from stores.books import Books
from stores.chunklog import ChunkLog, Entry
from stores.outcomes import EndEntry
from stores.redis import RETRY_LAST, Redis
from stores.scripts import HOLDER_PATIENCE

#: How long a reader who has begun waits for a Redis that is away, in seconds: as long as the worker that writes does.
OUTAGE = HOLDER_PATIENCE
#: Items that one entry holds when a log is read from the books.
BOOKS_PAGE = 512
#: The largest answer that is sent in one piece, in bytes of its items.
AT_HAND = 256 * 1024


class Follow:
    """One reader's way through one completion.

    The entries that one call of ``next`` gives are of one attempt, and ``head`` is theirs. ``last`` is the index that
    the reader has everything up to, -1 while it has nothing.
    """

    def __init__(
        self,
        completion: Completion,
        books: Books,
        *,
        after: int = -1,
        expected: int,
        head: bytes = b"{}",
        reader: LogReader | None = None,
        stored: StoredLog | None = None,
    ) -> None:
        self.completion = completion
        self.expected = expected
        self.base = completion.base
        self.last = after
        self.head = head
        self.end: EndEntry | None = None
        self._books = books
        self._reader = reader
        self._entries: list[Entry] = []
        self._from_sql = reader is None
        #: Of a cached result, in seconds.
        self.age: int | None = None
        #: All of it is here, and small enough to be sent at once.
        self.at_hand = stored is not None and len(stored.items) <= AT_HAND
        self._offset = completion.offset
        self._own = completion.own
        if reader is None:
            self._entries = self._stored_entries(completion, stored)

    @property
    def past_end(self) -> bool:
        """Whether the log is finished and has nothing after the place where this reader starts."""
        c = self.completion
        return c.ended and self.expected >= c.next

    async def next(self) -> list[Entry]:
        """The next entries; the last one of all has ``end``.

        Raises Restarted where the chunks that the reader has were abandoned; called again, it goes on with the new
        attempt's first one. Raises NotFound for a log that was deleted meanwhile, and Unavailable where Redis stays
        away longer than ``OUTAGE``.
        """
        while True:
            entries = self._ending() or self._mine(await self._take())
            restart = next((place for place, e in enumerate(entries) if e.restart), None)
            if restart is not None:
                self._entries = entries[restart + 1 :]
                self.base = self.expected = entries[restart].first
                if self.last >= 0:
                    self.last = -1
                    raise Restarted(self.base)
                continue
            for entry in entries:
                if entry.head is not None:
                    self.head = entry.head
                if entry.items:
                    self.last = entry.next - 1
                self.expected = max(self.expected, entry.next)
                if entry.end is not None:
                    self.end = entry.end
            if entries:
                return entries

    async def _take(self) -> list[Entry]:
        if not self._entries and self._reader is not None:
            entries = await self._from_redis(self._reader)
            if entries:
                return entries
            self._reader.close()
            self._reader = None
        if not self._entries and not self._from_sql:
            self._entries = await self._from_books()
            self._from_sql = True
        if not self._entries:
            raise NotFound(f"The chunks of '{self.completion.id}' are gone.")
        entries, self._entries = self._entries, []
        return entries

    def _ending(self) -> list[Entry]:
        """The end of a completion that left, where its reader has come there."""
        if self._own is None or self.expected < self._own.tail:
            return []
        return [Entry(self.expected, end=self._own.entry)]

    def _mine(self, entries: list[Entry]) -> list[Entry]:
        """What concerns this completion: nothing of others that left, and nothing after its own end, if it left."""
        if self._own is None and all(entry.left is None for entry in entries):
            return entries
        mine: list[Entry] = []
        for entry in entries:
            if entry.left is not None:
                if entry.left.id == self.completion.id:
                    self._own = entry.left
                    return [*mine, Entry(entry.first, end=entry.left.entry)]
                continue
            if self._own is not None and (entry.end is not None or entry.next > self._own.tail):
                kept = entry.items[: max(0, self._own.tail - entry.first)]
                if kept:
                    mine.append(Entry(entry.first, kept, head=entry.head))
                return [*mine, Entry(entry.first + len(kept), end=self._own.entry)]
            mine.append(entry)
        return mine

    async def _from_redis(self, reader: LogReader) -> list[Entry]:
        """What comes next, also after an outage; nothing where the log has left Redis."""
        while True:
            try:
                entries = await reader.next()
                return [_moved(entry, self._offset) for entry in entries] if self._offset else entries
            except Unavailable:
                away = asyncio.get_running_loop().time() - reader.reached
                if self.completion.ended or away > OUTAGE:  # who reads what is finished may as well ask again
                    raise
            await asyncio.sleep(RETRY_LAST)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    async def chunks(self, renderer: Renderer) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """(index, chunk) pairs until the end. Raises GenerationFailed for an end that is not whole."""
        try:
            while self.end is None:
                for entry in await self.next():
                    if entry.items:
                        renderer.set_head(self.head)
                        for offset, chunk in enumerate(chunks_of(entry.items, renderer)):
                            yield entry.first + offset, chunk
            failure = failure_of(self.end)
            if failure is not None:
                raise GenerationFailed(failure)
        finally:
            self.close()

    async def fold(self, renderer: Renderer) -> tuple[Fold, Failure | None]:
        """All chunks of the final attempt, and what kept it from being whole."""
        fold = Fold()
        try:
            while self.end is None:
                try:
                    entries = await self.next()
                except Restarted:
                    fold = Fold()
                    continue
                renderer.set_head(self.head)
                for entry in entries:
                    for chunk in chunks_of(entry.items, renderer):
                        fold.add(chunk)
            return fold, failure_of(self.end)
        finally:
            self.close()

    async def _from_books(self) -> list[Entry]:
        """The log left Redis while we read it: it was settled, so the books have it, or it was deleted."""
        completion = await asyncio.to_thread(self._settled)
        self._own = completion.own
        stored = await asyncio.to_thread(self._books.stored_log, self.completion.generation)
        restarts: list[Entry] = []
        if completion.base > self.base:
            restarts.append(Entry(completion.base, restart=True))
            self.expected = completion.base
        return restarts + self._stored_entries(completion, stored)

    def _settled(self) -> Completion:
        """The completion as the books have it. Raises NotFound."""
        known = self.completion
        row = self._books.completion(known.id)
        if row is not None and row.generation is not None:
            return from_books(row)
        if known.record is not None and known.id != known.generation:  # it may not have come there yet
            generation = self._books.generation(known.generation)
            if generation is not None:
                return from_result(known.record, generation)
        raise NotFound(f"The completion '{known.id}' is gone.")

    def _stored_entries(self, completion: Completion, stored: StoredLog | None) -> list[Entry]:
        """What the books have after this reader's place, with the end. Raises NotFound where no text is kept."""
        at = self.expected
        entries: list[Entry] = []
        if stored is not None:
            items = split_items(stored.items) if stored.items else []
            items = items[max(0, at - stored.base + self._offset) :]
            entries.extend(
                Entry(at + start, items[start : start + BOOKS_PAGE], head=stored.head)
                for start in range(0, len(items), BOOKS_PAGE)
            )
            at += len(items)
        elif at < completion.next:
            # A log without chunks has no text to keep; any other was not to be stored, or was deleted.
            raise NotFound(f"The text of '{completion.id}' is not stored.")
        failure = completion.failure
        error = None if failure is None else msgspec.structs.asdict(failure)
        entries.append(Entry(at, end=EndEntry(completion.state.value, error)))
        return entries


def _moved(entry: Entry, offset: int) -> Entry:
    return msgspec.structs.replace(entry, first=entry.first - offset)


class Followers:
    """Opens follows; one for a process."""

    def __init__(self, redis: Redis, books: Books) -> None:
        self.hub = Hub(redis)
        self.finder = Finder(redis, books)
        self.log = ChunkLog(redis)
        self._books = books

    async def open(self, completion: Completion, after: int = -1) -> Follow:
        """A follow of a completion that was just found, with what comes after index ``after``.

        Raises Conflict for an index that isn't there: past the tail of an unfinished log, or (Restarted) before
        ``base``.
        """
        if completion.live is None:
            expected = first_index(completion, after)
            stored = await asyncio.to_thread(self._books.stored_log, completion.generation)
            return Follow(completion, self._books, after=after, expected=expected, stored=stored)
        reader = self.hub.reader(completion.generation, after if after < 0 else after + completion.offset)
        try:
            state = await reader.open(subscribe=not completion.ended)
            if state is None:
                found = await self.finder.find(completion.id)
                if found is None or found.live is not None:
                    raise NotFound(f"The completion '{completion.id}' is gone.")
                return await self.open(found, after)
            points = completion.id != completion.generation
            found = from_redis(state, completion.record if points else None, completion.own)
            expected = first_index(found, after)
            reader.expected = expected + found.offset
            return Follow(found, self._books, after=after, expected=expected, head=state.head, reader=reader)
        except BaseException:
            reader.close()
            raise

    async def prepare(self, generation: str) -> LogReader:
        """A reader of a generation that is about to be accepted; ``attach`` makes a follow of it."""
        reader = self.hub.reader(generation, -1)
        try:
            await reader.open_new()
        except BaseException:
            reader.close()
            raise
        return reader

    def attach(self, reader: LogReader, completion: Completion) -> Follow:
        """The follow of a completion that was accepted after ``prepare``."""
        return Follow(completion, self._books, expected=0, reader=reader)

    def replay(self, completion: Completion, stored: StoredLog) -> Follow:
        """The follow of a completion whose whole answer is at hand."""
        return Follow(completion, self._books, expected=0, stored=stored)

    async def close(self) -> None:
        await self.hub.close()


def failure_of(end: EndEntry) -> Failure | None:
    """What kept an answer from being whole; None for a completed one."""
    if end.state == State.COMPLETED:
        return None
    if end.error is not None:
        known = {k: v for k, v in end.error.items() if k in Failure.__struct_fields__}
        return Failure(**known)  # type: ignore[arg-type]
    if end.state == State.CANCELLED:
        return Failure("cancelled", "The completion was cancelled.", "cancelled", None, 409)
    return Failure("failed", "The completion failed.")


async def collect(follow: Follow, renderer: Renderer) -> dict[str, Any]:
    """The whole answer as a ``chat.completion``. Raises GenerationFailed."""
    fold, failure = await follow.fold(renderer)
    if failure is not None:
        raise GenerationFailed(failure)
    return fold.completion()


def renderer_for(completion: Completion, *, flat_logprobs: bool = False) -> Renderer:
    return Renderer(
        completion=completion.id,
        created=completion.created,
        model=completion.model,
        resolved_model=completion.resolved_model,
        resolved_provider=completion.provider,
        flat_logprobs=flat_logprobs,
    )


def first_index(completion: Completion, after: int) -> int:
    """The index that a reader who has everything up to ``after`` starts at.

    Raises Restarted where what it has was abandoned, Conflict for an index that is not there yet.
    """
    if after == -1:
        return completion.base
    if after < completion.base:
        raise Restarted(completion.base, param="x-last-chunk-index")
    if completion.ended:
        return min(after + 1, completion.next)  # past the end there is the end
    if after >= completion.next:
        raise Conflict(
            f"Index {after} does not exist yet: the last one so far is {completion.next - 1}. "
            "Send the index of the last chunk that you received.",
            param="x-last-chunk-index",
            code="index_out_of_range",
        )
    return after + 1
