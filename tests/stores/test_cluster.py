"""A real cluster of three nodes: the same life of a generation on each of them, and readers across all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
import redis

from consumers.follow import Followers
from consumers.hub import Hub
from schemas.errors import ConfigurationError
from schemas.ids import new_completion_id
from schemas.states import State
from stores.books import Books
from stores.chunklog import ChunkLog
from stores.migration import migrate
from stores.outcomes import Append, Claim, EndResult, Renewal
from stores.redis import Node, Redis
from stores.scripts import Scripts
from stores.sql import make_engine
from tests.support.generations import LEASE_MS, Room, accepted, batch, ended, room
from tests.support.house import House, items, ledger_of, numbered
from tests.support.valkey import ValkeyCluster
from tests.support.waiting import until


@pytest.fixture
async def cluster(cluster_url: str) -> AsyncIterator[Room]:
    async with room(cluster_url, partitions=64) as space:
        yield space


@pytest.fixture
async def cluster_house(cluster: Room, sqlite_url: str, cluster_url: str) -> AsyncIterator[House]:
    engine = make_engine(sqlite_url)
    await asyncio.to_thread(migrate, engine)
    books = Books(engine)
    followers = Followers(cluster.redis, books)
    with redis.Redis.from_url(cluster_url, decode_responses=True) as client:
        yield House(cluster, client, books, followers)
    await followers.close()
    engine.dispose()


def ids_by_node(space: Redis, each: int) -> dict[Node, list[str]]:
    """So many ids for each node, in as many partitions as it takes."""
    found: dict[Node, list[str]] = {node: [] for node in space.nodes()}
    while any(len(ids) < each for ids in found.values()):
        id = new_completion_id()
        ids = found[space.node(space.partition(id))]
        if len(ids) < each:
            ids.append(id)
    return found


def channels(cluster: ValkeyCluster) -> int:
    """Sharded channels with subscribers, on all nodes."""
    total = 0
    for node in cluster.nodes:
        with node.client() as client:
            total += len(cast("list[str]", client.execute_command("PUBSUB", "SHARDCHANNELS")))
    return total


# -- Partitions


async def test_partitions_of_a_cluster(cluster_url: str, valkey_cluster: ValkeyCluster) -> None:
    """A cluster has 64 partitions where nobody says otherwise, on all nodes; another number refuses to start."""
    async with room(cluster_url) as first, room(valkey_cluster.nodes[2].url, partitions=64) as second:
        for space in (first.redis, second.redis):
            assert space.cluster
            assert space.partitions == 64
            ports = {node.address.port: partitions for node, partitions in space.nodes().items()}
            assert set(ports) == {node.port for node in valkey_cluster.nodes}
            assert sorted(p for partitions in ports.values() for p in partitions) == list(range(64))
        with pytest.raises(ConfigurationError, match=r"64 partitions.*TAILRACE_PARTITIONS=64"):
            await Redis.open(valkey_cluster.nodes[1].url, partitions=8)


async def test_a_number_that_was_set_before(cluster_url: str, valkey_cluster: ValkeyCluster) -> None:
    """A process without the setting takes the number that a cluster was made with, from whichever node."""
    async with room(cluster_url, partitions=5):
        for node in valkey_cluster.nodes:
            async with room(node.url) as space:
                assert space.redis.partitions == 5
                assert sorted(p for ps in space.redis.nodes().values() for p in ps) == [0, 1, 2, 3, 4]
                assert [
                    await space.redis.command(k.partition, "EXISTS", k.outbox) for k in space.redis.keyspace
                ] == [0] * 5


# -- Lives


async def test_whole_lives_on_all_nodes(cluster_house: House, valkey_cluster: ValkeyCluster) -> None:
    """On every node: accepted, claimed, appended to, ended, settled, and read live, late and from the books."""
    space = cluster_house.room
    ids = [id for of_node in ids_by_node(space.redis, 12).values() for id in of_node]
    readers = [await cluster_house.followers.prepare(id) for id in ids]
    for id in ids:
        await space.accept(accepted(id))
    follows = [
        cluster_house.followers.attach(reader, await cluster_house.find(id))
        for reader, id in zip(readers, ids, strict=True)
    ]
    assert channels(valkey_cluster) == len(ids)
    live = [asyncio.create_task(items(follow)) for follow in follows]

    async def run(id: str) -> None:
        claim = await space.claim(id)
        assert isinstance(claim, Claim)
        assert claim.attempt == 1
        assert await space.scripts.append(id, 1, batch(0, 2)) is Append.OK
        assert await space.scripts.append(id, 1, batch(2)) is Append.OK
        partition = space.redis.partition(id)
        assert await space.scripts.renew(partition, {id: 1}, lease_ms=LEASE_MS) == {id: Renewal.OK}
        assert await space.scripts.end(ended(id), 1, batch(3)) is EndResult.ENDED

    await asyncio.gather(*(run(id) for id in ids))
    assert await asyncio.gather(*live) == [numbered(0, 4)] * len(ids)
    assert [await items(await cluster_house.open(id, 1)) for id in ids] == [numbered(2, 4)] * len(ids)
    await until(lambda: channels(valkey_cluster) == 0)
    await cluster_house.settle(ttl=0.001)

    async def gone() -> bool:
        return not any([await space.log.state(id) for id in ids])

    await until(gone)
    assert [await items(await cluster_house.open(id, 0)) for id in ids] == [numbered(1, 4)] * len(ids)


async def test_cancels_on_all_nodes(cluster: Room) -> None:
    """Queued work is cancelled and running work is told so, on every node, and the control channel carries it."""
    heard: list[bytes] = []
    hub = Hub(cluster.redis)
    for keys in cluster.redis.keyspace:
        await hub.listen(keys.partition, keys.control, heard.append)
    expected: set[bytes] = set()
    for ids in ids_by_node(cluster.redis, 2).values():
        queued, running = ids
        await cluster.accept(accepted(queued))
        await cluster.running(accepted(running))
        for id, answer in ((queued, "cancelled"), (running, "cancelling")):
            assert await cluster.scripts.cancel(ended(id, State.CANCELLED), "interactive") == answer
        expected.add(f"cancel {running} 1".encode())
        assert await cluster.scripts.append(running, 1, batch(0)) is Append.CANCEL_ASKED
    await until(lambda: set(heard) == expected)
    await hub.close()


async def test_calls_of_many_logs_stay_within_a_partition(cluster: Room) -> None:
    """Logs of one partition share a call, wherever the partition is."""
    for partition in (0, 21, 42, 63):
        ids: list[str] = []
        while len(ids) < 3:
            id = new_completion_id()
            if cluster.redis.partition(id) == partition:
                ids.append(await cluster.running(accepted(id)))
        codes = await cluster.scripts.append_all(partition, [(id, 1, batch(0, 2)) for id in ids])
        assert codes == [Append.OK] * 3
        for id in ids:
            _, entries, _ = await cluster.log.read(id, -1)
            assert [e.items for e in entries] == [[b'"0"', b'"1"']]


# -- Connections and leaders


async def test_one_connection_for_channels_to_each_node(
    cluster_house: House, valkey_cluster: ValkeyCluster
) -> None:
    """Readers take one connection a node; when those are killed in mid-stream they come back, without gap or repeat."""
    space = cluster_house.room
    ids = [id for of_node in ids_by_node(space.redis, 10).values() for id in of_node]
    for id in ids:
        await space.running(accepted(id))
    live = [asyncio.create_task(items(await cluster_house.open(id))) for id in ids * 2]
    for node in valkey_cluster.nodes:
        with node.client() as client:
            assert len(client.client_list(_type="pubsub")) == 1
    for turn in range(4):
        for node in valkey_cluster.nodes:
            with node.client() as client:
                client.client_kill_filter(_type="pubsub", skipme=True)
        for id in ids:
            await cluster_house.write(id, [1, 1], 2 * turn)
    for id in ids:
        await space.scripts.end(ended(id), 1)
    async with asyncio.timeout(15):
        assert await asyncio.gather(*live) == [numbered(0, 8)] * len(live)
    await until(lambda: channels(valkey_cluster) == 0)


async def test_each_partition_has_a_leader(cluster_house: House) -> None:
    """Of two processes the first leads a partition until it gives up, on whichever node the partition is."""
    space = cluster_house.room.redis
    one = ledger_of(space, cluster_house.books, token="one")
    two = ledger_of(space, cluster_house.books, token="two")
    partitions = range(space.partitions)
    assert all([await (one if p % 2 else two).lead(p) for p in partitions])
    assert [await one.lead(p) for p in partitions] == [bool(p % 2) for p in partitions]
    assert [await two.lead(p) for p in partitions] == [not p % 2 for p in partitions]


async def test_a_second_process_sees_the_same(cluster: Room, valkey_cluster: ValkeyCluster) -> None:
    """Who came in by another node works on the same generations."""
    async with room(valkey_cluster.nodes[1].url) as other:
        for ids in ids_by_node(cluster.redis, 3).values():
            for id in ids:
                await cluster.running(accepted(id))
                assert await Scripts(other.redis).append(id, 1, batch(0, 3)) is Append.OK
                state = await ChunkLog(other.redis).state(id)
                assert state is not None
                assert state.next == 3
