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

from consumers.hub import Hub, LogReader
from consumers.lookup import Completion, Finder, from_books, from_redis
from schemas.codec import Renderer, chunks_of, split_items
from schemas.errors import Conflict, Failure, GenerationFailed, NotFound, Restarted
from schemas.fold import Fold
from schemas.records import StoredLog
from schemas.states import State
from stores.books import Books
from stores.chunklog import ChunkLog, Entry
from stores.redis import Redis
from stores.scripts import EndEntry

#: Items that one entry holds when a log is read from the books.
BOOKS_PAGE = 512


class Follow:
    """One reader's way through one completion. ``head`` may change with the first entry of a live log."""

    def __init__(
        self,
        completion: Completion,
        books: Books,
        *,
        expected: int,
        head: bytes = b"{}",
        reader: LogReader | None = None,
        stored: StoredLog | None = None,
    ) -> None:
        self.completion = completion
        self.expected = expected
        self.head = head
        self.end: EndEntry | None = None
        self._books = books
        self._reader = reader
        self._entries: list[Entry] = []
        if reader is None:
            self._entries = self._stored_entries(completion, stored)

    @property
    def past_end(self) -> bool:
        """Whether the log is finished and has nothing after the place where this reader starts."""
        c = self.completion
        return c.ended and self.expected >= c.next

    async def next(self) -> list[Entry]:
        """The next entries; the last one of all has ``end``. Raises Restarted, Unavailable, and NotFound for a log
        that was deleted meanwhile."""
        if self._entries:
            entries, self._entries = self._entries, []
        elif self._reader is not None:
            entries = await self._reader.next()
            if not entries:
                entries = await self._from_books()
            else:
                state = self._reader.state
                if state is not None and state.base > self.expected:
                    raise Restarted(state.base)
                if state is not None and len(state.head) > 2:
                    self.head = state.head
        else:
            raise NotFound(f"The chunks of '{self.completion.id}' are gone.")
        for entry in entries:
            if entry.head is not None:
                self.head = entry.head
            self.expected = max(self.expected, entry.next)
            if entry.end is not None:
                self.end = entry.end
        return entries

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

    async def _from_books(self) -> list[Entry]:
        """The log left Redis while we read it: it was settled, so the books have it, or it was deleted."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        row = await asyncio.to_thread(self._books.completion, self.completion.id)
        if row is None or row.ended_ms is None:
            raise NotFound(f"The completion '{self.completion.id}' is gone.")
        completion = from_books(row)
        if completion.base > self.expected:
            raise Restarted(completion.base)
        stored = await asyncio.to_thread(self._books.stored_log, self.completion.generation)
        return self._stored_entries(completion, stored)

    def _stored_entries(self, completion: Completion, stored: StoredLog | None) -> list[Entry]:
        """What the books have after this reader's place, with the end. Raises NotFound where no text is kept."""
        at = self.expected
        entries: list[Entry] = []
        if stored is not None:
            self.head = stored.head
            items = split_items(stored.items) if stored.items else []
            items = items[max(0, at - stored.base) :]
            entries.extend(
                Entry(at + start, items[start : start + BOOKS_PAGE])
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


class Followers:
    """Opens follows; one for a process."""

    def __init__(self, redis: Redis, books: Books) -> None:
        self.hub = Hub(redis)
        self.finder = Finder(redis, books)
        self.log = ChunkLog(redis)
        self._books = books

    async def open(self, completion: Completion, after: int = -1) -> Follow:
        """A follow of a completion that was just found, with what comes after index ``after``.

        Raises Conflict for an index that isn't there: past the tail of an unfinished log, or before ``base``.
        """
        if completion.live is None:
            expected = first_index(completion, after)
            stored = await asyncio.to_thread(self._books.stored_log, completion.generation)
            return Follow(completion, self._books, expected=expected, stored=stored)
        reader = self.hub.reader(completion.generation, after)
        try:
            state = await reader.open(subscribe=not completion.ended)
            if state is None:
                found = await self.finder.find(completion.id)
                if found is None or found.live is not None:
                    raise NotFound(f"The completion '{completion.id}' is gone.")
                return await self.open(found, after)
            found = from_redis(state)
            reader.expected = first_index(found, after)
            return Follow(found, self._books, expected=reader.expected, head=state.head, reader=reader)
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
    fold = Fold()
    async for _, chunk in follow.chunks(renderer):
        fold.add(chunk)
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
    """The index that a reader who has everything up to ``after`` starts at. Raises Conflict for a place that isn't."""
    if after == -1:
        return completion.base
    if after + 1 < completion.base:
        raise Conflict(
            f"The answer was started again at index {completion.base}; what you have of it does not belong to it. "
            "Start from -1.",
            param="x-last-chunk-index",
            code="restarted",
        )
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
