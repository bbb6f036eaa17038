"""Redis as the rooms see it: partitions, the node that holds each, and connections that come back by themselves.

``Redis.open`` works out whether the URL leads to one server or to a cluster, and that this process agrees with the key
space on the number of partitions. A command goes to a partition; which node that is, is settled here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import hiredis
from redis.crc import key_slot

from schemas.errors import ConfigurationError, Unavailable
from schemas.ids import partition_of
from schemas.keys import PARTITIONS_KEY, Keys
from stores.wire import Address, Arg, Push, Wire, WireError

#: Partitions where the setting is silent.
DEFAULT_PARTITIONS = 1
DEFAULT_CLUSTER_PARTITIONS = 64
#: How long a command is tried again while Redis is away, in seconds, where the caller doesn't say.
PATIENCE = 5.0
#: Waits between those tries, in seconds: doubled from the first to the last, with jitter.
RETRY_FIRST, RETRY_LAST = 0.02, 0.5
#: Between tries to open a key space, in seconds.
OPEN_PAUSE = 0.2

#: What a server says to those that it will never let in.
_REFUSALS = ("WRONGPASS", "NOAUTH", "NOPERM", "unknown command", "DB index", "SELECT is not allowed")
#: Error replies that pass: the server is loading, failing over, or the slot is on its way.
_PASSING = ("LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "BUSY ", "READONLY", "NOREPLICAS")


_USE = re.compile(rb"^-- use (\w+)$", re.MULTILINE)
_LUA = Path(__file__).parent / "lua"


class Script:
    """A Lua script, called by its SHA-1; a server that doesn't have it is sent the text.

    A line ``-- use <name>`` stands for the text of ``lua/parts/<name>.lua``: Redis's scripts can't load one another.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = _USE.sub(
            lambda use: (_LUA / "parts" / f"{use[1].decode()}.lua").read_bytes(),
            (_LUA / f"{name}.lua").read_bytes(),
        )
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


class Node:
    """One Redis server: a connection for commands and one for channels, opened when first needed.

    ``on_return`` is called when the connection for commands stands again, with the time (of the loop) when something
    last came on the one before. ``lost_at`` is that time, until then.
    """

    def __init__(self, address: Address, on_return: Callable[[float], None] | None = None) -> None:
        self.address = address
        self._on_return = on_return
        self._wire: Wire | None = None
        self.lost_at: float | None = None
        self._opening: asyncio.Lock = asyncio.Lock()

    @property
    def open_wire(self) -> Wire | None:
        """The connection if it stands, without waiting."""
        wire = self._wire
        return wire if wire is not None and not wire.closed else None

    async def wire(self) -> Wire:
        """Raises WireError."""
        wire = self._wire
        if wire is not None and not wire.closed:
            return wire
        async with self._opening:
            if self._wire is None or self._wire.closed:
                self._wire = await Wire.connect(self.address, on_lost=self._on_lost)
                lost_at, self.lost_at = self.lost_at, None
                if lost_at is not None and self._on_return is not None:
                    self._on_return(lost_at)
            return self._wire

    def _on_lost(self, wire: Wire) -> None:
        if wire is self._wire and self.lost_at is None:
            self.lost_at = wire.received

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()


class Redis:
    """A key space: ``partitions`` of it, each on a node."""

    def __init__(self, address: Address, *, cluster: bool, partitions: int) -> None:
        self._address = address
        self.cluster = cluster
        self.partitions = partitions
        self._nodes: dict[tuple[str, int], Node] = {}
        self._by_partition: list[Node] = []
        self.keyspace = [Keys(p) for p in range(partitions)]
        self._refreshing = asyncio.Lock()
        #: Called when a node is reached again, or another one stands in for it, with the time (of the loop) when it was
        #: last heard of.
        self.on_return: Callable[[float], None] | None = None
        #: Waits until a generation that Redis may have lost is there again; False where there is nothing to wait for.
        self.restored: Callable[[str], Awaitable[bool]] = _nothing_lost

    @classmethod
    async def open(cls, url: str, *, partitions: int | None = None, patience: float = PATIENCE) -> Redis:
        """Raises ConfigurationError for a URL that isn't one and for another number of partitions than the key
        space was made with, Unavailable where nothing answers within ``patience`` seconds."""
        try:
            address = Address.from_url(url)
        except ValueError as error:
            raise ConfigurationError(f"TAILRACE_REDIS_URL: {error}.", param="TAILRACE_REDIS_URL") from None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while True:
            try:
                return await cls._open(address, partitions)
            except (WireError, Unavailable, hiredis.ReplyError) as error:
                # A wrong password stays wrong; anything else may pass.
                if any(word in str(error) for word in _REFUSALS):
                    raise ConfigurationError(
                        f"{error}. Set TAILRACE_REDIS_URL to a Redis 7 or Valkey 8 that lets us in.",
                        param="TAILRACE_REDIS_URL",
                    ) from None
                if loop.time() >= deadline:
                    raise Unavailable(f"{error}. Start it, or set TAILRACE_REDIS_URL.") from None
                await asyncio.sleep(OPEN_PAUSE)

    @classmethod
    async def _open(cls, address: Address, partitions: int | None) -> Redis:
        """One try."""
        wire = await Wire.connect(address)
        try:
            info = (await wire.call("INFO", "cluster")).decode()
            cluster = "cluster_enabled:1" in info
            wanted = partitions or (DEFAULT_CLUSTER_PARTITIONS if cluster else DEFAULT_PARTITIONS)
            self = cls(address, cluster=cluster, partitions=wanted)
            try:
                if cluster:
                    await self._refresh(wire)
                else:
                    node = Node(address, self._returned)
                    self._nodes[address.host, address.port] = node
                    self._by_partition = [node] * wanted
                await self._agree(wanted, asked=partitions is not None)
            except BaseException:
                self.close()
                raise
        finally:
            wire.close()
        return self

    async def _agree(self, wanted: int, *, asked: bool) -> None:
        """Write down the number of partitions, or find it written down."""
        stored = await self.command(0, "GET", PARTITIONS_KEY, patience=0)
        if stored is None:  # a full server refuses even a SET that would change nothing
            await self.command(0, "SET", PARTITIONS_KEY, wanted, "NX", patience=0)
            stored = await self.command(0, "GET", PARTITIONS_KEY, patience=0)
        number = int(stored)
        if number == wanted:
            return
        if asked:
            raise ConfigurationError(
                f"This Redis was set up with {number} partitions and TAILRACE_PARTITIONS says {wanted}: "
                f"set TAILRACE_PARTITIONS={number}, or use another database.",
                param="TAILRACE_PARTITIONS",
            )
        self.partitions = number
        self.keyspace = [Keys(p) for p in range(number)]
        if self.cluster:
            await self._refresh()
        else:
            self._by_partition = self._by_partition[:1] * number

    @property
    def lost_since(self) -> float | None:
        """When the node was last heard of that has been away for longest; None where none is."""
        return min((n.lost_at for n in self._nodes.values() if n.lost_at is not None), default=None)

    def _returned(self, lost_at: float) -> None:
        if self.on_return is not None:
            self.on_return(lost_at)

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()

    def partition(self, key_id: str) -> int:
        return partition_of(key_id, self.partitions)

    def keys(self, key_id: str) -> Keys:
        """The keys of the partition that an id, or any other string, falls into."""
        return self.keyspace[partition_of(key_id, self.partitions)]

    def node(self, partition: int) -> Node:
        return self._by_partition[partition]

    def nodes(self) -> dict[Node, list[int]]:
        """Each node with the partitions on it."""
        found: dict[Node, list[int]] = {}
        for partition, node in enumerate(self._by_partition):
            found.setdefault(node, []).append(partition)
        return found

    async def command(self, partition: int, *args: Arg, patience: float = PATIENCE) -> Any:
        """One command, tried again while Redis is away for up to ``patience`` seconds.

        So it must be one that may be carried out twice. Raises Unavailable, or hiredis.ReplyError for an error that
        doesn't pass.
        """
        return await self._patiently(partition, patience, lambda wire: wire.call(*args))

    async def commands(
        self, partition: int, commands: Sequence[tuple[Arg, ...]], *, patience: float = PATIENCE
    ) -> list[Any]:
        """Several commands in one write, as ``command``; all of them again where one was lost."""

        def send(wire: Wire) -> Any:
            return asyncio.gather(*(wire.call(*command) for command in commands))

        return await self._patiently(partition, patience, send)

    async def script(
        self, partition: int, script: Script, keys: list[str], args: list[Arg], *, patience: float = PATIENCE
    ) -> Any:
        """One script, as ``command``: every script of ours changes nothing when it runs a second time."""
        tail = (len(keys), *keys, *args)
        wire = self._by_partition[partition].open_wire
        if wire is not None:
            try:
                return await wire.call("EVALSHA", script.sha, *tail)
            except (WireError, hiredis.ReplyError) as error:
                if isinstance(error, hiredis.ReplyError) and not _passes(error) and not _missing(error):
                    raise

        async def send(wire: Wire) -> Any:
            try:
                return await wire.call("EVALSHA", script.sha, *tail)
            except hiredis.ReplyError as error:
                if not _missing(error):
                    raise
                return await wire.call("EVAL", script.text, *tail)

        return await self._patiently(partition, patience, send)

    async def _patiently(self, partition: int, patience: float, send: Callable[[Wire], Any]) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        pause = RETRY_FIRST
        while True:
            try:
                return await send(await self._by_partition[partition].wire())
            except (WireError, hiredis.ReplyError) as error:
                if isinstance(error, hiredis.ReplyError) and not _passes(error):
                    raise
                if loop.time() + pause > deadline:
                    raise Unavailable(f"Redis is not available: {error}") from error
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, RETRY_LAST)
                await self.refresh()

    async def now_ms(self, partition: int) -> int:
        """The time of a partition's server, in milliseconds since the epoch. Raises Unavailable."""
        seconds, micros = await self.command(partition, "TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def refresh(self) -> None:
        """Learn where a cluster's partitions are by now; nothing changes where nobody answers."""
        if self.cluster:
            with contextlib.suppress(WireError, hiredis.ReplyError):
                await self._refresh()

    async def _refresh(self, wire: Wire | None = None) -> None:
        """Ask a node of the cluster which node has which slots, once for all who want to know at the same time."""
        known = self._by_partition
        async with self._refreshing:
            if self._by_partition is not known:
                return
            asked = wire if wire is not None else await self._any_wire()
            try:
                slots = await asked.call("CLUSTER", "SLOTS")
            finally:
                if asked is not wire:
                    asked.close()
            nodes: dict[tuple[str, int], Node] = {}
            by_slot: list[tuple[int, int, Node]] = []
            for start, stop, primary, *_ in slots:
                host = (primary[0] or b"").decode() or self._address.host
                where = (host, int(primary[1]))
                node = (
                    nodes.get(where)
                    or self._nodes.get(where)
                    or Node(self._address.at(*where), self._returned)
                )
                nodes[where] = node
                by_slot.append((start, stop, node))
            owners: list[Node] = []
            for keys in self.keyspace:
                slot = key_slot(keys.outbox.encode())
                owner = next((node for start, stop, node in by_slot if start <= slot <= stop), None)
                if owner is None:
                    raise WireError("the cluster has slots that no node serves")
                owners.append(owner)
            for where, node in self._nodes.items():
                if where not in nodes:
                    node.close()
            replaced = {
                old.lost_at for old, new in zip(known, owners, strict=False) if old is not new and old.lost_at
            }
            self._nodes, self._by_partition = nodes, owners
            for lost_at in replaced:
                self._returned(lost_at)

    async def _any_wire(self) -> Wire:
        for address in [self._address, *(n.address for n in self._nodes.values())]:
            with contextlib.suppress(WireError):
                return await Wire.connect(address, timeout=2.0)
        raise WireError("no node of the cluster answers")

    async def channel_wire(self, node: Node, on_push: Push, on_lost: Callable[[Wire], None]) -> Wire:
        """A connection of its own to ``node``, for channels. Raises WireError."""
        return await Wire.connect(node.address, on_push=on_push, on_lost=on_lost)


async def _nothing_lost(_generation: str) -> bool:
    return False


def _passes(error: hiredis.ReplyError) -> bool:
    text = str(error)
    return text.startswith(_PASSING) or text.startswith(("MOVED ", "ASK "))


def full(error: hiredis.ReplyError) -> Exception:
    """What callers are told where Redis's memory is full; any other error as it is."""
    if str(error).startswith("OOM"):
        return Unavailable("Redis has no memory left for new work. Try again later.", retry_after=30)
    return error


def _missing(error: hiredis.ReplyError) -> bool:
    return str(error).startswith("NOSCRIPT")
