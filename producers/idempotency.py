"""Idempotency-Keys: reserved before a completion is accepted, confirmed after, so that a retry adopts the same one."""

from __future__ import annotations

import contextlib

import msgspec

from schemas.errors import Unavailable, Unprocessable
from schemas.keys import scoped_digest
from stores.redis import Redis

#: How long an Idempotency-Key is remembered, in seconds.
IDEMPOTENCY_TTL = 24 * 3600


class Reservation(msgspec.Struct):
    """What an Idempotency-Key stands for."""

    id: str
    fingerprint: str
    end_user: str | None = None
    confirmed: bool = False
    tenant: str = ""  # to find them by


_decoder = msgspec.json.Decoder(Reservation)


class Held:
    """A tenant's Idempotency-Key and what it stands for. ``fresh``: by this call, and nobody else has seen it yet."""

    def __init__(self, keys: IdempotencyKeys, name: str, reservation: Reservation, *, fresh: bool) -> None:
        self._keys = keys
        self._name = name
        self._reservation = reservation
        self.id = reservation.id
        self.fresh = fresh

    @property
    def confirmed(self) -> bool:
        return self._reservation.confirmed

    async def confirm(self) -> None:
        """From here on the key's completion is in Redis or in the books, and is never made again."""
        self._reservation.confirmed = True
        await self._keys.replace(self._name, self._reservation)

    async def release(self) -> None:
        """The key stands for nothing. Raises Unavailable."""
        await self._keys.remove(self._name)

    async def give_back(self) -> None:
        """The call is refused: a key that it has reserved itself stands for nothing, if Redis can be told so."""
        if self.fresh:
            with contextlib.suppress(Unavailable):
                await self.release()

    async def keep(self) -> bool:
        """Reserve it again, where Redis has lost it, to be confirmed again. False where by now it stands for another
        completion: a retry has taken its place, whose caller had lost the answer."""
        other = await self._keys.put(self._name, msgspec.structs.replace(self._reservation, confirmed=False))
        return other is None or other.id == self.id


class IdempotencyKeys:
    """On one key space."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def reserve(self, tenant: str, key: str, mine: Reservation) -> Held:
        """The key, standing for ``mine`` or for what it stands for already. Raises Unprocessable where that was
        another request."""
        name = scoped_digest(tenant, key)
        other = await self.put(name, mine)
        if other is None:
            return Held(self, name, mine, fresh=True)
        if other.fingerprint != mine.fingerprint or other.end_user != mine.end_user:
            raise Unprocessable(
                "This Idempotency-Key was used with another request. Send a new key, or the same request.",
                param="Idempotency-Key",
            )
        return Held(self, name, other, fresh=False)

    async def find(self, tenant: str, key: str) -> Reservation | None:
        name = scoped_digest(tenant, key)
        keys = self._redis.keys(name)
        data = await self._redis.command(keys.partition, "GET", keys.idempotency(name))
        return _decoder.decode(data) if data else None

    # By the key's digest

    async def put(self, name: str, reservation: Reservation) -> Reservation | None:
        """What the key stands for already; None where it is this by now."""
        keys = self._redis.keys(name)
        data = msgspec.json.encode(reservation)
        there = await self._redis.command(
            keys.partition, "SET", keys.idempotency(name), data, "NX", "GET", "EX", IDEMPOTENCY_TTL
        )
        return _decoder.decode(there) if there else None

    async def replace(self, name: str, reservation: Reservation) -> None:
        keys = self._redis.keys(name)
        data = msgspec.json.encode(reservation)
        await self._redis.command(keys.partition, "SET", keys.idempotency(name), data, "XX", "KEEPTTL")

    async def remove(self, name: str) -> None:
        keys = self._redis.keys(name)
        await self._redis.command(keys.partition, "DEL", keys.idempotency(name))
