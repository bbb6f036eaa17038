"""What a process does with the generations that it claims: each gets an attempt, which is carried to the generation's
end or given up for another one to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from enum import Enum

from schemas.errors import Failure, ProviderError, TailraceError, Unavailable
from schemas.providers import Providers
from schemas.records import Ended
from schemas.retries import next_try
from schemas.states import State
from stores.keylimits import KeyLimits
from stores.outcomes import NOTHING, Batch, Crashes, EndResult, Left, NotClaimed
from stores.permits import Permits
from stores.rows import storable
from stores.scripts import Scripts
from workers.attempt import Attempt, Tools
from workers.logwriter import Appender, Behind, Fenced
from workers.permits import Gate, NoPermit
from workers.upstream import make_transport

log = logging.getLogger("tailrace.worker")

#: No finish reason is kept beyond this length.
FINISH_REASON_LENGTH = 100


class Stop(Enum):
    """Why a stream is stopped that could go on."""

    CANCEL = "cancel"
    RELEASE = "release"


class Generator:
    """Runs attempts. One for a worker process; everything here happens on its loop.

    ``held`` maps the generations that this process has a lease on to their attempt; the control thread renews them.
    """

    def __init__(
        self,
        scripts: Scripts,
        providers: Providers,
        *,
        worker: str,
        lease_ms: int,
        crashes: Crashes,
        window_ms: int,
    ) -> None:
        self._scripts = scripts
        self._worker = worker
        self._lease_ms = lease_ms
        self._crashes = crashes
        self.gate = Gate(
            Permits(scripts.redis, window_ms=window_ms), KeyLimits(scripts.redis, window_ms=window_ms)
        )
        self._tools = Tools(scripts, providers, make_transport(), Appender(scripts), self.gate)
        self.held: dict[str, int] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, Stop] = {}

    async def run(self, generation: str, queue: str, seq: int) -> str:
        """Claim a generation and carry one attempt to its end. Returns what became of it, for Celery's view."""
        claimed = await self._scripts.claim(
            generation, queue=queue, worker=self._worker, lease_ms=self._lease_ms, seq=seq
        )
        if isinstance(claimed, NotClaimed):
            return claimed.reason
        self.held[generation] = claimed.attempt
        try:
            attempt = Attempt(
                self._tools, claimed, on_cancel=lambda: self.cancel(generation, claimed.attempt)
            )
            return await self._carry(attempt)
        finally:
            self.held.pop(generation, None)

    async def probed(self, partition: int, queue: str, seq: int) -> str:
        """A message without work was taken."""
        await self._scripts.mark(partition, queue, seq)
        return "probe"

    def cancel(self, generation: str, attempt: int) -> None:
        """Stop a stream: it ends as cancelled."""
        self._stop(generation, attempt, Stop.CANCEL)

    def release(self) -> None:
        """Stop every stream, for another worker to go on with: the process is to stop."""
        for generation, attempt in list(self.held.items()):
            self._stop(generation, attempt, Stop.RELEASE)

    def lost(self, generation: str, attempt: int) -> None:
        """The lease is another's by now: stop, and write nothing."""
        if self.held.get(generation) == attempt:
            self.held.pop(generation, None)
            task = self._streams.get(generation)
            if task is not None:
                task.cancel()

    async def close(self) -> None:
        await self.gate.close()
        await self._tools.transport.aclose()

    def _stop(self, generation: str, attempt: int, why: Stop) -> None:
        task = self._streams.get(generation)
        if task is not None and self.held.get(generation) == attempt and generation not in self._stops:
            self._stops[generation] = why
            task.cancel()

    async def _carry(self, attempt: Attempt) -> str:
        generation, number = attempt.claim.generation, attempt.claim.attempt
        try:
            state, failure, pause = await self._streamed(attempt)
            batch = await attempt.writer.rest()
            if pause is not None:
                return await self._leave(attempt, batch, pause, waits=pause > 0 and failure is None)
            return await self._end(attempt, batch, state, failure)
        except Fenced:
            log.warning("%s: attempt %d was fenced off", generation, number)
            with contextlib.suppress(Unavailable):
                await self._scripts.setback(generation, number, attempt.writer.published)
            return "fenced"
        except Behind:
            log.warning("%s: Redis lost chunks of attempt %d; it starts again", generation, number)
            past = attempt.past("released")
            await self._scripts.leave(generation, past, NOTHING, crashes=self._crashes, skip=True)
            return "released"
        except Unavailable as error:
            log.warning("%s: attempt %d was given up: %s", generation, number, error)
            return "unavailable"

    async def _streamed(self, attempt: Attempt) -> tuple[State, Failure | None, float | None]:
        """Stream to the end: the state to end in and its failure; or the seconds to wait before the next attempt (0 is
        for another worker to go on at once), without a failure where it waits for a permit.
        """
        generation = attempt.claim.generation
        task = self._streams[generation] = asyncio.create_task(attempt.stream())
        try:
            await task
        except asyncio.CancelledError:
            match self._stops.get(generation):
                case Stop.CANCEL:
                    return State.CANCELLED, None, None
                case Stop.RELEASE:
                    return State.FAILED, None, 0.0
                case None:
                    if self.held.get(generation) != attempt.claim.attempt:
                        raise Fenced from None
                    raise
        except (Fenced, Behind, Unavailable):
            raise
        except NoPermit as wait:
            return State.FAILED, None, wait.seconds
        except ProviderError as error:
            return State.FAILED, error.failure(), await self._pause(attempt, error)
        except TailraceError as error:
            return State.FAILED, error.failure(), None
        except Exception as error:
            log.exception("%s: attempt %d failed", generation, attempt.claim.attempt)
            message = f"The worker failed: {type(error).__name__}."
            return State.FAILED, Failure("internal_error", message, status=500), None
        finally:
            self._streams.pop(generation, None)
            self._stops.pop(generation, None)
        return State.COMPLETED, None, None

    async def _pause(self, attempt: Attempt, error: ProviderError) -> float | None:
        """Seconds before a provider that failed is asked again; None where it isn't."""
        tries = attempt.claim.tries + 1
        pause = next_try(
            error, tries=tries, elapsed=attempt.age, policy=attempt.provider.retry, random=random.random
        )
        if pause is None:
            return None
        left = await attempt.time_left()
        if left is not None and pause >= left:
            return None
        log.info("%s: try %d failed (%s), again in %.1f s", attempt.claim.generation, tries, error, pause)
        return max(pause, 0.001)

    async def _leave(self, attempt: Attempt, batch: Batch, pause: float, *, waits: bool) -> str:
        """Park the generation, or (``pause`` 0) release it. ``waits``: for a permit; its provider was not called."""
        left = await self._scripts.leave(
            attempt.claim.generation,
            attempt.past("failed" if pause else "released"),
            batch,
            crashes=self._crashes,
            fence=attempt.claim.fence,
            pause_ms=int(pause * 1000 + 0.999),
            failed=pause > 0 and not waits,
            waits=waits,
        )
        match left:
            case Left.CANCEL_ASKED:
                return await self._end(attempt, batch, State.CANCELLED, None)
            case Left.STALE:
                raise Fenced
            case Left.GAP:
                raise Behind
            case Left.LEFT | Left.REPEATED:
                return "parked" if pause else "released"

    async def _end(self, attempt: Attempt, batch: Batch, state: State, failure: Failure | None) -> str:
        encoder, record = attempt.encoder, attempt.record
        ended = Ended(
            generation=attempt.claim.generation,
            state=state.value,
            provider=record.provider,
            model=record.resolved_model,
            usage=attempt.usage(),
            failure=failure,
            finish_reasons=[
                storable(encoder.finish_reasons[i][:FINISH_REASON_LENGTH])
                for i in sorted(encoder.finish_reasons)
            ],
        )
        match await self._scripts.end(ended, attempt.claim.attempt, batch):
            case EndResult.STALE:
                raise Fenced
            case EndResult.GAP:
                raise Behind
            case EndResult.ENDED | EndResult.REPEATED:
                self.gate.settle(attempt)
                return state.value
