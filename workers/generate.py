"""What a process does with the generations that it claims: each gets an attempt, which is carried to the generation's
end or given up for another one to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from dataclasses import dataclass
from enum import Enum
from secrets import token_hex

import msgspec

from schemas.errors import Failure, ProviderError, TailraceError, Unavailable
from schemas.providers import Providers, Retry, Target
from schemas.records import Attempted, Ended
from schemas.retries import answered, fails_over, is_down, next_try
from schemas.states import State
from stores.keylimits import KeyLimits
from stores.outcomes import NOTHING, Batch, Claim, Crashes, EndResult, Left, NotClaimed
from stores.permits import Permits
from stores.rows import storable
from stores.scripts import Scripts
from workers.attempt import Attempt, Tools
from workers.circuits import Circuits
from workers.logwriter import Appender, Behind, Fenced
from workers.permits import Gate, NoPermit
from workers.providers import Backends
from workers.route import Route

log = logging.getLogger("tailrace.worker")

#: No finish reason is kept beyond this length.
FINISH_REASON_LENGTH = 100
#: Work that waits for an open circuit comes back over so long a part of that time more, not all of it at once.
SPREAD = 0.25


class Stop(Enum):
    """Why a stream is stopped that could go on."""

    CANCEL = "cancel"
    RELEASE = "release"


@dataclass(frozen=True)
class Ending:
    """How a stream ended: the state to end in, and why; ``error`` where the provider failed. ``released``: it didn't,
    and another worker is to go on. ``waits``: it was not asked, there is a permit in so many seconds."""

    state: State
    failure: Failure | None = None
    error: ProviderError | None = None
    released: bool = False
    waits: float | None = None


class Generator:
    """Runs attempts. One for a worker process; everything here happens on its loop.

    ``held`` maps the generations that this process has a lease on to their fence; the control thread renews them.
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
        self._tools = Tools(scripts, providers, Backends(providers), Appender(scripts), self.gate)
        self.circuits = Circuits(scripts.redis, providers)
        self.circuits.start()
        self.held: dict[str, str] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, Stop] = {}
        self._releasing = False

    async def run(self, generation: str, queue: str, seq: int) -> str:
        """Claim a generation and carry one attempt to its end. Returns what became of it, for Celery's view."""
        claimed = await self._scripts.claim(
            generation, queue=queue, worker=self._worker, lease_ms=self._lease_ms, seq=seq
        )
        if isinstance(claimed, NotClaimed):
            return claimed.reason
        self.held[generation] = claimed.fence
        try:
            return await self._carry(self._attempt(claimed))
        finally:
            self.held.pop(generation, None)

    async def probed(self, partition: int, queue: str, seq: int) -> str:
        """A message without work was taken."""
        await self._scripts.mark(partition, queue, seq)
        return "probe"

    def cancel(self, generation: str, attempt: str) -> None:
        """Stop a stream: it ends as cancelled. ``attempt`` is its fence, or the number alone."""
        held = self.held.get(generation, "")
        if attempt in (held, held.partition(":")[0]):
            self._stop(generation, Stop.CANCEL)

    def release(self) -> None:
        """Stop every stream, for another worker to go on with: the process is to stop."""
        self._releasing = True
        for generation in list(self.held):
            self._stop(generation, Stop.RELEASE)

    def lost(self, generation: str, fence: str) -> None:
        """The lease is another's by now: stop, and write nothing."""
        if self.held.get(generation) == fence:
            self.held.pop(generation, None)
            task = self._streams.get(generation)
            if task is not None:
                task.cancel()

    async def close(self) -> None:
        await self.gate.close()
        await self.circuits.close()
        await self._tools.backends.close()

    def _stop(self, generation: str, why: Stop) -> None:
        task = self._streams.get(generation)
        if task is not None and generation not in self._stops:
            self._stops[generation] = why
            task.cancel()

    def _attempt(self, claim: Claim) -> Attempt:
        return Attempt(
            self._tools,
            claim,
            on_cancel=lambda: self.cancel(claim.generation, claim.fence),
            on_answer=lambda attempt: self.circuits.answered(attempt.target.provider),
        )

    async def _carry(self, attempt: Attempt) -> str:
        generation = attempt.claim.generation
        route = Route(attempt, self.circuits)
        past: Attempted | None = None
        batch = NOTHING
        try:
            while (target := await route.next()) is not None:
                try:
                    turned = await self._turn(attempt, target, past)
                    if turned is None:
                        return await self._end(attempt, batch, State.CANCELLED, None)
                    attempt = turned
                    ending = await self._streamed(attempt)
                    if ending.error is not None:
                        await self._note(attempt, ending.error)
                finally:
                    self.circuits.leave(target.provider, generation)
                batch = await attempt.writer.rest()
                if ending.waits is not None:
                    return await self._leave(attempt, batch, None, max(ending.waits, 0.001))
                if ending.released:
                    return await self._leave(attempt, batch, attempt.past("released"))
                error = ending.error
                if error is None:
                    return await self._end(attempt, batch, ending.state, ending.failure)
                if not fails_over(error):
                    route.failures.clear()
                route.failures.append((target, error))
                if not fails_over(error) or attempt.published(batch):
                    break
                past = attempt.past("failed")
            if not route.failures:
                return await self._wait_for_circuit(attempt, route)
            return await self._fail(attempt, batch, route)
        except Fenced:
            claim = attempt.claim
            log.warning("%s: attempt %d was fenced off", generation, claim.attempt)
            with contextlib.suppress(Unavailable):
                await self._scripts.setback(generation, claim.fence, attempt.writer.published)
            return "fenced"
        except Behind:
            log.warning(
                "%s: Redis lost chunks of attempt %d; it starts again", generation, attempt.claim.attempt
            )
            past = attempt.past("released")
            await self._scripts.leave(
                generation, past, NOTHING, crashes=self._crashes, fence=attempt.claim.fence, skip=True
            )
            return "released"
        except Unavailable as error:
            log.warning("%s: attempt %d was given up: %s", generation, attempt.claim.attempt, error)
            return "unavailable"

    async def _turn(self, attempt: Attempt, target: Target, past: Attempted | None) -> Attempt | None:
        """The attempt that asks ``target``: this one, or where it has failed (``past``) the next one, under the same
        lease. None where a cancel is asked for. Raises Fenced."""
        if past is None and target == attempt.target:
            return attempt
        old = attempt.claim
        if past is not None:
            self.held.pop(old.generation, None)  # a renewal would take it for lost in between
        other = None if target == attempt.first else (target.provider, target.model)
        claim = await self._scripts.failover(old, other, past, call=token_hex(8))
        if claim is None:
            raise Fenced
        self.held[old.generation] = claim.fence if claim.attempt else old.fence
        if not claim.attempt:
            return None
        return self._attempt(msgspec.structs.replace(claim, waited_ms=int(attempt.age * 1000)))

    async def _note(self, attempt: Attempt, error: ProviderError) -> None:
        """What a failure says about its provider."""
        provider = attempt.target.provider
        if error.provider_status in (401, 403):
            log.warning("%s: %s", attempt.claim.generation, error)
        if error.retry_after:
            self.circuits.rest(provider, error.retry_after)
        if attempt.answered:
            return
        if is_down(error):
            await self.circuits.failed(provider, attempt.claim.generation, error)
        elif answered(error):
            self.circuits.answered(provider)

    async def _streamed(self, attempt: Attempt) -> Ending:
        if self._releasing:
            return Ending(State.FAILED, released=True)
        generation = attempt.claim.generation
        task = self._streams[generation] = asyncio.create_task(attempt.stream())
        try:
            await task
        except asyncio.CancelledError:
            match self._stops.get(generation):
                case Stop.CANCEL:
                    return Ending(State.CANCELLED)
                case Stop.RELEASE:
                    return Ending(State.FAILED, released=True)
                case None:
                    if self.held.get(generation) != attempt.claim.fence:
                        raise Fenced from None
                    raise
        except (Fenced, Behind, Unavailable):
            raise
        except NoPermit as wait:
            return Ending(State.FAILED, waits=wait.seconds)
        except ProviderError as error:
            return Ending(State.FAILED, error=error)
        except TailraceError as error:
            return Ending(State.FAILED, error.failure())
        except Exception as error:
            log.exception("%s: attempt %d failed", generation, attempt.claim.attempt)
            message = f"The worker failed: {type(error).__name__}."
            return Ending(State.FAILED, Failure("internal_error", message, status=500))
        finally:
            self._streams.pop(generation, None)
            self._stops.pop(generation, None)
        return Ending(State.COMPLETED)

    async def _fail(self, attempt: Attempt, batch: Batch, route: Route) -> str:
        """Whoever could be asked has failed: they are asked again later, or that is the end."""
        tries, error = attempt.claim.tries + 1, route.failures[-1][1]
        pauses = [
            next_try(each, tries=tries, elapsed=attempt.age, policy=self._retry(target), random=random.random)
            for target, each in route.failures
        ]
        pause = min((pause for pause in pauses if pause is not None), default=None)
        if pause is None or not await self._in_time(attempt, pause):
            return await self._end(attempt, batch, State.FAILED, error.failure())
        log.info("%s: try %d failed (%s), again in %.1f s", attempt.claim.generation, tries, error, pause)
        return await self._leave(attempt, batch, attempt.past("failed"), max(pause, 0.001), failed=True)

    async def _wait_for_circuit(self, attempt: Attempt, route: Route) -> str:
        """Nobody may be asked now."""
        batch = await attempt.writer.rest()
        pause = route.wait * (1 + SPREAD * random.random())
        total = self._retry(attempt.target).total
        if attempt.age + pause > total or not await self._in_time(attempt, pause):
            failure = self.circuits.refusal(attempt.target.provider).failure()
            return await self._end(attempt, batch, State.FAILED, failure)
        return await self._leave(attempt, batch, None, max(pause, 0.001))

    def _retry(self, target: Target) -> Retry:
        provider = self._tools.providers.providers.get(target.provider)
        return Retry() if provider is None else provider.retry

    @staticmethod
    async def _in_time(attempt: Attempt, pause: float) -> bool:
        left = await attempt.time_left()
        return left is None or pause < left

    async def _leave(
        self,
        attempt: Attempt,
        batch: Batch,
        past: Attempted | None,
        pause: float = 0.0,
        *,
        failed: bool = False,
    ) -> str:
        """Park the generation, or (``pause`` 0) release it. ``past`` None: this attempt asked nobody."""
        left = await self._scripts.leave(
            attempt.claim.generation,
            past,
            batch,
            crashes=self._crashes,
            fence=attempt.claim.fence,
            pause_ms=int(pause * 1000 + 0.999),
            failed=failed,
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
        encoder = attempt.encoder
        ended = Ended(
            generation=attempt.claim.generation,
            state=state.value,
            provider=attempt.target.provider,
            model=attempt.target.model,
            usage=attempt.usage(),
            failure=failure,
            finish_reasons=[
                storable(encoder.finish_reasons[i][:FINISH_REASON_LENGTH])
                for i in sorted(encoder.finish_reasons)
            ],
        )
        match await self._scripts.end(ended, attempt.claim.fence, batch):
            case EndResult.STALE:
                raise Fenced
            case EndResult.GAP:
                raise Behind
            case EndResult.ENDED | EndResult.REPEATED:
                self.gate.settle(attempt)
                return state.value
