"""The limits of API keys: what a key has used lately and has in flight, in one script on the keys of the key.

Nobody has to report an end: what a key has open is looked up where a limit is reached, so a crash leaves nothing
behind.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from schemas.errors import LimitReached, Unavailable
from schemas.keys import Keys
from schemas.records import Accepted
from schemas.states import State
from stores.apikeys import ApiKey
from stores.books import Books
from stores.redis import PATIENCE, Redis, Script
from stores.wire import Arg

_KEYLIMIT = Script("keylimit")

#: The oldest completions of a key that are looked up where it has reached a limit.
LOOKED_UP = 1000
#: A completion that Redis has nothing of is still on its way to be accepted for so long, in milliseconds.
ACCEPTING_MS = 30_000
#: What a caller is told to wait where nobody can know, in seconds.
RETRY_SECONDS = 1.0
#: How often what is in flight may be looked up for one request.
REFRESHES = 3

_NAMES = {
    "rpm": ("requests", "requests per minute"),
    "tpm": ("tokens", "tokens per minute"),
    "concurrent": ("requests", "completions at once"),
    "queued": ("requests", "queued completions"),
    "queued_bytes": ("requests", "bytes of queued completions"),
    "budget": ("insufficient_quota", "money in this month"),
}


class Admitted(msgspec.Struct, frozen=True):
    """What is left of the limits per minute, and until when (milliseconds) all of it is back."""

    requests: int
    requests_ms: int
    tokens: int
    tokens_ms: int


class KeyLimits:
    """The limits on one key space. ``window_ms`` is what counts as a minute."""

    def __init__(self, redis: Redis, books: Books | None = None, *, window_ms: int) -> None:
        self._redis = redis
        self._books = books
        self._window_ms = window_ms

    async def admit(
        self, key: ApiKey, completion: str, *, tokens: int, size: int, cost_nano: int
    ) -> dict[str, str]:
        """Let a completion in, with estimates of its tokens and cost; the headers that say what is left.

        Raises LimitReached, with these headers, and Unavailable.
        """
        verdict, wait_ms, left = await self._admit(key, completion, tokens, size, cost_nano)
        headers = _headers(key, left)
        if verdict != "ok":
            raise _reached(key, verdict, wait_ms, headers)
        return headers

    async def charge(self, key: ApiKey, completion: str, *, cost_nano: int) -> bool:
        """As ``admit``, by the budget alone. False where there may be room once what is under way has ended: it costs
        less than was estimated, maybe."""
        only = msgspec.structs.replace(
            key, rpm=None, tpm=None, concurrent=None, queued=None, queued_bytes=None
        )
        verdict, wait_ms, _ = await self._admit(only, completion, 0, 0, cost_nano)
        if verdict != "ok" and not wait_ms:
            raise _reached(only, verdict, wait_ms, {})
        return verdict == "ok"

    async def _admit(
        self, key: ApiKey, completion: str, tokens: int, size: int, cost_nano: int
    ) -> tuple[str, int, Admitted]:
        """What the script says once it knows all that it needs. Raises Unavailable."""
        month = datetime.now(UTC).strftime("%Y-%m")
        limits: list[Arg] = [
            limit or 0
            for limit in (key.rpm, key.tpm, key.concurrent, key.queued, key.queued_bytes, key.budget_nano)
        ]
        refreshed: set[str] = set()
        while True:
            answer = await self._call(key.id, "admit", *limits, month, completion, tokens, size, cost_nano)
            verdict, wait_ms = answer[0].decode(), answer[1]
            if verdict == "refresh" and verdict in refreshed:
                raise Unavailable("The database is too slow to say what the key has spent. Try again.")
            if verdict in ("ok", "rpm", "tpm") or verdict in refreshed or len(refreshed) >= REFRESHES:
                return verdict, wait_ms, Admitted(*answer[2:])
            refreshed.add(verdict)
            if verdict in ("refresh", "budget"):
                await self._look_up_costs(key, month)
            else:
                await self._look_up_states(key.id, verdict)

    async def settle(self, key_id: str, completion: str, tokens: int) -> None:
        """A completion used so many tokens."""
        await self._call(key_id, "settle", completion, tokens)

    async def _look_up_states(self, key_id: str, limit: str) -> None:
        """Which of those that a key has open have begun, or ended."""
        keys = self._keys(key_id)
        name = keys.keylimit(key_id, "open" if limit == "concurrent" else "waiting")
        found = await self._oldest(keys.partition, name)
        states = await asyncio.gather(*(self._state(id) for id, _ in found))
        began: list[str] = []
        ended: list[str] = []
        for (id, since), state in zip(found, states, strict=True):
            if state is None:
                if time.time() * 1000 - since > ACCEPTING_MS:
                    ended.append(id)
            elif state.ended:
                ended.append(id)
            elif state is State.LEASED:
                began.append(id)
        if began:
            await self._call(key_id, "began", *began)
        if ended:
            await self._call(key_id, "ended", *ended)

    async def _look_up_costs(self, key: ApiKey, month: str) -> None:
        """What the books have by now of those that they did not have; of all the month where nothing is known of it."""
        assert self._books is not None
        keys = self._keys(key.id)
        begin = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        begin_ms, now_ms = int(begin.timestamp() * 1000), time.time() * 1000
        known = await self._redis.command(keys.partition, "HGET", keys.keylimit(key.id, "state"), "month")
        found = await self._oldest(keys.partition, keys.keylimit(key.id, "charged"))
        costs = await asyncio.to_thread(self._books.costs, [id for id, _ in found])
        for id, since in found:
            if id in costs:
                costs[id] = costs[id] if since >= begin_ms else 0
            elif now_ms - since > ACCEPTING_MS and await self._state(id) is None:
                costs[id] = 0  # it was never accepted, or its record is deleted
        if known is None or known.decode() != month:
            rest = [id for id, _ in found if id not in costs]
            spent = await asyncio.to_thread(self._books.spent, key.tenant, key.id, begin_ms, rest)
            await self._call(key.id, "spent", month, spent, *costs)
        else:
            await self._call(key.id, "spend", month, *(arg for pair in costs.items() for arg in pair))

    async def _oldest(self, partition: int, name: str) -> list[tuple[str, float]]:
        rows: list[Any] = await self._redis.command(partition, "ZRANGE", name, 0, LOOKED_UP - 1, "WITHSCORES")
        return [(id.decode(), float(score)) for id, score in rows]

    async def _state(self, completion: str) -> State | None:
        keys = self._redis.keys(completion)
        state, own = await self._redis.command(keys.partition, "HMGET", keys.gen(completion), "state", "own")
        if own is not None:  # it has left, and its generation goes on for others
            return State.CANCELLED
        return None if state is None else State(state.decode())

    def _keys(self, key_id: str) -> Keys:
        return self._redis.keys(key_id)

    async def _call(self, key_id: str, operation: str, *args: Arg, patience: float = PATIENCE) -> Any:
        keys = self._keys(key_id)
        return await self._redis.script(
            keys.partition,
            _KEYLIMIT,
            [keys.keylimit(key_id, part) for part in ("state", "window", "open", "waiting", "charged")],
            [self._window_ms, operation, *args],
            patience=patience,
        )


def _headers(key: ApiKey, left: Admitted) -> dict[str, str]:
    """OpenAI's, for the limits that the key has."""
    headers: dict[str, str] = {}
    for name, limit, remaining, ms in (
        ("requests", key.rpm, left.requests, left.requests_ms),
        ("tokens", key.tpm, left.tokens, left.tokens_ms),
    ):
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(remaining)
            headers[f"x-ratelimit-reset-{name}"] = f"{ms}ms" if ms < 1000 else f"{ms / 1000:g}s"
    return headers


def _reached(key: ApiKey, verdict: str, wait_ms: int, headers: dict[str, str]) -> LimitReached:
    kind, what = _NAMES.get(verdict, _NAMES["budget"])
    if kind == "insufficient_quota":
        now = datetime.now(UTC)
        first = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
        return LimitReached(
            f"The key's budget for this month is spent (limit: {key.budget_nano / 1e9:g}). "  # type: ignore[operator]
            "Raise it with `tailrace keys set`, or wait for the next month.",
            kind=kind,
            code="insufficient_quota",
            retry_after=(first - now).total_seconds(),
            headers=headers,
        )
    return LimitReached(
        f"The key's limit of {what} is reached (limit: {getattr(key, verdict)}). Try again later, or raise it with "
        "`tailrace keys set`.",
        kind=kind,
        code="rate_limit_exceeded",
        retry_after=wait_ms / 1000 if wait_ms else RETRY_SECONDS,
        headers=headers,
    )


class Ticket:
    """One request of a key that has limits; ``headers`` go out with its answer."""

    def __init__(self, limits: KeyLimits, key: ApiKey) -> None:
        self._limits = limits
        self._key = key
        self.headers: dict[str, str] = {}

    @property
    def budgeted(self) -> bool:
        """Whether what it may cost counts."""
        return self._key.budget_nano is not None

    async def admit(self, record: Accepted, *, tokens: int, size: int, cost_nano: int) -> Accepted:
        """The record that is to be accepted. Raises LimitReached and Unavailable."""
        self.headers = await self._limits.admit(
            self._key, record.id, tokens=tokens, size=size, cost_nano=cost_nano
        )
        return msgspec.structs.replace(record, counted=self._key.tpm is not None)
