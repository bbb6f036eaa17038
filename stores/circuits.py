"""The circuits of providers, which all workers share: whether one that stopped answering is asked at all.

Nothing is written, and nothing need be read, as long as providers answer.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from schemas.providers import Circuit
from schemas.retries import LONGEST_RETRY_AFTER
from stores.redis import Redis, Script

_FAILED, _PROBE, _ANSWERED = Script("circuit_failed"), Script("circuit_probe"), Script("circuit_answered")
_REST = Script("circuit_rest")
_FIELDS = ("failures", "until", "since", "probe_until", "reason", "rest")

#: How long all this is remembered after the last failure, in seconds, and pauses of the circuit at least. No provider
#: is left alone for longer.
MEMORY, MEMORY_PAUSES = LONGEST_RETRY_AFTER, 10
#: Characters of a failure that are kept.
REASON_LENGTH = 300
#: How long a command is tried while Redis is away, in seconds.
PATIENCE = 1.0


class CircuitState(msgspec.Struct, frozen=True):
    """``failures`` calls in a row got no answer, the last one for ``reason``. ``wait_ms`` is how long until the next
    call is let through; None: all are. ``open_ms`` is how long the circuit has been open, ``rest_ms`` how much longer
    the provider wants to be left alone."""

    failures: int
    reason: str
    wait_ms: int | None = None
    open_ms: int = 0
    rest_ms: int = 0


class CircuitStore:
    """``token`` names a call."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._keys = redis.keyspace[0]

    async def failed(self, provider: str, policy: Circuit, *, token: str, reason: str) -> CircuitState:
        """A call got no answer. Raises Unavailable, as all of these."""
        args: list[str | int] = [
            policy.failures,
            _ms(policy.pause),
            token,
            _ttl(policy),
            reason[:REASON_LENGTH],
        ]
        failures, wait_ms = await self._redis.script(
            0, _FAILED, [self._keys.circuit(provider), self._keys.control], [*args], patience=PATIENCE
        )
        return CircuitState(failures, reason[:REASON_LENGTH], None if wait_ms < 0 else wait_ms)

    async def rest(self, provider: str, policy: Circuit, seconds: float) -> None:
        """The provider asked to be left alone for so long."""
        names = [self._keys.circuit(provider), self._keys.control]
        await self._redis.script(0, _REST, names, [_ms(seconds), _ttl(policy)], patience=PATIENCE)

    async def answered(self, provider: str) -> None:
        names = [self._keys.circuit(provider), self._keys.control]
        await self._redis.script(0, _ANSWERED, names, [], patience=PATIENCE)

    async def probe(self, provider: str, policy: Circuit, *, token: str, hold_ms: int) -> int:
        """Whether a call may go through an open circuit: 0, or milliseconds to wait. It then is the only one for
        ``hold_ms``, longer if it asks again, and with 0 no longer."""
        return await self._redis.script(
            0, _PROBE, [self._keys.circuit(provider)], [token, hold_ms, _ttl(policy)], patience=PATIENCE
        )

    async def states(self, providers: Iterable[str]) -> dict[str, CircuitState]:
        """Those of them about which there is something to tell."""
        names = list(providers)
        (seconds, micros), *rows = await self._redis.commands(
            0,
            [("TIME",), *(("HMGET", self._keys.circuit(name), *_FIELDS) for name in names)],
            patience=PATIENCE,
        )
        now = int(seconds) * 1000 + int(micros) // 1000
        return {name: _state(row, now) for name, row in zip(names, rows, strict=True) if any(row)}


def _state(row: list[bytes | None], now: int) -> CircuitState:
    failures, until, since, probe_until, reason, rest = row
    wait_ms = None if until is None else max(0, int(until) - now, int(probe_until or 0) - now)
    return CircuitState(
        int(failures or 0),
        (reason or b"").decode("utf-8", "replace"),
        wait_ms,
        now - int(since or now),
        max(0, int(rest or 0) - now),
    )


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _ttl(policy: Circuit) -> int:
    return _ms(max(MEMORY, MEMORY_PAUSES * policy.pause))
