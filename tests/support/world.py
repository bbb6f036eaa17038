"""Generations on a real server beside a model: each call is made, and has to answer and leave what the model says."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, TypeVar

import redis
from hypothesis import strategies as st

from schemas.keys import Keys
from schemas.records import Accepted, Departed, Ended, Record, decode_record
from schemas.states import State
from stores.flights import Flights
from stores.outcomes import Append, Batch, Claim, EndResult, Fence, Left, NotClaimed, Renewal
from stores.scripts import SKIP
from tests.support.generations import (
    CRASHES,
    HEAD,
    LOST,
    Room,
    accepted,
    ended,
    entries,
    keep,
    past,
    set_back,
)
from tests.support.leaks import leaks
from tests.support.lives import Hand, Life, texts_of

T = TypeVar("T")
KEYS = Keys(0)
WORKERS = ("one", "two")
HOUR_MS = 3_600_000


class World:
    """``data`` draws what is left open: which worker, how many chunks, whether an answer is lost."""

    def __init__(self, space: Room, client: redis.Redis, runner: asyncio.Runner) -> None:
        self.space, self.client, self.runner = space, client, runner
        client.flushall()
        self.lives: list[Life] = []
        self.hands: dict[tuple[str, str], Hand] = {}  # worker, generation
        self.unsettled: list[tuple[type, str]] = []  # the ledger, oldest first
        self.records: list[Record] = []  # all that left the ledger
        self.seq = 0
        self.flights = Flights(space.redis)
        self.joiners: dict[str, Accepted] = {}
        self.kept: Any = None
        #: What no rollback takes back: what readers were shown, by index, and what was said on the channels.
        self.shown: dict[str, dict[int, set[str]]] = {}
        self.said: dict[str, list[str]] = {}
        #: Workers that will find that Redis has lost their claim; and what ended before they did.
        self.to_report: dict[str, list[Hand]] = {}
        self.unreported: set[str] = set()
        self.channel: Any = client.pubsub()
        self.heard: list[dict[str, Any]] = []

    def close(self) -> None:
        try:
            while message := self.channel.get_sharded_message(timeout=0.02):
                self.heard.append(message)
            for generation, said in self.said.items():
                channel = KEYS.channel(generation)
                assert [
                    m["data"] for m in self.heard if m["channel"] == channel and m["type"] == "smessage"
                ] == said
            assert leaks(self.client) == []
        finally:
            self.channel.close()

    def do(self, call: Awaitable[T]) -> T:
        async def wait() -> T:
            return await call

        return self.runner.run(wait())

    def writes(self, life: Life, sent: Batch) -> None:
        """Chunks that the server must have taken."""
        if life.takes(sent.first, sent.count) == "new":
            items = sent.items.decode().split("\n")
            for index, item in enumerate(items, sent.first):
                self.shown[life.id].setdefault(index, set()).add(item)
            self.said[life.id] += life.append(items, head=bool(sent.head))

    def ends(self, life: Life, state: State, entry: str) -> None:
        self.said[life.id] += life.end(state, entry)
        self.unsettled.append((Ended, life.id))
        if self.to_report.pop(life.id, None):
            self.unreported.add(life.id)

    # -- Callers

    def accepts(self, deadline: bool) -> None:
        record = accepted()
        self.channel.ssubscribe(KEYS.channel(record.id))
        timeout = HOUR_MS if deadline else 0
        result = self.do(self.space.scripts.accept(record, b"{}", timeout_ms=timeout))
        self.seq += 1
        assert (result.fresh, result.seq) == (True, self.seq)
        self.lives.append(Life(record.id, result.seq, deadline))
        self.shown[record.id], self.said[record.id] = {}, []
        self.unsettled.append((Accepted, record.id))

    def accepts_again(self, life: Life) -> None:
        result = self.do(self.space.scripts.accept(accepted(life.id), b"other", timeout_ms=1))
        assert (result.fresh, result.seq) == (False, life.seq)

    def publishes(self, life: Life) -> None:
        """A message is out."""
        self.do(self.space.scripts.published(life.id))
        life.in_outbox = False

    def joins(self, life: Life) -> None:
        """Another completion wants its answer."""
        record = accepted(generation=life.id)
        answer = self.do(self.flights.join(life.id, record.id))
        if life.switched:
            assert answer.how == "ended"
        elif life.ended:
            assert answer.how == ("completed" if life.whole else "ended")
        else:
            assert answer.how == ("ended" if life.cancel else "joined")
        if answer.how in ("joined", "completed"):
            again = self.do(self.flights.join(life.id, record.id))
            assert again == answer
            life.joined[record.id] = None
            self.joiners[record.id] = record

    def cancels(self, life: Life, state: State, who: str | None = None) -> None:
        """A caller cancels, or a deadline passes."""
        record = None if who is None else self.joiners[who]
        answer = self.do(self.space.scripts.cancel(ended(life.id, state), "interactive", who=record))
        if life.own if who is None else life.joined[who]:
            assert answer == "left"
        elif not life.ended and len(life.sharers) > 1:
            assert answer == "left"
            entry = entries(self.client, KEYS.log(life.id))[-1]
            self.said[life.id] += life.left_by(who or life.id, state, entry)
            self.unsettled.append((Departed, life.id))
        elif life.ended:
            assert answer == (state if life.state is state else "ended")
        elif life.state is State.LEASED:
            assert answer == ("cancelling" if state is State.CANCELLED else "leased")
            life.cancel = life.cancel or state is State.CANCELLED
        else:
            assert answer == state
            self.ends(life, state, f'{{"state":"{state}"}}')

    # -- Workers

    def holder(self, data: st.DataObject, life: Life) -> tuple[str, Hand] | None:
        """The worker that has a generation, after what it takes that one has it."""
        if life.state is State.PARKED:
            self.expires(life)
            self.requeues(life, 0)
        if life.state is State.QUEUED:
            self.claims(
                data.draw(st.sampled_from(WORKERS), "worker"), life, data.draw(st.booleans(), "restart")
            )
        for worker in WORKERS:
            hand = self.hands.get((worker, life.id))
            if hand is not None and life.held_by(hand.fence):
                return worker, hand
        return None

    def streams(self, data: st.DataObject, life: Life) -> None:
        """A worker goes on with a generation."""
        found = self.holder(data, life)
        if found is not None:
            _, hand = found
            if hand.restart:
                self.restarts(data, life, hand)
            self.appends(data, [(life, hand)])

    def claims(self, worker: str, life: Life, restart: bool) -> None:
        answer = self.do(
            self.space.scripts.claim(
                life.id, queue="interactive", worker=worker, lease_ms=HOUR_MS, seq=life.seq
            )
        )
        if life.state is not State.QUEUED:
            reasons = {State.LEASED: "held", State.PARKED: "parked"}
            assert answer == NotClaimed(reasons.get(life.state, "ended"))
            return
        assert isinstance(answer, Claim)
        life.claim(answer.fence)
        assert (answer.attempt, answer.next, answer.base) == (life.attempt, life.next, life.base)
        assert (answer.request, answer.tries, answer.skip) == (b"{}", life.tries, life.skip)
        assert bool(answer.head) is life.head
        fresh = life.next == life.base
        self.hands[worker, life.id] = Hand(
            answer.fence, life.attempt, life.next, life.next, fresh, life.skip or (restart and not fresh)
        )
        if not fresh and not restart:
            life.continued.add(answer.fence)

    def drawn(self, data: st.DataObject, hand: Hand, count: int) -> Batch:
        """A worker's next chunks; also some that it has sent already, or too late ones."""
        offset = data.draw(st.sampled_from([0, 0, 0, 0, 0, -1, -2, 1]), "offset") if count else 0
        first = max(hand.start, hand.next + offset)
        head = HEAD if hand.head and first == hand.start and count else b""
        return Batch(first, count, "\n".join(hand.items(first, count)).encode(), head)

    def told(self, data: st.DataObject, hand: Hand, sent: Batch) -> None:
        """The answer to an append comes, or is lost: then the same is sent again."""
        if data.draw(st.sampled_from([True, True, False]), "answered"):
            hand.next = max(hand.next, sent.first + sent.count)

    def appends(self, data: st.DataObject, chosen: list[tuple[Life, Hand]]) -> None:
        calls: list[tuple[str, Fence, Batch]] = []
        expected: list[Append] = []
        for life, hand in chosen:
            if hand.restart and not life.skip:
                continue  # it knows that it has to restart, and Redis does not
            sent = self.drawn(data, hand, data.draw(st.integers(1, 3), "count"))
            calls.append((life.id, hand.fence, sent))
            if not life.held_by(hand.fence):
                expected.append(Append.STALE)
            elif life.takes(sent.first, sent.count) == "gap":
                expected.append(Append.GAP)
            else:
                expected.append(Append.CANCEL_ASKED if life.cancel else Append.OK)
                self.writes(life, sent)
                self.told(data, hand, sent)
        assert self.do(self.space.scripts.append_all(0, calls)) == expected

    def restarts(self, data: st.DataObject, life: Life, hand: Hand) -> None:
        base = self.do(self.space.scripts.restart(life.id, hand.fence))
        if base is None or not life.held_by(hand.fence):
            assert base is None
            assert not life.held_by(hand.fence)
            return
        skipped, next_index = life.skip, life.next
        said = life.restart()
        self.said[life.id] += said
        assert base == life.base
        if said:  # it had not restarted before
            assert base == next_index + (SKIP if skipped else 0)
        hand.start = hand.next = base
        hand.head = True
        hand.restart = data.draw(st.sampled_from([False, False, True]), "lost")

    def renews(self, worker: str) -> None:
        mine = [life for life in self.lives if (worker, life.id) in self.hands][-2:]
        held: dict[str, Fence] = {life.id: self.hands[worker, life.id].fence for life in mine}
        answers = self.do(self.space.scripts.renew(0, held, lease_ms=HOUR_MS))
        for life in mine:
            if life.held_by(held[life.id]):
                life.live = True
                assert answers[life.id] is (Renewal.CANCEL_ASKED if life.cancel else Renewal.OK)
            else:
                assert answers[life.id] is Renewal.LOST

    def finishes(self, data: st.DataObject, life: Life, hand: Hand, count: int, state: State) -> None:
        """A worker ends a generation."""
        sent = self.drawn(data, hand, 0 if hand.restart else count)
        reasons = ["stop"] if state is State.COMPLETED else []
        last = ended(life.id, state, finish_reasons=reasons)
        answer = self.do(self.space.scripts.end(last, hand.fence, sent))
        if not life.held_by(hand.fence):
            again = life.named(hand.fence) and life.state is state
            assert answer is (EndResult.REPEATED if again else EndResult.STALE)
        elif life.takes(sent.first, sent.count) == "gap" or (life.skip and state is State.COMPLETED):
            assert answer is EndResult.GAP
        else:
            assert answer is EndResult.ENDED
            self.writes(life, sent)
            self.ends(life, state, f'{{"state":"{state}"}}')

    def leaves(
        self, data: st.DataObject, life: Life, hand: Hand, count: int, *, parks: bool, failed: bool
    ) -> None:
        """A worker is stopped, or its provider failed; where Redis has lost chunks of its own, it says so."""
        sent = self.drawn(data, hand, 0 if hand.restart else count)
        how = "failed" if failed else "released"
        options: dict[str, Any] = {
            "crashes": CRASHES,
            "fence": hand.fence,
            "pause_ms": HOUR_MS if parks else 0,
            "failed": failed,
        }
        record = past(hand.attempt, how)
        answer = self.do(self.space.scripts.leave(life.id, record, sent, **options))
        if not life.held_by(hand.fence):
            waits = not life.ended and life.named(hand.fence)
            assert answer is (Left.REPEATED if waits else Left.STALE)
            return
        if life.cancel:
            assert answer is Left.CANCEL_ASKED
            return
        if life.takes(sent.first, sent.count) == "gap":
            assert answer is Left.GAP
            nothing = Batch(0, 0, b"")
            answer = self.do(self.space.scripts.leave(life.id, record, nothing, skip=True, **options))
            life.skip = True
        else:
            self.writes(life, sent)
        assert answer is Left.LEFT
        life.tries += failed
        suspect = life.crashes >= CRASHES.suspicious
        life.wait("parked" if parks else "suspects" if suspect else "recovery", how)

    def waits(self, life: Life, hand: Hand) -> None:
        """There is no permit for the provider that a worker would ask."""
        call = self.space.scripts.leave(
            life.id, None, Batch(hand.next, 0, b""), crashes=CRASHES, fence=hand.fence, pause_ms=HOUR_MS
        )
        answer = self.do(call)
        if not life.held_by(hand.fence):
            same = life.fence.partition(":")[2] == hand.fence.partition(":")[2]
            waits = (same and life.state is State.PARKED) or (not life.ended and life.named(hand.fence))
            assert answer is (Left.REPEATED if waits else Left.STALE)
        elif life.cancel:
            assert answer is Left.CANCEL_ASKED
        elif life.takes(hand.next, 0) == "gap":
            assert answer is Left.GAP
        else:
            assert answer is Left.LEFT
            life.wait_unasked()

    def fails_over(self, worker: str, life: Life, hand: Hand, *, called: bool, back: bool) -> None:
        """A worker turns to another provider, with nothing published; ``called``: the one before failed; ``back``: to
        the first one."""
        target = None if back else ("other", "m")
        number, _, word = hand.fence.partition(":")
        claim = Claim(life.id, int(number), 0, 0, 0, b"", b"", call=word)
        record = past(hand.attempt, "failed") if called else None
        call = secrets.token_hex(8)
        for _ in range(2):  # its answer was lost
            answer = self.do(self.space.scripts.failover(claim, target, record, call=call))
            if not life.held_by(hand.fence):
                assert answer is None
                return
            assert answer is not None
            if life.cancel:
                assert answer.attempt == 0
                return
            assert answer.attempt == life.attempt + called
            assert answer.target == target
        life.switched = not back
        if called:
            life.fail_over(f"{life.attempt + 1}:{call}")
            self.hands[worker, life.id] = replace(hand, fence=life.fence, attempt=life.attempt)

    def reports(self, life: Life) -> None:
        """A worker finds that its claim is not the one that Redis knows."""
        hand = self.to_report[life.id].pop()
        if not self.to_report[life.id]:
            del self.to_report[life.id]
        behind = hand.attempt > life.attempt or (
            hand.attempt == life.attempt and (hand.fence != life.fence or hand.next > life.next)
        )
        behind = behind and hand.next > 0 and not life.ended
        assert self.do(self.space.scripts.setback(life.id, hand.fence, hand.next)) is behind
        life.skip = life.skip or behind
        if not behind:
            self.unreported.add(life.id)

    # -- Time, and those who watch it

    def expires(self, life: Life) -> None:
        """A lease runs out, or what is parked is due."""
        self.client.zadd(KEYS.lease, {life.id: 1}, xx=True)
        self.client.zadd(KEYS.parked, {life.id: 1}, xx=True)
        life.live, life.due = False, life.state is State.PARKED

    def reaps(self, life: Life, attempt: int, *, skip: bool) -> None:
        """As the reaper does, with the end of what it may not hand on; or it dies between the two."""
        skip = skip or life.shaken
        call = self.space.scripts.reap(life.id, attempt, past(attempt), crashes=CRASHES, skip=skip)
        answer = self.do(call)
        if not life.held_by(attempt) or life.live:
            assert answer == "held"
        elif life.cancel:
            assert answer == "cancelled"
        elif life.crashes + 1 >= CRASHES.allowed:
            assert answer == "crashed"
        else:
            assert answer == "recovering"
            life.crashes += 1
            life.skip = life.skip or skip
            life.wait("suspects" if life.crashes >= CRASHES.suspicious else "recovery", "lost")

    def ends_what_was_lost(self, life: Life, *, behind: bool) -> None:
        attempt = life.attempt - behind
        lost = ended(life.id, State.FAILED, failure=LOST)
        answer = self.do(self.space.scripts.end(lost, attempt, expired_only=True))
        if life.held_by(attempt) and not life.live:
            assert answer is EndResult.ENDED
            error = '{"code":"worker_lost","message":"The worker was lost."}'
            self.ends(life, State.FAILED, f'{{"state":"failed","error":{error}}}')
        else:
            assert answer in (EndResult.STALE, EndResult.REPEATED)

    def requeues(self, life: Life, seq: int) -> None:
        answer = self.do(self.space.scripts.requeue(life.id, "interactive", seq))
        waits = life.place == "queued:interactive" and seq == life.seq
        if waits if seq else life.due:
            self.seq += 1
            assert answer == self.seq
            life.requeue(answer)
        else:
            assert answer == 0

    def settles(self, *, leader: bool, count: int) -> None:
        """What the books have leaves the ledger, where it is the leader who says so."""
        rows = entries(self.client, KEYS.ledger)[:count]
        told = [decode_record(fields["r"]) for _, fields in rows]
        over = [r.generation for r in told if isinstance(r, Ended)]
        assert self.do(self.space.scripts.lead(0, "ledger", "leader", HOUR_MS))
        ttls = {key: HOUR_MS for g in over for key in (KEYS.gen(g), KEYS.log(g), KEYS.members(g))}
        ids = [entry_id.encode() for entry_id, _ in rows]
        token = "leader" if leader else "another"
        assert self.do(self.space.scripts.settle(0, "ledger", token, ids, ttls)) is leader
        if leader:
            self.records += told
            del self.unsettled[: len(rows)]
            for life in self.lives:
                life.in_ledger = life.in_ledger and life.id not in over

    def keep(self) -> None:
        """What Redis will come back with."""
        keep(self.client)
        self.kept = copy.deepcopy((self.lives, self.unsettled, self.records, self.seq))

    def set_back(self) -> None:
        """Redis comes back with less than it had: the workers, and the readers, know more than it does."""
        set_back(self.client)
        self.lives, self.unsettled, self.records, self.seq = self.kept
        self.kept = None
        alive = {life.id: life for life in self.lives}
        for forgotten in self.said.keys() - alive:
            del self.said[forgotten], self.shown[forgotten]
        self.to_report = {}
        self.hands = {key: hand for key, hand in self.hands.items() if key[1] in alive}
        for life in self.lives:
            life.shaken = life.state is State.LEASED
            published = texts_of(life.log)
            lost = {
                text
                for index, texts in self.shown[life.id].items()
                for text in texts
                if index >= life.base and published.get(index) != text
            }
            if life.ended or all(text.startswith(f'"{life.fence}/') for text in lost):
                continue  # nothing is lost, or only what its own worker will miss, or the reaper suspects
            hands = [
                hand
                for (_, generation), hand in self.hands.items()
                if generation == life.id and hand.fence != life.fence and hand.attempt >= life.attempt
            ]
            if hands and any(hand.next > life.next for hand in hands):
                self.to_report[life.id] = hands
            else:
                self.unreported.add(life.id)
