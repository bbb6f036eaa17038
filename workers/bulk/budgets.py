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
        self.since = self.full_since = float("-inf")


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
            if now - known.since > FRESH_SECONDS:
                known.key = await asyncio.to_thread(self._keys.get, record.key_id)
                known.since = now
            if known.key is None or known.key.budget_nano is None:
                return
            if known.full is not None and now - known.full_since < FRESH_SECONDS:
                raise NoRoom(known.full.reason)
            prompt, answer = estimate(params)
            usage = Usage(prompt_tokens=prompt, completion_tokens=answer)
            cost = await asyncio.to_thread(  # the first time it loads the list of prices
                self._prices.cost_nano,
                record.provider,
                record.resolved_model,
                usage,
                time.time_ns() // 1_000_000,
            )
            try:
                if await self._limits.charge(known.key, record.id, cost_nano=cost or 0):
                    return
                known.full = NoRoom()
            except LimitReached as error:
                known.full = NoRoom(error)
            known.full_since = time.monotonic()
            raise NoRoom(known.full.reason)
