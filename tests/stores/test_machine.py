"""The life of generations under any interleaving of two workers, a reaper, callers who cancel, and the ledger's leader.

A small model says what each script must answer and what Redis must hold after it; hypothesis looks for an order of
calls in which a real server differs. Calls are atomic on the server, so their order is all that interleaving can vary;
and a crash between two that belong together is an order in which the second one never comes. Redis itself may be set
back to an earlier moment, as by the crash of its host.
"""

from __future__ import annotations

import asyncio
from typing import cast

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

from schemas.states import State
from tests.support.generations import room
from tests.support.holds import agrees, has_one_record_of_each_fact
from tests.support.lives import ENDS, Hand, Life
from tests.support.properties import examples
from tests.support.world import WORKERS, World


class Lives(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def teardown(self) -> None:
        self.world.close()

    @property
    def lives(self) -> list[Life]:
        return self.world.lives

    @property
    def hands(self) -> dict[tuple[str, str], Hand]:
        return self.world.hands

    def pick(self, data: st.DataObject) -> Life:
        """Any generation, and rather one that is not over."""
        return data.draw(st.sampled_from([life for life in self.lives if not life.ended] * 4 + self.lives))

    def hand(self, data: st.DataObject) -> tuple[str, Life, Hand]:
        """A worker, and what it believes that it has; rather one that is right."""
        hands = [(w, life) for w in WORKERS for life in self.lives if (w, life.id) in self.hands]
        right = [(w, life) for w, life in hands if life.held_by(self.hands[w, life.id].fence)]
        worker, life = data.draw(st.sampled_from(right * 4 + hands))
        return worker, life, self.hands[worker, life.id]

    # -- Callers

    @initialize()
    def first(self) -> None:
        self.accept(False)

    @precondition(lambda self: sum(not life.ended for life in self.lives) < 2)
    @rule(deadline=st.booleans())
    def accept(self, deadline: bool) -> None:
        self.world.accepts(deadline)

    @rule(data=st.data(), again=st.booleans())
    def accepted_already(self, data: st.DataObject, again: bool) -> None:
        """It is accepted again, or its message is out."""
        self.world.accepts_again(self.pick(data)) if again else self.world.publishes(self.pick(data))

    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        """Another completion shares it, if it can."""
        self.world.joins(self.pick(data))

    # -- Workers

    @rule(data=st.data())
    def stream(self, data: st.DataObject) -> None:
        self.world.streams(data, self.pick(data))

    @rule(data=st.data(), how=st.sampled_from(["lost", "left", "parked"]), skip=st.booleans())
    def hand_on(self, data: st.DataObject, how: str, skip: bool) -> None:
        """An attempt is over, and the next one publishes."""
        life = self.pick(data)
        found = self.world.holder(data, life)
        if found is not None and how == "lost":
            self.world.expires(life)
            self.world.reaps(life, life.attempt, skip=skip)
        elif found is not None:
            self.world.leaves(data, life, found[1], 0, parks=how == "parked", failed=skip)
        self.world.streams(data, life)

    @rule(data=st.data(), worker=st.sampled_from(WORKERS), restart=st.booleans())
    def claim(self, data: st.DataObject, worker: str, restart: bool) -> None:
        queued = [life for life in self.lives if life.state is State.QUEUED]
        self.world.claims(worker, data.draw(st.sampled_from(queued * 4 + self.lives)), restart)

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), restart=st.booleans(), skip=st.booleans())
    def take_over(self, data: st.DataObject, restart: bool, skip: bool) -> None:
        """A lease runs out, and the other worker gets the work while the first still believes that it has it."""
        worker, life, _ = self.hand(data)
        self.world.expires(life)
        self.world.reaps(life, life.attempt, skip=skip)
        self.world.claims(next(other for other in WORKERS if other != worker), life, restart)

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted({worker for worker, _ in self.hands})))
        mine = [(life, self.hands[worker, life.id]) for life in self.lives if (worker, life.id) in self.hands]
        chosen = data.draw(
            st.lists(st.sampled_from(mine), min_size=1, max_size=2, unique_by=lambda c: c[0].id)
        )
        self.world.appends(data, chosen)

    @precondition(lambda self: any(hand.restart for hand in self.hands.values()))
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """Before it has written anything, or again because the answer was lost."""
        waiting = [(w, life) for w in WORKERS for life in self.lives if (w, life.id) in self.hands]
        worker, life = data.draw(st.sampled_from([c for c in waiting if self.hands[c[0], c[1].id].restart]))
        self.world.restarts(data, life, self.hands[worker, life.id])

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: str) -> None:
        self.world.renews(worker)

    @precondition(lambda self: any(hand.next for hand in self.hands.values()))
    @rule(data=st.data(), state=st.sampled_from(ENDS), count=st.integers(0, 2))
    def end(self, data: st.DataObject, state: State, count: int) -> None:
        _, life, hand = self.hand(data)
        self.world.finishes(data, life, hand, count, state)

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), count=st.integers(0, 2), parks=st.booleans(), failed=st.booleans())
    def leave(self, data: st.DataObject, count: int, parks: bool, failed: bool) -> None:
        _, life, hand = self.hand(data)
        self.world.leaves(data, life, hand, count, parks=parks, failed=failed)

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def wait_for_a_permit(self, data: st.DataObject) -> None:
        """What has published nothing may still have asked nobody."""
        _, life, hand = self.hand(data)
        if hand.next == hand.start and life.restarted != hand.attempt:
            self.world.waits(life, hand)

    @precondition(lambda self: any(not life.next and not life.skip for life in self.lives))
    @rule(data=st.data(), called=st.booleans(), back=st.booleans())
    def fail_over(self, data: st.DataObject, called: bool, back: bool) -> None:
        young = [life for life in self.lives if not life.next and not life.skip]
        life = data.draw(st.sampled_from(young))
        found = self.world.holder(data, life)
        if found is not None:
            self.world.fails_over(found[0], life, found[1], called=called, back=back)

    @precondition(lambda self: self.world.to_report)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        self.world.reports(
            data.draw(st.sampled_from([life for life in self.lives if life.id in self.world.to_report]))
        )

    # -- Time, and those who watch it

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        self.world.expires(self.pick(data))

    @rule(data=st.data(), behind=st.sampled_from([0, 0, 1]), skip=st.booleans())
    def reap(self, data: st.DataObject, behind: int, skip: bool) -> None:
        life = self.pick(data)
        self.world.reaps(life, life.attempt - behind, skip=skip)

    @rule(data=st.data(), how=st.sampled_from(["cancel", "deadline", "lost", "lost before"]))
    def end_from_outside(self, data: st.DataObject, how: str) -> None:
        """Most of what is young lives on: much that can happen wants more than one attempt."""
        life = self.pick(data)
        who = data.draw(st.sampled_from([None, *life.joined]), "who")
        if (
            len(life.sharers) < 2
            and not life.past
            and not life.ended
            and data.draw(st.integers(0, 9), "young") < 9
        ):
            return
        match how:
            case "cancel":
                self.world.cancels(life, State.CANCELLED, who)
            case "deadline":
                self.world.cancels(life, State.FAILED, who)
            case _:
                self.world.ends_what_was_lost(life, behind=how == "lost before")

    @rule(data=st.data(), lost=st.sampled_from([-1, 0, 0, 1]))
    def requeue(self, data: st.DataObject, lost: int) -> None:
        """Parked work is due; or (``lost``) a message is missed. Its next one is put by ``publish``, or never."""
        life = self.pick(data)
        self.world.requeues(life, life.seq + lost if data.draw(st.booleans(), "message") else 0)

    @rule(leader=st.booleans(), count=st.integers(1, 4))
    def settle(self, leader: bool, count: int) -> None:
        self.world.settles(leader=leader, count=count)

    @precondition(lambda self: self.world.kept is None)
    @rule()
    def keep(self) -> None:
        self.world.keep()

    @rule(data=st.data(), soon=st.booleans())
    def crash_of_the_host(self, data: st.DataObject, soon: bool) -> None:
        """Long after what Redis comes back with, or soon."""
        if soon or self.world.kept is None:
            self.world.keep()
            self.world.streams(data, self.pick(data))
        self.world.set_back()

    @invariant()
    def holds(self) -> None:
        agrees(self.world)
        has_one_record_of_each_fact(self.world)


def test_any_interleaving(redis_url: str, redis_client: redis.Redis) -> None:
    """Whatever the order of calls: one end, one record of it with every attempt, no index twice, nothing from a worker
    that lost, and no reader sees two attempts spliced.
    """
    with asyncio.Runner() as runner:
        opening = room(redis_url)
        space = runner.run(opening.__aenter__())
        try:

            def make() -> Lives:
                return Lives(World(space, redis_client, runner))

            run_state_machine_as_test(cast("type[Lives]", make), settings=examples(40, steps=50))
        finally:
            runner.run(opening.__aexit__(None, None, None))
