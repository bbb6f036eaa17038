"""Permits for providers that have limits: an attempt has one while its call lasts, or its generation waits in line.

A provider without limits costs nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.errors import ProviderError, Unavailable
from schemas.estimate import estimate
from schemas.providers import Provider
from schemas.retries import retryable
from stores.keylimits import KeyLimits
from stores.permits import Held, Outcome, Permits
from stores.scripts import HOLDER_PATIENCE

if TYPE_CHECKING:
    from workers.attempt import Attempt

log = logging.getLogger("tailrace.worker")

#: How long after its permit was asked for a call may begin, in seconds; then it needs another one. Connecting comes on
#: top.
BEGIN = 5.0
#: A permit is lost so long after it was last renewed, and renewed so often, in seconds.
LIFE, RENEW = 15.0, 3.0
#: A call that was broken off may still be open at the provider's side for so long, in milliseconds.
COOL_MS = 250
#: Waits are spread over this part of them.
SPREAD = 0.2
#: Statuses by which a provider asks for fewer calls.
SLOW = frozenset({429, 503})

Stream = AbstractAsyncContextManager[AsyncGenerator[list[bytes]]]


class NoPermit(Exception):
    """The generation is in line for a permit; it asks again after ``seconds`` if nobody wakes it before."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(slots=True, eq=False)
class _Permit:
    provider: Provider
    generation: str
    fence: str
    answered_at: float | None = None

    def held(self, now: float) -> Held:
        answered = -1 if self.answered_at is None else int((now - self.answered_at) * 1000)
        return Held(self.generation, self.fence, answered)


class Gate:
    """The permits of a process. ``on_woken`` is told of a provider, and of generations for which it has permits now."""

    def __init__(self, permits: Permits, keys: KeyLimits) -> None:
        self._permits = permits
        self._keys = keys
        self._held: set[_Permit] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_woken: Callable[[str, list[str]], None] = lambda _provider, _generations: None

    def opened(self, attempt: Attempt, provider: Provider, stream: Stream) -> Stream:
        """The stream, opened under a permit where the provider has limits: then entering it may raise NoPermit."""
        return self._permitted(attempt, provider, stream) if provider.limited else stream

    @asynccontextmanager
    async def _permitted(
        self, attempt: Attempt, provider: Provider, stream: Stream
    ) -> AsyncGenerator[AsyncGenerator[list[bytes]]]:
        permit = await self._take(attempt, provider)
        outcome: Outcome = "other"
        retry_after, refused = 0.0, False
        try:
            async with stream as pieces:
                permit.answered_at = asyncio.get_running_loop().time()
                yield pieces
            outcome = "ok"
        except ProviderError as error:
            refused = permit.answered_at is None and error.provider_status is not None
            if refused:
                permit.answered_at = asyncio.get_running_loop().time()
            if error.provider_status in SLOW and retryable(error):
                outcome, retry_after = "slow", error.retry_after or 0.0
            raise
        finally:
            used = attempt.usage().total_tokens
            self._held.discard(permit)
            self._start(
                self._release(
                    permit,
                    outcome,
                    tokens=used if used or refused else -1,
                    cool_ms=0 if outcome == "ok" or refused else COOL_MS,
                    retry_after_ms=int(retry_after * 1000),
                )
            )

    def settle(self, attempt: Attempt) -> None:
        """A generation ended: what it used counts for its key's limit of tokens, instead of the estimate."""
        if attempt.record.counted:
            self._start(self._settle(attempt))

    async def _settle(self, attempt: Attempt) -> None:
        record = attempt.record
        with contextlib.suppress(Unavailable):  # then the estimate counts, for a minute
            await self._keys.settle(record.key_id, record.id, attempt.usage().total_tokens)

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, attempt: Attempt, provider: Provider) -> _Permit:
        loop = asyncio.get_running_loop()
        began = loop.time()
        claim, record = attempt.claim, attempt.record
        taken = await self._permits.take(
            provider,
            claim.generation,
            claim.fence,
            queue=claim.queue,
            tenant=record.tenant,
            tokens=sum(estimate(attempt.work.params)) if provider.tokens_per_minute else 0,
            use_ms=_use_ms(provider),
            ttl_ms=int(LIFE * 1000),
            patience=HOLDER_PATIENCE,
        )
        if taken.woken:
            self.on_woken(provider.name, taken.woken)
        if not taken.granted:
            raise NoPermit(taken.ask_ms / 1000 * random.uniform(1, 1 + SPREAD))
        permit = _Permit(provider, claim.generation, claim.fence)
        if loop.time() - began > BEGIN:  # the process stood still
            self._start(self._release(permit, "unused"))
            raise NoPermit(0.001)
        self._held.add(permit)
        if self._renewing is None or self._renewing.done():
            self._renewing = loop.create_task(self._renew())
        return permit

    async def _release(
        self,
        permit: _Permit,
        outcome: Outcome,
        *,
        tokens: int = -1,
        cool_ms: int = 0,
        retry_after_ms: int = 0,
    ) -> None:
        held = permit.held(asyncio.get_running_loop().time())
        try:
            woken = await self._permits.release(
                permit.provider, held, outcome, tokens=tokens, cool_ms=cool_ms, retry_after_ms=retry_after_ms
            )
        except Unavailable as error:
            log.warning(
                "%s: its permit for '%s' runs out by itself: %s", held.generation, permit.provider.name, error
            )
            return
        if woken:
            self.on_woken(permit.provider.name, woken)

    async def _renew(self) -> None:
        while self._held:
            await asyncio.sleep(RENEW)
            by_provider: dict[str, list[_Permit]] = {}
            for permit in self._held:
                by_provider.setdefault(permit.provider.name, []).append(permit)
            now = asyncio.get_running_loop().time()
            for permits in by_provider.values():
                provider = permits[0].provider
                held = [permit.held(now) for permit in permits]
                try:
                    await self._permits.renew(
                        provider, held, use_ms=_use_ms(provider), ttl_ms=int(LIFE * 1000)
                    )
                except Unavailable as error:
                    log.warning("the permits for '%s' were not renewed: %s", provider.name, error)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Beside the stream, which doesn't wait for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _use_ms(provider: Provider) -> int:
    return int((BEGIN + provider.timeout.connect) * 1000)
