"""One reader's place in a chunk log.

A reader subscribes and reads its range, then follows the channel. The stream is the truth and the channel only a bell:
a gap in the indexes, a new connection, a backlog that grew too long, or silence on an open log make the reader read the
range again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from stores.chunklog import ChunkLog, Entry, LogState

if TYPE_CHECKING:
    from consumers.hub import Hub

#: Entries that are read along with the state: few, so that the first chunk is soon on its way.
FIRST_PAGE = 16
#: Bytes that may wait for a slow reader; beyond it they are dropped and read again from the stream.
BACKLOG = 1024 * 1024


class LogReader:
    """One reader's place in one chunk log: ``await next()`` gives the entries after it, whole and in order.

    ``base`` is where the attempt begins that it reads. Where a new attempt begins, it gives an entry that says so
    (``restart``) and goes on there; what it gives between two of those is of one attempt.
    """

    __slots__ = ("_backlog", "_found", "_hub", "_log", "_queue", "_stale", "_waiter", "active", "base", "closed",
                 "expected", "generation", "heard", "reached", "state")  # fmt: skip

    def __init__(self, hub: Hub, log: ChunkLog, generation: str, after: int) -> None:
        self._hub = hub
        self._log = log
        self.generation = generation
        self.expected = after + 1
        self.base = 0
        self.state: LogState | None = None
        self._found: list[Entry] = []  # what was read along with the state
        self._queue: deque[Entry] = deque()
        self._backlog = 0
        self._stale = True
        self._waiter: asyncio.Future[None] | None = None
        self.heard = 0.0
        self.reached = 0.0  # when Redis last gave this reader anything
        self.active = False
        self.closed = False

    async def open(self, *, subscribe: bool = True) -> LogState | None:
        """Subscribe, and read the state with the first entries; None where Redis has no such generation.

        The reader is at the beginning of the last attempt, or behind it. A log that has ended needs no subscription.
        Raises Unavailable.
        """
        if subscribe:
            await self._hub.add(self)
        self._stale = False
        self.state, self._found, more = await self._log.read(
            self.generation, self.expected - 1, count=FIRST_PAGE
        )
        self.reached = asyncio.get_running_loop().time()
        if self.state is not None:
            self.base = self.state.base
            self.expected = max(self.expected, self.base)
        # An end that isn't among them (this reader is past it, or the log went before its state) is asked for again.
        whole = (
            self.state is None or not self.state.ended or any(entry.end is not None for entry in self._found)
        )
        self._stale = self._stale or more or not whole
        if self.state is None or self.state.ended:
            self._hub.remove(self)
        return self.state

    async def open_new(self) -> None:
        """Subscribe to a log that nobody has written to yet: the channel alone will tell it all. Raises Unavailable."""
        await self._hub.add(self)
        self._stale = False
        self.reached = self.heard

    async def next(self) -> list[Entry]:
        """Entries from the expected index on, as soon as there are any; the last one of a log has its ``end``, and
        one where another attempt begins has ``restart``.

        An empty list: the log is gone from Redis. Raises Unavailable.
        """
        waited = False
        while True:
            if self._found:
                found, self._found = self._found, []
                out = [entry for entry in map(self._accept, found) if entry is not None]
                if out:
                    return out
            if self._queue:
                out = self._take()
                if out:
                    return out
            if self._stale:
                self._stale = False
                try:
                    await self._hub.ensure(self)
                    state, entries, more = await self._log.read(self.generation, self.expected - 1)
                except BaseException:
                    self._stale = True
                    raise
                self.reached = asyncio.get_running_loop().time()
                if state is None:
                    if not waited and await self._log.redis.restored(self.generation):
                        self._stale = waited = True
                        continue
                    return []
                self.state = state
                if more:
                    self._stale = True
                if state.base > self.base:
                    if state.base < self.expected:
                        entries, self._stale = [], True  # they were read from a place behind its beginning
                    entries.insert(0, Entry(state.base, restart=True))
                out = [entry for entry in map(self._accept, entries) if entry is not None]
                if not out and state.ended and not more:
                    return []  # nothing would ever ring for it: the log went before its state
                if out:
                    return out
                continue
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        self.closed = True
        self._hub.remove(self)

    def feed(self, entry: Entry, size: int, now: float) -> None:
        """An entry from the channel; called by the hub."""
        self.heard = self.reached = now
        self._backlog += size
        if self._backlog > BACKLOG:
            self._queue.clear()
            self._backlog = 0
            self._stale = True
        elif not self._stale:
            self._queue.append(entry)
        self._wake()

    def poke(self, now: float) -> None:
        """Read the range again."""
        self.heard = now
        self._stale = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self) -> list[Entry]:
        out: list[Entry] = []
        while self._queue:
            entry = self._queue.popleft()
            if self._lacks(entry):
                self._queue.clear()
                self._stale = True
                break
            fresh = self._accept(entry)
            if fresh is not None:
                out.append(fresh)
        self._backlog = 0
        return out

    def _lacks(self, entry: Entry) -> bool:
        """Whether something between this reader's place and an entry from the channel is missing. A head goes with
        an attempt's first chunks: anywhere else the marker before them is what is missing."""
        if entry.restart:
            return False
        return entry.first > self.expected or (entry.head is not None and entry.first > self.base)

    def _accept(self, entry: Entry) -> Entry | None:
        """The part of an entry that this reader doesn't have yet."""
        if entry.end is not None or entry.left is not None:
            return entry
        if entry.restart:
            if entry.first <= self.base:
                return None
            self.base = self.expected = entry.first
            return entry
        expected = self.expected
        if entry.next <= expected:
            return None
        if entry.first < expected:
            entry = Entry(expected, entry.items[expected - entry.first :], head=entry.head)
        self.expected = entry.next
        return entry
