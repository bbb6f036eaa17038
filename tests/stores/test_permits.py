"""The permits of a provider, on a real server: never more than the limits, nobody forgotten, tenants in turn."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar, cast

import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from schemas.providers import Provider
from stores.permits import Held, Permits, Taken
from tests.support.generations import Room, room
from tests.support.properties import examples

T = TypeVar("T")
HOUR_MS = 3_600_000
#: A reservation is given up after 5 s; a machine so slow that one gets near it begins anew.
FRESH_SECONDS = 3.0


def provider(**limits: float) -> Provider:
    return Provider.model_validate({"name": "limited", "base_url": "http://127.0.0.1:1/v1", **limits})


async def take(
    permits: Permits, limited: Provider, generation: str, tenant: str = "acme", **options: int | str
) -> Taken:
    given = {"queue": "interactive", "tokens": 1, "use_ms": HOUR_MS, "ttl_ms": HOUR_MS, "fence": "1:a"}
    return await permits.take(limited, generation, tenant=tenant, **(given | options))  # type: ignore[arg-type]


@dataclass
class Asked:
    """A generation in line, or with a permit (``fence`` '' where it is only reserved)."""

    queue: str
    tenant: str
    tokens: int
    fence: str = ""
    since: float = 0.0


class Line(RuleBasedStateMachine):
    """Whatever calls come in whatever order: who has a permit, who waits, and that no room is left to one who waits."""

    CONCURRENCY, SHARE, TOKENS = 4, 0.5, 60

    def __init__(self, space: Room, client: redis.Redis, runner: asyncio.Runner) -> None:
        super().__init__()
        self.client, self.runner = client, runner
        self.permits = Permits(space.redis, window_ms=HOUR_MS)
        self.provider = provider(
            max_concurrency=self.CONCURRENCY, bulk_share=self.SHARE, tokens_per_minute=self.TOKENS
        )
        self.number = 0

    @initialize()
    def anew(self) -> None:
        self.client.flushall()
        self.held: dict[str, Asked] = {}
        self.waiting: dict[str, Asked] = {}  # in the order in which they came
        self.spent: Counter[str] = Counter()

    def run(self, call: Awaitable[T]) -> T:
        async def made() -> T:
            return await call

        return self.runner.run(made())

    def woken(self, generations: list[str]) -> None:
        for generation in generations:
            asked = self.waiting.pop(generation)
            asked.since = time.monotonic()
            earlier = [
                g for g, a in self.waiting.items() if (a.tenant, a.queue) == (asked.tenant, asked.queue)
            ]
            assert all(int(g[1:]) > int(generation[1:]) for g in earlier), "a tenant's own are in order"
            self._granted(generation, asked)

    def _granted(self, generation: str, asked: Asked) -> None:
        assert self.room(asked), "no more than the limits"
        self.held[generation] = asked
        self.spent[asked.queue] += asked.tokens

    def room(self, asked: Asked) -> bool:
        bulk = asked.queue == "bulk"
        held = Counter(a.queue for a in self.held.values())
        spent = self.spent.total()
        return (
            held.total() < self.CONCURRENCY
            and not (bulk and held["bulk"] >= self.CONCURRENCY * self.SHARE)
            and (spent == 0 or spent + asked.tokens <= self.TOKENS)
            and not (
                bulk
                and self.spent["bulk"] > 0
                and self.spent["bulk"] + asked.tokens > self.TOKENS * self.SHARE
            )
        )

    @rule(
        queue=st.sampled_from(["interactive", "bulk"]),
        tenant=st.sampled_from("abc"),
        tokens=st.integers(0, 20),
    )
    def ask(self, queue: str, tenant: str, tokens: int) -> None:
        self.number += 1
        generation, asked = f"g{self.number}", Asked(queue, tenant, tokens, "1:a")
        taken = self.run(take(self.permits, self.provider, generation, tenant, queue=queue, tokens=tokens))
        if taken.granted:
            assert not taken.woken
            self._granted(generation, asked)
        else:
            asked.fence = ""
            before = [a for a in self.waiting.values() if a.queue in ("interactive", queue)]
            assert before or not self.room(asked), "who waits has a reason to"
            self.waiting[generation] = asked
            self.woken(taken.woken)

    @precondition(lambda self: self.held or self.waiting)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        """Who has a permit reserved takes it; who waits goes on waiting; an answer that was lost is given again."""
        generation = data.draw(st.sampled_from(sorted(self.held | self.waiting)))
        asked = (self.held | self.waiting)[generation]
        fence = asked.fence or "1:b"
        taken = self.run(
            take(
                self.permits,
                self.provider,
                generation,
                asked.tenant,
                queue=asked.queue,
                tokens=asked.tokens,
                fence=fence,
            )
        )
        assert taken.granted == (generation in self.held)
        asked.fence = fence if taken.granted else ""

    @precondition(lambda self: any(asked.fence for asked in self.held.values()))
    @rule(data=st.data(), used=st.integers(-1, 30))
    def release(self, data: st.DataObject, used: int) -> None:
        generation = data.draw(st.sampled_from(sorted(g for g, a in self.held.items() if a.fence)))
        asked = self.held.pop(generation)
        if used >= 0:
            self.spent[asked.queue] += used - asked.tokens
        call = self.permits.release(self.provider, Held(generation, asked.fence), "ok", tokens=used)
        self.woken(self.run(call))

    @precondition(lambda self: any(asked.fence for asked in self.held.values()))
    @rule(data=st.data())
    def unused(self, data: st.DataObject) -> None:
        generation = data.draw(st.sampled_from(sorted(g for g, a in self.held.items() if a.fence)))
        asked = self.held.pop(generation)
        self.spent[asked.queue] -= asked.tokens
        self.woken(self.run(self.permits.release(self.provider, Held(generation, asked.fence), "unused")))

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """A reservation whose generation is no more; a permit in use stays."""
        generation = data.draw(st.sampled_from([*sorted(self.held), "nobody"]))
        asked = self.held.get(generation)
        if asked is not None and not asked.fence:
            del self.held[generation]
            self.spent[asked.queue] -= asked.tokens
        self.woken(self.run(self.permits.give_back(self.provider, generation)))

    @precondition(lambda self: any(asked.fence for asked in self.held.values()))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """A worker is killed: its permit runs out, and what it may have used stays in the window."""
        generation = data.draw(st.sampled_from(sorted(g for g, a in self.held.items() if a.fence)))
        asked = self.held.pop(generation)
        call = self.permits.renew(self.provider, [Held(generation, asked.fence)], use_ms=HOUR_MS, ttl_ms=1)
        assert self.run(call) == 1
        time.sleep(0.003)
        self.woken(self.run(self.permits.deal(self.provider)))

    @precondition(lambda self: any(asked.fence for asked in self.held.values()))
    @rule(data=st.data())
    def follow(self, data: st.DataObject) -> None:
        """The next attempt, after a worker was lost: its permit is not counted twice, and it is first in line."""
        generation = data.draw(st.sampled_from(sorted(g for g, a in self.held.items() if a.fence)))
        asked = self.held.pop(generation)
        fence = asked.fence + "+"
        fits = self.room(asked)
        taken = self.run(
            take(
                self.permits,
                self.provider,
                generation,
                asked.tenant,
                queue=asked.queue,
                tokens=asked.tokens,
                fence=fence,
            )
        )
        assert taken.granted == fits
        if fits:
            asked.fence = fence
            self._granted(generation, asked)
            return
        asked.fence = ""
        self.waiting = {generation: asked, **self.waiting}
        self.woken(taken.woken)

    @invariant()
    def as_the_model_says(self) -> None:
        held = getattr(self, "held", None)
        if held is None:
            return
        if any(not a.fence and time.monotonic() - a.since > FRESH_SECONDS for a in self.held.values()):
            self.anew()
        state = self.run(self.permits.look(self.provider))
        for at, queue in enumerate(("interactive", "bulk")):
            assert state.held[at] == sum(a.queue == queue for a in self.held.values())
            assert state.waiting[at] == sum(a.queue == queue for a in self.waiting.values())
            assert state.tokens[at] == self.spent[queue]
        assert sum(state.held) <= self.CONCURRENCY
        assert state.held[1] <= self.CONCURRENCY * self.SHARE
        for queue in ("interactive", "bulk"):
            line = [a for a in self.waiting.values() if a.queue == queue]
            if line:
                assert not all(self.room(asked) for asked in line), "room is given to those in line"
                break


def test_permits_in_any_order(redis_url: str, redis_client: redis.Redis) -> None:
    """Against a model, for any order of calls of workers that take, release, repeat, and die."""
    with asyncio.Runner() as runner:
        context = room(redis_url)
        space = runner.run(context.__aenter__())
        try:
            run_state_machine_as_test(
                cast("type[Line]", lambda: Line(space, redis_client, runner)), settings=examples(60, steps=40)
            )
        finally:
            redis_client.flushall()
            runner.run(context.__aexit__(None, None, None))


async def test_one_tenants_hundred_thousand_leave_another_its_turn(space: Room) -> None:
    """A tenant that comes late with ten gets every other permit."""
    permits, limited = Permits(space.redis, window_ms=HOUR_MS), provider(max_concurrency=1)
    for number in range(2_000):
        await take(permits, limited, f"big{number}", "big")
    for number in range(10):
        await take(permits, limited, f"small{number}", "small")
    served, running = [], "big0"
    for _ in range(22):
        (running,) = await permits.release(limited, Held(running, "1:a"), "ok")
        assert (await take(permits, limited, running)).granted
        served.append(running)
    assert sum(name.startswith("small") for name in served) == 10


async def test_bulk_leaves_interactive_its_share(space: Room) -> None:
    permits = Permits(space.redis, window_ms=HOUR_MS)
    limited = provider(max_concurrency=10, bulk_share=0.8)
    bulk = [await take(permits, limited, f"b{n}", queue="bulk") for n in range(20)]
    assert sum(taken.granted for taken in bulk) == 8
    interactive = [await take(permits, limited, f"i{n}") for n in range(5)]
    assert [taken.granted for taken in interactive] == [True, True, False, False, False]
    assert await permits.release(limited, Held("b0", "1:a"), "ok") == ["i2"], "what is watched goes first"


async def test_no_window_has_more_than_the_limit(space: Room) -> None:
    """Callers that call late, say so or never do: what the provider sees stays within the limit in any window."""
    window, limit, calls = 0.2, 5, list[float]()
    permits, limited = Permits(space.redis, window_ms=int(window * 1000)), provider(requests_per_minute=limit)
    until = time.monotonic() + 3.0

    async def caller(number: int) -> None:
        turn = 0
        while time.monotonic() < until:
            turn += 1
            generation, asked = f"{number}-{turn}", time.monotonic()
            taken = await take(permits, limited, generation, use_ms=60, ttl_ms=60)
            while not taken.granted:
                await asyncio.sleep(0.005)
                await permits.deal(limited)
                asked = time.monotonic()
                taken = await take(permits, limited, generation, use_ms=60, ttl_ms=60)
                if time.monotonic() > until + 1:
                    return
            await asyncio.sleep(random.uniform(0, 0.05))
            if time.monotonic() - asked > 0.055:  # as a worker does that stood still
                await permits.release(limited, Held(generation, "1:a"), "unused")
                continue
            calls.append(time.monotonic())
            answered = time.monotonic()
            if random.random() < 0.7:  # else the worker is killed
                await asyncio.sleep(random.uniform(0, 0.02))
                ago = int((time.monotonic() - answered) * 1000)
                await permits.release(limited, Held(generation, "1:a", ago), "ok")

    await asyncio.gather(*(caller(number) for number in range(12)))
    calls.sort()
    for at, first in enumerate(calls):
        assert sum(call - first < window for call in calls[at:]) <= limit
    assert len(calls) > 3 * limit


async def test_a_provider_that_is_overloaded_is_slowed_and_probed(space: Room) -> None:
    """Half the calls at once, none before it says, and back up by small steps."""
    permits, limited = Permits(space.redis, window_ms=HOUR_MS), provider(max_concurrency=8)
    for number in range(8):
        assert (await take(permits, limited, f"g{number}")).granted
    await permits.release(limited, Held("g0", "1:a"), "slow", retry_after_ms=300)
    await permits.release(limited, Held("g1", "1:a"), "slow", retry_after_ms=200)
    state = await permits.look(limited)
    assert state.factor == 0.5, "those that were refused together count once"
    assert 200 < state.pause_ms <= 300
    for number in range(2, 8):
        await permits.release(limited, Held(f"g{number}", "1:a"), "other")
    assert not (await take(permits, limited, "early")).granted
    await asyncio.sleep(state.pause_ms / 1000 + 0.01)
    assert await permits.deal(limited) == ["early"]
    granted = [(await take(permits, limited, f"h{number}")).granted for number in range(8)]
    assert granted.count(True) == 3
    await asyncio.sleep(1.0)
    await permits.release(limited, Held("h0", "1:a"), "ok")
    assert (await permits.look(limited)).factor == 0.55
