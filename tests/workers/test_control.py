"""The control thread on a cluster: a node that is away holds up no partition of the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from schemas.ids import new_completion_id
from schemas.providers import load_providers
from schemas.settings import Settings
from stores.books import Books
from stores.migration import migrate
from stores.outcomes import Claim
from stores.redis import Redis
from stores.scripts import Scripts
from stores.sql import make_engine
from tests.support.generations import accepted
from tests.support.valkey import ValkeyCluster
from tests.support.waiting import until
from workers.control import Control

pytestmark = pytest.mark.once

LEASE, RENEW = 3.0, 0.5
#: Long enough for a lease to run out and to be reaped, were it not renewed, in seconds.
LONG_ENOUGH = 9

PROVIDERS = load_providers(
    'default = "fake"\n[providers.fake]\nbase_url = "http://127.0.0.1:9/v1"', source="providers.toml"
)


async def leased(redis: Redis, partition: int) -> tuple[str, str]:
    """A generation of that partition that a worker has, and its fence."""
    generation = new_completion_id()
    while redis.partition(generation) != partition:
        generation = new_completion_id()
    scripts = Scripts(redis)
    await scripts.accept(accepted(generation), b"{}")
    claim = await scripts.claim(generation, queue="interactive", worker="w", lease_ms=int(LEASE * 1000))
    assert isinstance(claim, Claim)
    return generation, claim.fence


async def test_leases_on_the_other_nodes_are_renewed_and_not_reaped(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'books.db'}")
    migrate(engine)
    with ValkeyCluster(config={"cluster-node-timeout": "60000"}) as cluster:
        redis = await Redis.open(cluster.url)
        settings = Settings(
            redis_url=cluster.url,
            database_url=str(engine.url),
            lease_seconds=LEASE,
            renew_seconds=RENEW,
        )
        dead = redis.node(redis.partitions // 2)
        away = next(p for p in range(redis.partitions) if redis.node(p) is dead)
        healthy = [p for p in range(redis.partitions) if redis.node(p) is not dead]
        held = dict([await leased(redis, p) for p in (away, healthy[0], healthy[-1])])
        controls = [
            Control(
                settings,
                Books(engine),
                PROVIDERS,
                token=f"t{number}",
                bulk=False,
                slots=10,
                held=dict(held) if number == 0 else {},
                begin=lambda *_: None,
                on_renewal=lambda *_: None,
            )
            for number in range(2)
        ]
        for control in controls:
            # What they put messages with is made once a process, and here they share one.
            await asyncio.sleep(1)
            control.start()
        others = [id for id in held if redis.node(redis.partition(id)) is not dead]

        async def at_rest() -> bool:
            """Everybody has been heard for so long that reaping could begin."""
            calm = int((LEASE + 3) * 1000)
            return all([await heard_for(redis, p) > calm for p in (healthy[0], healthy[-1])])

        try:
            await until(at_rest)
            next(node for node in cluster.nodes if node.port == dead.address.port).kill()
            for _ in range(LONG_ENOUGH):
                await asyncio.sleep(1)
                for id in others:
                    keys = redis.keys(id)
                    state = await redis.command(keys.partition, "HMGET", keys.gen(id), "state", "crashes")
                    assert state == [b"leased", None]
                    assert await heard_for(redis, keys.partition) > 0
            for id in others:
                keys = redis.keys(id)
                runs_out = float(await redis.command(keys.partition, "ZSCORE", keys.lease, id))
                assert runs_out > await redis.now_ms(keys.partition)
        finally:
            for control in controls:
                control.stop()
            redis.close()
            engine.dispose()


async def heard_for(redis: Redis, partition: int) -> int:
    """Milliseconds since when workers have reached a partition without a gap."""
    since = await redis.command(partition, "HGET", redis.keyspace[partition].heard, "since")
    return 0 if since is None else await redis.now_ms(partition) - int(since)
