"""What the control thread does for generations that wait in line for a provider: those that have a permit reserved get
a message, and what came free with time is dealt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from schemas.errors import Unavailable
from schemas.providers import Provider, Providers
from schemas.states import State
from stores.permits import Permits
from stores.redis import Redis
from workers.reconcile import Reconciler

#: A generation that isn't parked yet, or runs elsewhere, is looked at so often and so many times, in seconds.
LOOK_PAUSE, LOOKS = 0.05, 40


class Dealer:
    """Everything here happens on the control thread's loop."""

    def __init__(self, redis: Redis, permits: Permits, providers: Providers, reconciler: Reconciler) -> None:
        self._redis = redis
        self._permits = permits
        self._limited = {name: p for name, p in providers.providers.items() if p.limited}
        self._reconciler = reconciler
        self._tasks: set[asyncio.Task[None]] = set()

    async def deal(self, partition: int) -> None:
        """Of the providers whose permits are in this partition. Raises Unavailable."""
        for provider in self._limited.values():
            if self._permits.partition(provider) == partition:
                self.wake(provider.name, await self._permits.deal(provider))

    def wake(self, provider: str, generations: Sequence[str]) -> None:
        """They have permits reserved. Who doesn't hear of it is put back in line by the script, some seconds later."""
        for generation in generations:
            task = asyncio.create_task(self._wake(self._limited[provider], generation))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wake(self, provider: Provider, generation: str) -> None:
        keys = self._redis.keys(generation)
        try:
            for _ in range(LOOKS):
                state, queue = await self._redis.command(
                    keys.partition, "HMGET", keys.gen(generation), "state", "queue"
                )
                if state == State.PARKED.value.encode():
                    return await self._reconciler.wake(generation, queue.decode())
                if state == State.QUEUED.value.encode():
                    return None
                if state != State.LEASED.value.encode():
                    return self.wake(provider.name, await self._permits.give_back(provider, generation))
                await asyncio.sleep(LOOK_PAUSE)
        except Unavailable:
            return None
