"""What a process knows of the providers' circuits: enough to ask Redis only while a provider doesn't answer.

The view is refreshed when Redis's channel says that something changed, and now and then besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

import hiredis

from schemas.errors import ProviderError, Unavailable
from schemas.providers import Providers
from stores.circuits import CircuitState, CircuitStore
from stores.redis import Redis

log = logging.getLogger("tailrace.worker")

#: Between looks at the circuits, in seconds, where nobody calls.
LOOK_PAUSE = 2.0
#: How long a probe is kept for a worker that says nothing more, in milliseconds.
HOLD_MS = 6000


class Circuits:
    """One for a process; everything here happens on one loop. ``call`` names a call: its generation's id."""

    def __init__(self, redis: Redis, providers: Providers) -> None:
        self._store = CircuitStore(redis)
        self._providers = providers.providers
        #: Those that somebody can do without.
        self._replaceable = {
            target.partition(":")[0]
            for targets in providers.aliases.values()
            if len(targets) > 1
            for target in targets
        }
        self._known: dict[str, CircuitState] = {}
        self._opens: dict[str, float] = {}  # when an open one may be probed, by the loop's clock
        self._resting: dict[str, float] = {}
        self._probes: dict[str, str] = {}
        self._called = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._spawn(self._watch())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def look(self) -> None:
        """Something changed."""
        self._called.set()

    async def enter(self, provider: str, call: str) -> float:
        """0 where a call may be made now; else seconds until it may be tried."""
        opens = self._opens.get(provider)
        if opens is None:
            return 0.0
        wait = opens - self._loop.time()
        if wait > 0:
            return wait
        policy = self._providers[provider].circuit
        try:
            wait_ms = await self._store.probe(provider, policy, token=call, hold_ms=HOLD_MS)
        except (Unavailable, hiredis.ReplyError):
            return policy.pause
        if wait_ms:
            self._opens[provider] = self._loop.time() + wait_ms / 1000
            return wait_ms / 1000
        self._probes[provider] = call
        return 0.0

    def answered(self, provider: str) -> None:
        """A call was answered, whatever the answer."""
        if provider in self._known:
            self._forget(provider)
            self._spawn(self._tell_answered(provider))

    async def failed(self, provider: str, call: str, error: ProviderError) -> None:
        """A call was not answered."""
        configured = self._providers.get(provider)
        if configured is None or not configured.circuit.failures:
            return
        if self._probes.get(provider) == call:
            del self._probes[provider]
        was_open = provider in self._opens
        try:
            state = await self._store.failed(
                provider, configured.circuit, token=call, reason=f"{error.code}: {error.message}"
            )
        except (Unavailable, hiredis.ReplyError):
            return
        self._learn(provider, state)
        if state.wait_ms is not None and not was_open:
            log.warning("the circuit of provider '%s' is open: %s", provider, error)

    def leave(self, provider: str, call: str) -> None:
        """A call is over that may have been a probe, and told neither of the two."""
        if self._probes.get(provider) == call:
            del self._probes[provider]
            self._spawn(self._give_back(provider, call))

    def rest(self, provider: str, seconds: float) -> None:
        """The provider wants to be left alone for so long."""
        if provider in self._replaceable:
            self._resting[provider] = self._loop.time() + seconds
            self._spawn(self._tell_rest(provider, seconds))

    def resting(self, provider: str) -> float:
        """Seconds that the provider still wants to be left alone."""
        until = self._resting.get(provider)
        return 0.0 if until is None else max(until - self._loop.time(), 0.0)

    def refusal(self, provider: str) -> ProviderError:
        """Why a call isn't made."""
        state = self._known.get(provider)
        told = "."
        if state is not None and state.failures:
            told = f": {state.failures} calls in a row were not answered, the last one with {state.reason}"
        return ProviderError(
            f"The provider '{provider}' is not asked for now{told}", code="provider_circuit_open"
        )

    # Inside

    def _learn(self, provider: str, state: CircuitState) -> None:
        self._known[provider] = state
        if state.rest_ms:
            self._resting[provider] = self._loop.time() + state.rest_ms / 1000
        if state.wait_ms is None:
            self._opens.pop(provider, None)
        else:
            self._opens[provider] = self._loop.time() + state.wait_ms / 1000

    def _forget(self, provider: str) -> None:
        self._known.pop(provider, None)
        self._probes.pop(provider, None)
        if self._opens.pop(provider, None) is not None:
            log.warning("the circuit of provider '%s' is closed again", provider)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_rest(self, provider: str, seconds: float) -> None:
        with contextlib.suppress(Unavailable, hiredis.ReplyError):
            await self._store.rest(provider, self._providers[provider].circuit, seconds)

    async def _tell_answered(self, provider: str) -> None:
        with contextlib.suppress(Unavailable, hiredis.ReplyError):
            await self._store.answered(provider)

    async def _give_back(self, provider: str, call: str) -> None:
        with contextlib.suppress(Unavailable, hiredis.ReplyError):
            await self._store.probe(provider, self._providers[provider].circuit, token=call, hold_ms=0)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(Unavailable, hiredis.ReplyError):
                await self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._called.wait(), LOOK_PAUSE)
            self._called.clear()

    async def _look(self) -> None:
        for provider, call in list(self._probes.items()):
            policy = self._providers[provider].circuit
            await self._store.probe(provider, policy, token=call, hold_ms=HOLD_MS)
        found = await self._store.states(self._providers)
        for provider in list(self._known):
            if provider not in found:
                self._forget(provider)
        for provider, state in found.items():
            self._learn(provider, state)
