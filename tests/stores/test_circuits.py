"""What workers agree on about a provider that doesn't answer."""

from __future__ import annotations

import redis

from schemas.keys import Keys
from schemas.providers import Circuit
from stores.circuits import CircuitState, CircuitStore
from tests.support.generations import Room, listen
from tests.support.waiting import until

KEYS = Keys(0)
LONG = Circuit(failures=3, pause=600)
SHORT = Circuit(failures=1, pause=0.05)


async def broken(store: CircuitStore, times: int, policy: Circuit = LONG) -> CircuitState:
    state = CircuitState(0, "")
    for number in range(times):
        state = await store.failed("p", policy, token=f"call-{number}", reason="no route")
    return state


async def test_it_opens_after_failures_in_a_row(space: Room) -> None:
    """And only then; what a provider answers in between starts the count again."""
    store = CircuitStore(space.redis)
    assert (await broken(store, 2)).wait_ms is None
    await store.answered("p")
    assert await store.states(["p"]) == {}
    assert (await broken(store, 2)).wait_ms is None
    state = await broken(store, 1)
    assert state.failures == 3
    assert state.wait_ms is not None
    assert 590_000 < state.wait_ms <= 600_000
    assert await store.probe("p", LONG, token="me", hold_ms=1000) > 590_000
    assert await store.probe("other", LONG, token="me", hold_ms=1000) == 0
    (known,) = (await store.states(["p", "other"])).values()
    assert (known.failures, known.reason, known.wait_ms is not None) == (3, "no route", True)


async def test_never(space: Room) -> None:
    assert (await broken(CircuitStore(space.redis), 50, Circuit(failures=0))).wait_ms is None


async def test_one_probe_at_a_time(space: Room) -> None:
    """After the pause one call goes through: until it fails, is answered, is given back, or its worker is heard of no
    more."""
    store = CircuitStore(space.redis)

    async def due() -> bool:
        return (await store.states(["p"]))["p"].wait_ms == 0

    await broken(store, 1, SHORT)
    await until(due)
    assert await store.probe("p", SHORT, token="a", hold_ms=60_000) == 0
    assert await store.probe("p", SHORT, token="b", hold_ms=60_000) > 50_000
    assert await store.probe("p", SHORT, token="a", hold_ms=60_000) == 0, "it keeps it"
    await store.probe("p", SHORT, token="b", hold_ms=0)
    assert await store.probe("p", SHORT, token="b", hold_ms=60_000) > 0, "nobody gives another's back"
    await store.probe("p", SHORT, token="a", hold_ms=0)
    assert await store.probe("p", SHORT, token="b", hold_ms=1) == 0
    await until(due)
    assert await store.probe("p", SHORT, token="c", hold_ms=60_000) == 0, "b is heard of no more"
    slow = Circuit(failures=1, pause=600)
    failed = await store.failed("p", slow, token="c", reason="again")
    assert failed.wait_ms is not None
    assert failed.wait_ms > 590_000


async def test_late_failures_don_t_prolong_it(space: Room) -> None:
    """Calls that began before it opened fail one by one; the pause counts from its opening."""
    store = CircuitStore(space.redis)
    opened = await broken(store, 3)
    later = await broken(store, 4)
    assert opened.wait_ms is not None
    assert later.wait_ms is not None
    assert later.wait_ms <= opened.wait_ms


async def test_changes_are_told_and_nothing_stays_for_ever(space: Room, redis_client: redis.Redis) -> None:
    store = CircuitStore(space.redis)
    told = listen(redis_client, KEYS.control)
    await broken(store, 3)
    assert told() == ["circuits", "circuits"], "the first failure, and the opening"
    assert int(redis_client.pttl(KEYS.circuit("p"))) > 600_000
    await store.answered("p")
    await store.answered("p")
    assert told() == ["circuits"]
    assert not redis_client.exists(KEYS.circuit("p"))


async def test_a_rest(space: Room) -> None:
    """The longest one that was asked for counts."""
    store = CircuitStore(space.redis)
    await store.rest("p", LONG, 20)
    await store.rest("p", LONG, 5)
    (state,) = (await store.states(["p"])).values()
    assert (state.failures, state.wait_ms) == (0, None)
    assert 15_000 < state.rest_ms <= 20_000
