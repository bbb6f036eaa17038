"""What a partition's leader ends or hands on: attempts whose lease ran out, and work that waits beyond its deadline."""

from __future__ import annotations

import logging

from schemas.errors import DeadlineExceeded, Failure
from schemas.keys import deadline_of
from schemas.records import Attempted, Ended, Usage
from schemas.states import State
from stores.chunklog import ChunkLog, LogState
from stores.flights import Flights
from stores.outcomes import Calm, Crashes, EndResult
from stores.redis import Redis
from stores.scripts import Scripts

log = logging.getLogger("tailrace.control")

#: Generations of one look.
BATCH = 500
#: How exactly Redis tells how long it has been up, and a worker when it was last heard of, in milliseconds.
UPTIME_MARGIN_MS = 2000


class Reaper:
    """``lease_ms`` is how long a lease lasts after a renewal."""

    def __init__(self, redis: Redis, *, lease_ms: int, crashes: Crashes, calm: Calm) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._log = ChunkLog(redis)
        self._flights = Flights(redis)
        self._lease_ms = lease_ms
        self._crashes = crashes
        self._calm = calm

    async def reap(self, partition: int) -> None:
        """Leases that ran out: their generations wait for another attempt, or end where they lost too many workers.

        Not before Redis has been up, and reached by workers, for long enough.
        """
        lease = self._redis.keyspace[partition].lease
        now = await self._redis.now_ms(partition)
        expired = await self._redis.command(
            partition, "ZRANGE", lease, "-inf", now, "BYSCORE", "LIMIT", 0, BATCH, "WITHSCORES"
        )
        if not expired:
            return
        uptime = await self.uptime(partition)
        if uptime * 1000 < self._calm.lasts_ms:
            return
        up_since = now - int(uptime * 1000) - UPTIME_MARGIN_MS
        for member, score in expired:
            heard = int(float(score)) - self._lease_ms
            # Where Redis started after the worker was last heard of, they may have gone down together, and what the
            # worker published last with them.
            await self._reap(member.decode(), skip=heard < up_since)

    async def expire(self, partition: int) -> None:
        """Work that waits beyond its deadline ends without being sent."""
        deadlines = self._redis.keyspace[partition].deadlines
        now = await self._redis.now_ms(partition)
        due = await self._redis.command(
            partition, "ZRANGE", deadlines, "-inf", now, "BYSCORE", "LIMIT", 0, BATCH
        )
        for member in due:
            generation, _, completion = member.decode().partition("/")
            state = await self._log.state(generation)
            if state is None or state.ended:
                await self._redis.command(partition, "ZREM", deadlines, member)
            elif completion:
                await self._leave(state, completion)
            elif state.state is not State.LEASED:
                error = DeadlineExceeded("The request's 'timeout' ran out while it waited.")
                await self._scripts.cancel(_ended(state, State.FAILED, error.failure()), state.info.queue)

    async def _leave(self, state: LogState, completion: str) -> None:
        """The deadline of one of the completions that may share a generation."""
        points = completion != state.generation
        who = await self._flights.pointer(completion) if points else state.info
        if who is None:  # it joined, and was never accepted
            keys = self._redis.keys(state.generation)
            member = deadline_of(state.generation, completion)
            await self._redis.command(keys.partition, "ZREM", keys.deadlines, member)
            return
        error = DeadlineExceeded("The request's 'timeout' ran out before the answer was whole.")
        ended = _ended(state, State.FAILED, error.failure())
        await self._scripts.cancel(ended, state.queue, who=who, due=True)

    async def _reap(self, generation: str, *, skip: bool) -> None:
        state = await self._log.state(generation)
        if state is None:
            keys = self._redis.keys(generation)
            await self._redis.command(keys.partition, "ZREM", keys.lease, generation)
            return
        past = Attempted(
            number=state.attempt,
            provider=state.provider,
            model=state.model,
            state="lost",
            usage=Usage(estimated=True),
        )
        outcome = await self._scripts.reap(
            generation, state.attempt, past, crashes=self._crashes, skip=skip, calm=self._calm
        )
        if outcome == "recovering":
            log.warning("%s: the lease of attempt %d ran out, another one follows", generation, state.attempt)
            return
        failure = None
        if outcome == "crashed":
            failure = Failure(
                "worker_lost",
                f"{self._crashes.allowed} workers were lost while they streamed this answer: it is not tried again.",
                status=502,
            )
        elif outcome != "cancelled":
            return
        ended = _ended(state, State.CANCELLED if failure is None else State.FAILED, failure)
        if await self._scripts.end(ended, state.attempt, expired_only=True) is EndResult.ENDED:
            log.warning("%s: the lease of attempt %d ran out, %s", generation, state.attempt, ended.state)

    async def uptime(self, partition: int) -> float:
        """How long a partition's server has been up, in whole seconds."""
        info: bytes = await self._redis.command(partition, "INFO", "server")
        _, _, rest = info.partition(b"uptime_in_seconds:")
        return float(rest.split(b"\r\n", 1)[0])


def _ended(state: LogState, end: State, failure: Failure | None) -> Ended:
    return Ended(
        generation=state.generation,
        state=end.value,
        provider=state.provider,
        model=state.model,
        usage=Usage(estimated=True) if state.state is State.LEASED else Usage(),
        failure=failure,
    )
