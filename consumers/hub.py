"""One connection per process and Redis node for all readers of chunk logs.

It hands each reader what its log's channel says, and wakes those who must look for themselves: where a connection was
lost, or a log is silent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import hiredis

from consumers.reader import LogReader
from schemas.errors import Unavailable
from schemas.keys import partition_in
from stores.chunklog import ChunkLog, parse_message
from stores.redis import RETRY_FIRST, RETRY_LAST, Node, Redis
from stores.wire import Wire, WireError

#: Silence on an open log after which its range is read again, in seconds.
SILENCE = 5.0


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
