"""A cluster that is resharded under way: a partition goes to another node, and those who work with it go along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
from redis.crc import key_slot

from consumers.hub import Hub
from consumers.reader import LogReader
from schemas.ids import new_completion_id
from schemas.states import State
from stores.outcomes import Append, EndResult
from stores.redis import Redis
from tests.support.generations import Room, accepted, batch, ended, room, texts
from tests.support.valkey import ValkeyCluster
from tests.support.waiting import until

Move = Callable[[Redis, int], None]


@pytest.fixture
def move(valkey_cluster: ValkeyCluster, cluster_url: str) -> Iterator[Move]:
    """``move(space, partition)``: to the node after the one that ``space`` knows. All go home after the test."""
    ports = [node.port for node in valkey_cluster.nodes]
    moved: list[tuple[int, int, int]] = []

    def carry(partition: int, source: int, target: int) -> None:
        slot = key_slot(f"{{p{partition}}}".encode())
        nodes = {node.port: node for node in valkey_cluster.nodes}
        with nodes[source].client() as old, nodes[target].client() as new:
            old_id, new_id = (str(client.execute_command("CLUSTER", "MYID")) for client in (old, new))
            new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
            old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
            while keys := cast("list[str]", old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)):
                old.execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)
        for port in (target, source, *ports):
            with nodes[port].client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)

    def move(space: Redis, partition: int) -> None:
        source = space.node(partition).address.port
        target = ports[(ports.index(source) + 1) % len(ports)]
        carry(partition, source, target)
        moved.append((partition, source, target))

    yield move
    for partition, source, target in reversed(moved):
        carry(partition, target, source)


@asynccontextmanager
async def hub_of(space: Room) -> AsyncGenerator[Hub]:
    hub = Hub(space.redis)
    try:
        yield hub
    finally:
        await hub.close()


async def read(reader: LogReader) -> list[bytes]:
    """All items to the end, which must follow each other."""
    found: list[bytes] = []
    while True:
        for entry in await reader.next():
            assert entry.items == [] or entry.first == len(found)
            found += entry.items
            if entry.end is not None:
                return found


def beside(space: Room, generation: str) -> str:
    """An id in another partition of the same node."""
    partition = space.redis.partition(generation)
    while True:
        id = new_completion_id()
        other = space.redis.partition(id)
        if other != partition and space.redis.node(other) is space.redis.node(partition):
            return id


async def test_a_partition_moves_under_its_writer_and_readers(
    cluster_url: str, valkey_cluster: ValkeyCluster, move: Move
) -> None:
    """While a log is written and read its partition moves: no append is lost, and no reader waits or misses any."""
    async with (
        room(cluster_url) as space,
        room(valkey_cluster.nodes[1].url) as elsewhere,
        hub_of(space) as near,
        hub_of(elsewhere) as far,
    ):
        generation = await space.running()
        neighbour = await space.running(accepted(beside(space, generation)))
        readers = [hub.reader(id, -1) for hub in (near, far) for id in (generation, neighbour)]
        for reader in readers:
            await reader.open()
        readings = [asyncio.create_task(read(reader)) for reader in readers]
        tail = 0
        for turn in range(4):
            if turn:
                await asyncio.to_thread(move, space.redis, space.redis.partition(generation))
            for _ in range(10):
                for id in (generation, neighbour):
                    assert await space.scripts.append(id, 1, batch(tail, 2)) is Append.OK
                tail += 2
            await until(lambda tail=tail: all(reader.expected == tail for reader in readers), 3.5)
        for node in valkey_cluster.nodes:  # what a node no longer has keeps nobody from coming back to it
            with node.client() as client:
                client.client_kill_filter(_type="pubsub", skipme=True)
        for id in (generation, neighbour):
            assert await space.scripts.end(ended(id), 1, batch(tail)) is EndResult.ENDED
        async with asyncio.timeout(4):
            assert await asyncio.gather(*readings) == [texts(0, tail + 1)] * 4


async def test_cancels_are_heard_where_a_partition_moves_to(cluster_url: str, move: Move) -> None:
    """A worker that listens for cancels hears them from the new node, soon after the move."""
    heard: list[bytes] = []
    async with room(cluster_url) as space, hub_of(space) as hub:
        for keys in space.redis.keyspace:
            await hub.listen(keys.partition, keys.control, heard.append)
        generation = await space.running()
        await asyncio.to_thread(move, space.redis, space.redis.partition(generation))

        async def told() -> bool:
            await space.scripts.cancel(ended(generation, State.CANCELLED), "interactive")
            return heard != []

        await until(told, 4)
        assert set(heard) == {f"cancel {generation} 1".encode()}
