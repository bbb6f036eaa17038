"""Looking into Redis while the run goes on: who holds what, how long a killed worker's streams wait for another worker,
and how long they stand still, as a deterministic one does while its provider repeats what is published already.
"""

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


@dataclass(frozen=True, slots=True)
class Place:
    """How far a stream is: its attempt, and the index of its next chunk."""

    attempt: int
    next: int


@dataclass(slots=True)
class Stopped:
    """A stream whose worker was killed ``at`` that time (monotonic)."""

    at: float
    place: Place
    taken: bool = False


class Watch:
    """``taken`` has (seconds, undisturbed) for each stream that another worker has after a kill of its own, and
    ``recovered`` for each that went on or ended; undisturbed: no server beside the workers had a fault meanwhile or in
    the 12 s before, in which nobody reaps."""

    def __init__(self, url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
        self._keys = Keys(0)
        self._stopped: dict[str, Stopped] = {}
        self._disturbed = -1e9
        self.taken: list[tuple[float, bool]] = []
        self.recovered: list[tuple[float, bool]] = []

    async def close(self) -> None:
        await self._redis.aclose()

    @property
    def waiting(self) -> int:
        return len(self._stopped)

    async def held(self) -> dict[int, dict[str, Place]]:
        """By worker's pid, the generations that it has a lease on and that have chunks."""
        found: dict[int, dict[str, Place]] = defaultdict(dict)
        try:
            members = cast("list[bytes]", await self._redis.zrange(self._keys.lease, 0, -1))
            async with self._redis.pipeline(transaction=False) as pipeline:
                for member in members:
                    pipeline.hmget(self._keys.gen(member.decode()), ["worker", "attempt", "next", "base"])
                rows = await pipeline.execute()
        except (RedisError, OSError):
            return {}
        for member, (worker, attempt, following, base) in zip(members, rows, strict=True):
            if worker and int(following or 0) > int(base or 0):
                place = Place(int(attempt), int(following))
                found[int(worker.split(b":")[1])][member.decode()] = place
        return found

    def killed(self, held: dict[str, Place]) -> None:
        """These streams' worker was killed now."""
        now = time.monotonic()
        for generation, place in held.items():
            self._stopped.setdefault(generation, Stopped(now, place))

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
                pipeline.hmget(self._keys.gen(generation), ["state", "attempt", "next"])
            rows = await pipeline.execute()
        now = time.monotonic()
        for (generation, stopped), (state, attempt, following) in zip(waiting, rows, strict=True):
            over = state is None or state in ENDED
            found = (now - stopped.at, self._disturbed < stopped.at - 12.0)
            if not stopped.taken and (over or int(attempt) > stopped.place.attempt):
                stopped.taken = True
                self.taken.append(found)
            if over or int(following or 0) > stopped.place.next:
                self.recovered.append(found)
                del self._stopped[generation]
