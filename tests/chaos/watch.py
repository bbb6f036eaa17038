"""Looking into Redis while the run goes on: who holds what, and how long a killed worker's streams stand still."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import cast

import redis.asyncio
from redis.exceptions import RedisError

from schemas.keys import Keys

#: Between looks at streams that wait for their recovery, in seconds: how exact the recovery times are.
LOOK = 0.2
ENDED = (b"completed", b"failed", b"cancelled")


@dataclass(slots=True)
class Stopped:
    """A stream whose worker was killed ``at`` that time (monotonic), with ``next`` as the index of its next chunk."""

    at: float
    next: int


class Watch:
    """``recovered`` has (seconds, undisturbed) for each stream that went on or ended after a kill of its worker;
    undisturbed: no server beside the workers had a fault meanwhile or in the 12 s before, in which nobody reaps."""

    def __init__(self, url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
        self._keys = Keys(0)
        self._stopped: dict[str, Stopped] = {}
        self._disturbed = -1e9
        self.recovered: list[tuple[float, bool]] = []

    async def close(self) -> None:
        await self._redis.aclose()

    @property
    def waiting(self) -> int:
        return len(self._stopped)

    async def held(self) -> dict[int, dict[str, int]]:
        """By worker's pid, the generations that it has a lease on and that have chunks: id → next index."""
        found: dict[int, dict[str, int]] = defaultdict(dict)
        try:
            members = cast("list[bytes]", await self._redis.zrange(self._keys.lease, 0, -1))
            async with self._redis.pipeline(transaction=False) as pipeline:
                for member in members:
                    pipeline.hmget(self._keys.gen(member.decode()), ["worker", "next", "base"])
                rows = await pipeline.execute()
        except (RedisError, OSError):
            return {}
        for member, (worker, following, base) in zip(members, rows, strict=True):
            if worker and int(following or 0) > int(base or 0):
                found[int(worker.split(b":")[1])][member.decode()] = int(following)
        return found

    def killed(self, held: dict[str, int]) -> None:
        """These streams' worker was killed now."""
        now = time.monotonic()
        for generation, following in held.items():
            self._stopped.setdefault(generation, Stopped(now, following))

    def disturbed(self) -> None:
        """A server that recovery needs has a fault now."""
        self._disturbed = time.monotonic()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            if self._stopped:
                try:
                    await self._look()
                except (RedisError, OSError):
                    continue

    async def _look(self) -> None:
        waiting = list(self._stopped.items())
        async with self._redis.pipeline(transaction=False) as pipeline:
            for generation, _ in waiting:
                pipeline.hmget(self._keys.gen(generation), ["state", "next"])
            rows = await pipeline.execute()
        now = time.monotonic()
        for (generation, stopped), (state, following) in zip(waiting, rows, strict=True):
            if state is None or state in ENDED or int(following or 0) > stopped.next:
                undisturbed = self._disturbed < stopped.at - 12.0
                self.recovered.append((now - stopped.at, undisturbed))
                del self._stopped[generation]
