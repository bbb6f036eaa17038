"""One connection per process and Redis node for all readers of chunk logs.

A reader subscribes and reads its range in one write, then follows the channel. The stream is the truth and the channel
only a bell: a gap in the indexes, a new connection, a backlog that grew too long, or silence on an open log make the
reader read the range again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import hiredis

from schemas.errors import Unavailable
from schemas.keys import partition_in
from stores.chunklog import ChunkLog, Entry, LogState, parse_message
from stores.redis import RETRY_FIRST, RETRY_LAST, Node, Redis
from stores.wire import Wire, WireError

#: Silence on an open log after which its range is read again, in seconds.
SILENCE = 5.0
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
        if entry.end is not None:
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


class _Channels:
    """The subscriptions on one node."""

    def __init__(
        self,
        redis: Redis,
        node: Node,
        message: Callable[[bytes, bytes], None],
        lost: Callable[[], None],
        moved: Callable[[], None],
    ):
        self._redis = redis
        self._node = node
        self._message = message
        self._lost = lost
        self._moved = moved
        self._wire: Wire | None = None
        self._opening = asyncio.Lock()
        self._confirmed: set[str] = set()
        self._left: Counter[str] = Counter()  # what we have unsubscribed from and not yet heard so
        self.channels: set[str] = set()

    async def wire(self) -> Wire:
        """Connects and subscribes to all of ``channels`` if need be. Raises WireError."""
        if self._wire is not None and not self._wire.closed:
            return self._wire
        async with self._opening:
            if self._wire is None or self._wire.closed:
                wire = await self._redis.channel_wire(self._node, self._on_push, self._on_lost)
                asked = self.channels - self.strays()
                try:
                    for channel in asked:
                        wire.push_command("SSUBSCRIBE", channel)
                    await self._confirm(wire)
                except BaseException:
                    wire.close()
                    raise
                for channel in asked - self.channels:  # those whose last reader left meanwhile
                    wire.push_command("SUNSUBSCRIBE", channel)
                self._left = Counter(asked - self.channels)
                self._wire, self._confirmed = wire, asked & self.channels
            return self._wire

    async def subscribe(self, channel: str) -> None:
        """When this returns, what is published from now on arrives. Raises WireError."""
        self.channels.add(channel)
        wire = await self.wire()
        # Not yet confirmed, it may be on its way for another reader; asking twice does no harm.
        if channel in self.channels and channel not in self._confirmed:
            wire.push_command("SSUBSCRIBE", channel)
            await self._confirm(wire)
            if channel in self.channels and wire is self._wire:
                self._confirmed.add(channel)

    @staticmethod
    async def _confirm(wire: Wire) -> None:
        """Waits until the subscriptions before this took effect. One that is refused (the slot has moved) ends the
        connection: its error stands in the place of a reply."""
        try:
            await wire.call("PING")
        except hiredis.ReplyError as error:
            wire.close()
            raise WireError(f"subscribing failed: {error}") from None

    def strays(self) -> set[str]:
        """Channels whose partition is on another node by now; one of them would spoil every new connection."""
        if not self._redis.cluster:
            return set()
        return {c for c in self.channels if self._redis.node(partition_in(c)) is not self._node}

    def forget(self, channel: str) -> None:
        """A channel that has left the node, which has dropped the subscription itself."""
        self.channels.discard(channel)
        self._confirmed.discard(channel)

    def unsubscribe(self, channel: str) -> None:
        self.channels.discard(channel)
        self._confirmed.discard(channel)
        if self._wire is not None and not self._wire.closed:
            self._left[channel] += 1
            self._wire.push_command("SUNSUBSCRIBE", channel)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"smessage":
            self._message(push[1], push[2])
        elif push[0] == b"sunsubscribe":
            self._on_left(push[1].decode())

    def _on_left(self, channel: str) -> None:
        if self._left[channel] > 1:
            self._left[channel] -= 1
        elif not self._left.pop(channel, 0):  # not our doing: its slot has moved
            self.forget(channel)
            self._moved()

    def _on_lost(self, wire: Wire) -> None:
        if wire is self._wire:
            self._lost()


class Hub:
    """All readers of one process. ``start`` before the first reader, ``close`` at the end."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._log = ChunkLog(redis)
        self._channels: dict[Node, _Channels] = {}
        self._readers: dict[bytes, set[LogReader]] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._listeners: dict[bytes, Callable[[bytes], None]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def reader(self, generation: str, after: int) -> LogReader:
        return LogReader(self, self._log, generation, after)

    async def listen(self, partition: int, channel: str, callback: Callable[[bytes], None]) -> None:
        """Every message on a channel of another kind (the workers' control channel). Raises WireError."""
        self._listeners[channel.encode()] = callback
        self._start()
        await self._on(partition).subscribe(channel)

    async def add(self, reader: LogReader) -> None:
        """Subscribe a reader to its channel. Raises Unavailable."""
        self._start()
        keys = self._redis.keys(reader.generation)
        channel = keys.channel(reader.generation)
        reader.heard = asyncio.get_running_loop().time()
        reader.active = True
        self._readers.setdefault(channel.encode(), set()).add(reader)
        await self._subscribe(keys.partition, channel)

    async def ensure(self, reader: LogReader) -> None:
        """The subscription of a reader that is to read its range again, on a connection that stands."""
        if reader.active:
            keys = self._redis.keys(reader.generation)
            await self._subscribe(keys.partition, keys.channel(reader.generation))

    async def _subscribe(self, partition: int, channel: str) -> None:
        pause = RETRY_FIRST
        while True:
            try:
                await self._on(partition).subscribe(channel)
                return
            except (WireError, hiredis.ReplyError) as error:
                if pause > RETRY_LAST * 4:
                    raise Unavailable(f"Redis is not available: {error}") from error
                await asyncio.sleep(pause)
                pause *= 2
                await self._redis.refresh()

    def remove(self, reader: LogReader) -> None:
        if not reader.active:
            return
        reader.active = False
        keys = self._redis.keys(reader.generation)
        channel = keys.channel(reader.generation)
        readers = self._readers.get(channel.encode())
        if readers is not None:
            readers.discard(reader)
            if not readers:
                del self._readers[channel.encode()]
                self._on(keys.partition).unsubscribe(channel)

    async def close(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        if self._looking is not None:
            self._looking.cancel()
        for channels in self._channels.values():
            channels.close()

    def _start(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def _on(self, partition: int) -> _Channels:
        node = self._redis.node(partition)
        channels = self._channels.get(node)
        if channels is None:
            channels = self._channels[node] = _Channels(
                self._redis, node, self._message, lambda: self._poke_all(node), self._look
            )
        return channels

    def _message(self, channel: bytes, payload: bytes) -> None:
        readers = self._readers.get(channel)
        if readers is None:
            listener = self._listeners.get(channel)
            if listener is not None:
                listener(payload)
            return
        entry = parse_message(payload)
        if entry is None:
            return
        now = asyncio.get_running_loop().time()
        size = len(payload)
        for reader in tuple(readers):
            reader.feed(entry, size, now)

    def _poke_all(self, node: Node) -> None:
        """The connection to a node was lost: its readers connect again and read their ranges."""
        if self._closed:
            return
        now = asyncio.get_running_loop().time()
        for readers in self._readers.values():
            for reader in readers:
                if self._redis.node(self._redis.partition(reader.generation)) is node:
                    reader.poke(now)

    def _look(self) -> None:
        """A partition has moved: find out where to, and follow it."""
        if not self._closed and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._go_along())

    async def _go_along(self) -> None:
        await self._redis.refresh()
        await self._follow_moves()

    async def _follow_moves(self) -> None:
        """Leave nodes that have left the cluster, and look for the channels of partitions that moved on other nodes."""
        nodes = self._redis.nodes()
        for node, channels in list(self._channels.items()):
            for channel in channels.strays():
                channels.forget(channel)
            if node not in nodes:
                del self._channels[node]
                channels.close()
        now = asyncio.get_running_loop().time()
        for channel in list(self._listeners):
            name = channel.decode()
            if name not in self._on(partition_in(name)).channels:
                with contextlib.suppress(Unavailable):
                    await self._subscribe(partition_in(name), name)
        for channel, readers in self._readers.items():
            name = channel.decode()
            if name not in self._on(partition_in(name)).channels:
                for reader in readers:
                    reader.poke(now)

    async def _sweep(self) -> None:
        """Wakes readers of silent logs, and brings back the connections that only listeners use."""
        while True:
            await asyncio.sleep(1.0)
            now = asyncio.get_running_loop().time()
            for readers in list(self._readers.values()):
                for reader in readers:
                    if now - reader.heard > SILENCE:
                        reader.poke(now)
            if self._redis.cluster:
                await self._follow_moves()
            for channels in list(self._channels.values()):
                if channels.channels:
                    with contextlib.suppress(WireError, hiredis.ReplyError):
                        await channels.wire()
