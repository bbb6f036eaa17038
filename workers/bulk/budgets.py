"""What the keys of batches may still spend in this month: a row goes out where its key's budget has room for it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Any

from schemas.errors import LimitReached, TailraceError
from schemas.estimate import estimate
from schemas.prices import Prices
from schemas.records import Accepted, Usage
from stores.apikeys import ApiKey, ApiKeys
from stores.keylimits import KeyLimits

#: How long it is remembered what a key may spend, and that there is no room, in seconds.
FRESH_SECONDS = 1.0
#: Keys that are remembered.
KEYS = 1000


class NoRoom(Exception):
    """Not now; with a ``reason`` nothing is under way that could leave room."""

    def __init__(self, reason: TailraceError | None = None) -> None:
        super().__init__(reason)
        self.reason = reason


class _Known:
    """One row of a key at a time asks, so that what is spent is looked up once for all of them."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.key: ApiKey | None = None
        self.full: NoRoom | None = None
        self.batch: str | None = None  # whose row found it full
        self.since = self.full_since = float("-inf")

    def is_full(self, batch: str | None, now: float) -> bool:
        """That the budget is spent is told to the batch that it stops: another one may come after it was raised."""
        if self.full is None or now - self.full_since > FRESH_SECONDS:
            return False
        return self.full.reason is None or self.batch == batch


class Budgets:
    """Everything here happens on one loop, and SQL in a thread."""

    def __init__(self, keys: ApiKeys, limits: KeyLimits, prices: Prices) -> None:
        self._keys = keys
        self._limits = limits
        self._prices = prices
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def charge(self, record: Accepted, params: dict[str, Any]) -> None:
        """Reserve what a row may cost. Raises NoRoom, Unavailable and SQLAlchemy's errors."""
        known = self._known.setdefault(record.key_id, _Known())
        self._known.move_to_end(record.key_id)
        if len(self._known) > KEYS:
            self._known.popitem(last=False)
        async with known.lock:
            now = time.monotonic()
            if known.full is not None and known.is_full(record.batch_id, now):
                raise NoRoom(known.full.reason)
            if now - known.since > FRESH_SECONDS:
                await self._read(known, record.key_id)
            try:
                has_room = await self._reserve(known.key, record, params)
            except LimitReached:
                await self._read(known, record.key_id)  # it may have been given more just now
                try:
                    has_room = await self._reserve(known.key, record, params)
                except LimitReached as error:
                    known.full, known.batch, known.full_since = (
                        NoRoom(error),
                        record.batch_id,
                        time.monotonic(),
                    )
                    raise NoRoom(error) from None
            if not has_room:
                known.full, known.full_since = NoRoom(), time.monotonic()
                raise NoRoom

    async def _read(self, known: _Known, key_id: str) -> None:
        known.since = time.monotonic()
        known.key = await asyncio.to_thread(self._keys.get, key_id)

    async def _reserve(self, key: ApiKey | None, record: Accepted, params: dict[str, Any]) -> bool:
        """Whether there was room. Raises LimitReached and Unavailable."""
        if key is None or key.budget_nano is None:
            return True
        prompt, answer = estimate(params)
        usage = Usage(prompt_tokens=prompt, completion_tokens=answer)
        now_ms = time.time_ns() // 1_000_000
        cost = await asyncio.to_thread(  # the first time it loads the list of prices
            self._prices.cost_nano, record.provider, record.resolved_model, usage, now_ms
        )
        return await self._limits.charge(key, record.id, cost_nano=cost or 0)
