"""The life of generations under any interleaving of two workers, a reaper, callers who cancel and the ledger's leader.

A small model says what each script must answer and what Redis must hold after it; hypothesis looks for an order of
calls in which a real server differs. Calls are atomic on the server, so their order is all that interleaving can vary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

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

from schemas.keys import Keys
from schemas.records import Accepted, Ended, decode_record
from schemas.states import State
from stores.scripts import Append, Batch, Claim, EndResult, NotClaimed, Renewal
from tests.support.generations import HEAD, LOST, Room, accepted, ended, entries, room, scores
from tests.support.leaks import leaks
from tests.support.properties import examples

T = TypeVar("T")
KEYS = Keys(0)
WORKERS = ("one", "two")
ENDS = (State.COMPLETED, State.FAILED, State.CANCELLED)
Entry = tuple[str, dict[str, str]]


@dataclass
class Model:
    """What a generation must look like."""

    id: str
    seq: int
    state: State = State.QUEUED
    attempt: int = 0
    next: int = 0
    live: bool = False  # its lease has not run out
    cancel: bool = False
    in_outbox: bool = True
    in_ledger: bool = False  # its end is not settled yet
    log: list[Entry] = field(default_factory=list[Entry])

    @property
    def ended(self) -> bool:
        return self.state in ENDS

    def held_by(self, attempt: int) -> bool:
        return self.state is State.LEASED and self.attempt == attempt

    def append(self, items: list[str]) -> None:
        self.next += len(items)
        self.log.append((f"{self.next}-0", {"c": "\n".join(items)}))

    def end(self, state: State, entry: str) -> None:
        self.state = state
        self.live = self.cancel = False
        self.in_ledger = True
        self.log.append((f"{self.next}-1", {"e": entry}))


class Life(RuleBasedStateMachine):
    space: Room
    client: redis.Redis
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.models: list[Model] = []
        self.held: dict[
            tuple[str, str], int
        ] = {}  # worker, generation -> the attempt that the worker believes in
        self.unsettled: list[tuple[type, str]] = []  # the ledger, oldest first
        self.records: list[Accepted | Ended] = []  # all that the ledger ever held
        self.texts = 0
        self.channel: Any = self.client.pubsub()
        self.heard: list[dict[str, Any]] = []

    def teardown(self) -> None:
        try:
            while message := self.channel.get_sharded_message(timeout=0.02):
                self.heard.append(message)
            for model in self.models:
                messages = [
                    m["data"]
                    for m in self.heard
                    if m["channel"] == KEYS.channel(model.id) and m["type"] == "smessage"
                ]
                assert messages == [_message(entry, first=not i) for i, entry in enumerate(model.log)]
            assert leaks(self.client) == []
        finally:
            self.channel.close()

    def do(self, call: Awaitable[T]) -> T:
        async def wait() -> T:
            return await call

        return self.runner.run(wait())

    def pick(self, data: st.DataObject) -> Model:
        """Any generation, and rather one that a worker has."""
        leased = [model for model in self.models if model.state is State.LEASED]
        return data.draw(st.sampled_from(leased * 4 + self.models))

    # -- Callers

    @initialize()
    def first(self) -> None:
        self.accept()

    @precondition(lambda self: sum(not model.ended for model in self.models) < 2)
    @rule()
    def accept(self) -> None:
        record = accepted()
        self.channel.ssubscribe(KEYS.channel(record.id))
        result = self.do(self.space.scripts.accept(record, b"{}"))
        assert result.fresh
        assert result.seq == len(self.models) + 1
        self.models.append(Model(record.id, result.seq))
        self.unsettled.append((Accepted, record.id))

    @rule(data=st.data())
    def accept_again(self, data: st.DataObject) -> None:
        model = self.pick(data)
        result = self.do(self.space.scripts.accept(accepted(model.id), b"other"))
        assert (result.fresh, result.seq) == (False, model.seq)

    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        model = self.pick(data)
        self.do(self.space.scripts.published(model.id))
        model.in_outbox = False

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        model = self.pick(data)
        answer = self.do(self.space.scripts.cancel(ended(model.id, State.CANCELLED), "interactive"))
        match model.state:
            case State.QUEUED:
                assert answer == "cancelled"
                model.end(State.CANCELLED, '{"state":"cancelled"}')
                model.in_outbox = False
                self.unsettled.append((Ended, model.id))
            case State.LEASED:
                assert answer == "cancelling"
                model.cancel = True
            case _:
                assert answer == ("cancelled" if model.state is State.CANCELLED else "ended")

    # -- Workers

    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def claim(self, data: st.DataObject, worker: str) -> None:
        self.claims(worker, self.pick(data))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def take_over(self, data: st.DataObject) -> None:
        """A lease runs out, and the other worker comes for the work while the first still believes that it has it."""
        worker, generation = data.draw(st.sampled_from(sorted(self.held)))
        model = next(m for m in self.models if m.id == generation)
        self.expires(model)
        self.claims(next(other for other in WORKERS if other != worker), model)

    def claims(self, worker: str, model: Model) -> None:
        answer = self.do(
            self.space.scripts.claim(
                model.id, queue="interactive", worker=worker, lease_ms=60_000, seq=model.seq
            )
        )
        if model.ended or model.live:
            assert answer == NotClaimed("ended" if model.ended else "held")
            return
        assert isinstance(answer, Claim)
        model.state, model.live, model.in_outbox = State.LEASED, True, False
        model.attempt += 1
        assert (answer.attempt, answer.next, answer.request) == (model.attempt, model.next, b"{}")
        self.held[worker, model.id] = answer.attempt

    def chunks(self, count: int) -> list[str]:
        """Texts that were never sent before: a chunk that is written twice, or by the wrong one, shows."""
        self.texts += count
        return [f'"{n}"' for n in range(self.texts - count, self.texts)]

    def drawn(self, data: st.DataObject, model: Model, count: int) -> tuple[Batch, list[str]]:
        """Chunks at the tail, before it or beyond it."""
        first = max(0, model.next + data.draw(st.sampled_from([0, 0, 0, 0, -1, -2, -3, 1]), "offset"))
        items = self.chunks(count)
        return Batch(first, count, "\n".join(items).encode(), HEAD if first == 0 else b""), items

    def mine(self, worker: str) -> list[tuple[Model, int]]:
        """What a worker believes that it has."""
        return [(m, self.held[worker, m.id]) for m in self.models if (worker, m.id) in self.held]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted({worker for worker, _ in self.held})))
        chosen = data.draw(
            st.lists(st.sampled_from(self.mine(worker)), min_size=1, max_size=2, unique_by=lambda c: c[0].id)
        )
        calls: list[tuple[str, int, Batch]] = []
        expected: list[Append] = []
        for model, attempt in chosen:
            sent, items = self.drawn(data, model, data.draw(st.integers(1, 3), "count"))
            calls.append((model.id, attempt, sent))
            done = Append.CANCEL_ASKED if model.cancel else Append.OK
            if not model.held_by(attempt):
                expected.append(Append.STALE)
            elif sent.first == model.next:
                model.append(items)
                expected.append(done)
            else:
                expected.append(done if sent.first + sent.count <= model.next else Append.GAP)
        assert self.do(self.space.scripts.append_all(0, calls)) == expected

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: str) -> None:
        mine = self.mine(worker)[-2:]
        answers = self.do(
            self.space.scripts.renew(0, {m.id: attempt for m, attempt in mine}, lease_ms=60_000)
        )
        for model, attempt in mine:
            if model.held_by(attempt):
                model.live = True
                assert answers[model.id] is (Renewal.CANCEL_ASKED if model.cancel else Renewal.OK)
            else:
                assert answers[model.id] is Renewal.LOST

    @precondition(lambda self: self.held)
    @rule(data=st.data(), state=st.sampled_from(ENDS), count=st.integers(0, 2))
    def end(self, data: st.DataObject, state: State, count: int) -> None:
        worker, generation = data.draw(st.sampled_from(sorted(self.held)))
        model = next(m for m in self.models if m.id == generation)
        attempt = self.held[worker, generation]
        sent, items = self.drawn(data, model, count)
        answer = self.do(self.space.scripts.end(ended(generation, state), attempt, sent))
        if not model.held_by(attempt):
            repeated = model.attempt == attempt and model.state is state
            assert answer is (EndResult.REPEATED if repeated else EndResult.STALE)
        elif count and sent.first + count > model.next and sent.first != model.next:
            assert answer is EndResult.GAP
        else:
            assert answer is EndResult.ENDED
            if count and sent.first == model.next:
                model.append(items)
            model.end(state, f'{{"state":"{state}"}}')
            self.unsettled.append((Ended, generation))

    # -- Time, and those who watch it

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        self.expires(self.pick(data))

    def expires(self, model: Model) -> None:
        self.client.zadd(KEYS.lease, {model.id: 1}, xx=True)
        model.live = False

    @rule(data=st.data(), behind=st.sampled_from([0, 0, 1]))
    def reap(self, data: st.DataObject, behind: int) -> None:
        model = self.pick(data)
        attempt = model.attempt - behind
        lost = ended(model.id, State.FAILED, failure=LOST)
        answer = self.do(self.space.scripts.end(lost, attempt, expired_only=True))
        if model.held_by(attempt) and not model.live:
            assert answer is EndResult.ENDED
            model.end(
                State.FAILED,
                '{"state":"failed","error":{"code":"worker_lost","message":"The worker was lost."}}',
            )
            self.unsettled.append((Ended, model.id))
        else:
            assert answer in (EndResult.STALE, EndResult.REPEATED)

    @rule(leader=st.booleans(), count=st.integers(1, 4))
    def settle(self, leader: bool, count: int) -> None:
        rows = entries(self.client, KEYS.ledger)[:count]
        told = [decode_record(fields["r"]) for _, fields in rows]
        over = [r.generation for r in told if isinstance(r, Ended)]
        assert self.do(self.space.scripts.lead(0, "ledger", "leader", 60_000))
        ttls = {key: 600_000 for g in over for key in (KEYS.gen(g), KEYS.log(g))}
        ids = [entry_id.encode() for entry_id, _ in rows]
        token = "leader" if leader else "another"
        assert self.do(self.space.scripts.settle(0, "ledger", token, ids, ttls)) is leader
        if leader:
            self.records += told
            del self.unsettled[: len(rows)]
            for model in self.models:
                model.in_ledger = model.in_ledger and model.id not in over

    # -- What holds after every call

    @invariant()
    def agrees(self) -> None:
        with self.client.pipeline(transaction=False) as pipeline:
            for model in self.models:
                pipeline.hmget(KEYS.gen(model.id), "state", "attempt", "next", "base", "cancel")
                pipeline.exists(KEYS.req(model.id))
                pipeline.xrange(KEYS.log(model.id))
                pipeline.pttl(KEYS.gen(model.id))
            pipeline.hkeys(KEYS.outbox)
            found: list[Any] = pipeline.execute()
        for i, model in enumerate(self.models):
            fields, request, log, ttl = found[4 * i : 4 * i + 4]
            cancel = "1" if model.cancel else None
            assert fields == [model.state, str(model.attempt), str(model.next), "0", cancel]
            assert bool(request) is not model.ended
            assert log == model.log
            assert (ttl == -1) is (not model.ended or model.in_ledger)
            self.follows_the_rules(log, model)
        assert set(found[-1]) == {m.id for m in self.models if m.in_outbox}
        leases = scores(self.client, KEYS.lease)
        assert {g: score > 1 for g, score in leases.items()} == {
            m.id: m.live for m in self.models if m.state is State.LEASED
        }
        assert scores(self.client, KEYS.queued("interactive")) == {
            m.id: m.seq for m in self.models if m.state is State.QUEUED
        }

    def follows_the_rules(self, log: list[Entry], model: Model) -> None:
        """As readers understand the log, whatever the model says: each index once, from 0 on, nothing after the end."""
        at = 0
        for place, (entry_id, fields) in enumerate(log):
            last, kind = map(int, entry_id.split("-"))
            if kind:
                assert "e" in fields
                assert place == len(log) - 1
                assert last == at
            else:
                at += fields["c"].count("\n") + 1
                assert last == at
        assert at == model.next
        said = [text for _, fields in log for text in fields.get("c", "").split("\n") if text]
        assert len(set(said)) == len(said)

    @invariant()
    def has_one_record_of_each_fact(self) -> None:
        told = [decode_record(fields["r"]) for _, fields in entries(self.client, KEYS.ledger)]
        assert [(type(r), r.generation) for r in told] == self.unsettled
        records = self.records + told
        for model in self.models:
            ends = [r for r in records if isinstance(r, Ended) and r.generation == model.id]
            assert sum(isinstance(r, Accepted) and r.id == model.id for r in records) == 1
            assert len(ends) == model.ended
            for record in ends:
                assert (record.state, record.attempt, record.base, record.next) == (
                    model.state,
                    model.attempt,
                    0,
                    model.next,
                )
                assert (record.first_chunk_ms is not None) is (model.next > 0)
                assert (record.leased_ms is not None) is (model.attempt > 0)


def _message(entry: Entry, *, first: bool) -> str:
    """A log entry as the channel carries it."""
    entry_id, fields = entry
    if "e" in fields:
        return f"{entry_id} e\n{fields['e']}"
    return f"{entry_id} h\n{HEAD.decode()}\n{fields['c']}" if first else f"{entry_id} c\n{fields['c']}"


def test_any_interleaving(redis_url: str, redis_client: redis.Redis) -> None:
    """Whatever the order of calls: one end, one record of it, each chunk once, and nothing from a worker that lost."""
    with asyncio.Runner() as runner:
        opening = room(redis_url)
        space = runner.run(opening.__aenter__())
        try:
            parts = {"space": space, "client": redis_client, "runner": runner}
            machine = cast("type[Life]", type("Life", (Life,), parts))
            run_state_machine_as_test(machine, settings=examples(25, steps=40))
        finally:
            runner.run(opening.__aexit__(None, None, None))
