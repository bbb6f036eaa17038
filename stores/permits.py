"""The permits for calls to providers that have limits: one script on the keys of the provider, for all workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from schemas.keys import Keys
from schemas.providers import Provider
from stores.redis import PATIENCE, Redis, Script
from stores.wire import Arg

_PERMITS = Script("permits")
_CLASSES = ("interactive", "bulk")

#: ``slow``: the provider asks for fewer calls; ``unused``: it was not called.
Outcome = Literal["ok", "slow", "unused", "other"]


class Taken(msgspec.Struct, frozen=True):
    """``granted``, or in line: ``ask_ms`` is when to ask again where nobody wakes the generation before.

    ``woken``: generations that now have a permit reserved, for the caller to wake.
    """

    granted: bool
    ask_ms: int
    woken: list[str]


class Held(msgspec.Struct, frozen=True):
    """A permit as its holder sees it. ``answered_ms``: since the provider answered, -1 if it hasn't."""

    generation: str
    fence: str
    answered_ms: int = -1


class PermitState(msgspec.Struct, frozen=True):
    """Of interactive work and of bulk: permits held, generations in line, calls and tokens in the window.

    ``factor``: the part of the limits that holds since the provider asked for fewer calls; ``pause_ms``: until it is
    called again.
    """

    held: tuple[int, int]
    waiting: tuple[int, int]
    calls: tuple[int, int]
    tokens: tuple[int, int]
    factor: float
    pause_ms: int


class Permits:
    """The permits on one key space. ``window_ms`` is what counts as a minute."""

    def __init__(self, redis: Redis, *, window_ms: int) -> None:
        self._redis = redis
        self._window_ms = window_ms

    def partition(self, provider: Provider) -> int:
        return self._keys(provider).partition

    async def take(
        self,
        provider: Provider,
        generation: str,
        fence: str,
        *,
        queue: str,
        tenant: str,
        tokens: int,
        use_ms: int,
        ttl_ms: int,
        patience: float = PATIENCE,
    ) -> Taken:
        """A permit for one call, which begins within ``use_ms`` or never; it is lost ``ttl_ms`` after it was renewed.

        ``fence`` names the attempt. ``tokens`` is an estimate.
        """
        kind = queue if queue in _CLASSES else _CLASSES[0]
        tokens = min(tokens, provider.tokens_per_minute or tokens)
        granted, ask_ms, *woken = await self._call(
            provider, "take", kind, generation, fence, tenant, tokens, use_ms, ttl_ms, patience=patience
        )
        return Taken(bool(granted), ask_ms, _decoded(woken))

    async def renew(self, provider: Provider, held: Sequence[Held], *, use_ms: int, ttl_ms: int) -> int:
        """How many of them are still their holders'."""
        args: list[Arg] = [use_ms, ttl_ms]
        for permit in held:
            args += (permit.generation, permit.fence, permit.answered_ms)
        return (await self._call(provider, "renew", *args))[0]

    async def release(
        self,
        provider: Provider,
        permit: Held,
        outcome: Outcome,
        *,
        tokens: int = -1,
        cool_ms: int = 0,
        retry_after_ms: int = 0,
    ) -> list[str]:
        """The call is over. ``tokens`` is what it used, -1 as estimated; ``cool_ms``: it may be open for so long at the
        provider's side. Returns the generations to wake."""
        args = (permit.generation, permit.fence, permit.answered_ms, tokens, cool_ms, outcome, retry_after_ms)
        return _decoded(await self._call(provider, "release", *args))

    async def give_back(self, provider: Provider, generation: str) -> list[str]:
        """A reservation that will not be taken; the generations to wake in its place."""
        return _decoded(await self._call(provider, "give_back", generation))

    async def promote(self, provider: Provider, generation: str) -> None:
        """Bulk work that stands in line stands with the interactive work from now on, and first there."""
        await self._call(provider, "promote", generation)

    async def deal(self, provider: Provider) -> list[str]:
        """Reserve what came free with time; the generations to wake."""
        return _decoded(await self._call(provider, "deal"))

    async def look(self, provider: Provider) -> PermitState:
        n: list[int] = await self._call(provider, "look")
        return PermitState((n[0], n[1]), (n[2], n[3]), (n[4], n[5]), (n[6], n[7]), n[8] / 1000, n[9])

    def _keys(self, provider: Provider) -> Keys:
        return self._redis.keys(provider.name)

    async def _call(
        self, provider: Provider, operation: str, *args: Arg, patience: float = PATIENCE
    ) -> list[int]:
        keys = self._keys(provider)
        parts = (
            "state",
            "tags",
            *(f"{part}:{c}" for c in _CLASSES for part in ("held", "window", "waiting")),
        )
        limits: list[Arg] = [
            provider.max_concurrency or 0,
            provider.requests_per_minute or 0,
            provider.tokens_per_minute or 0,
            str(provider.bulk_share),
            self._window_ms,
        ]
        return await self._redis.script(
            keys.partition,
            _PERMITS,
            [keys.permits(provider.name, part) for part in parts],
            [*limits, operation, *args],
            patience=patience,
        )


def _decoded(ids: Sequence[object]) -> list[str]:
    return [id.decode() for id in ids if isinstance(id, bytes)]
