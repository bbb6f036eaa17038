"""What holds after every call that a ``World`` makes: Redis has what the model says, and each fact has one record."""

from __future__ import annotations

from typing import Any

from schemas.records import Accepted, Departed, Ended, decode_record
from schemas.states import State
from tests.support.generations import entries, scores
from tests.support.lives import Place, texts_of
from tests.support.world import KEYS, World

WAITING: tuple[Place, ...] = ("queued:interactive", "recovery", "suspects", "parked", "lease")
FIELDS = ("state", "attempt", "next", "base", "cancel", "skip", "crashes", "tries")


def agrees(world: World) -> None:
    with world.client.pipeline(transaction=False) as pipeline:
        for life in world.lives:
            pipeline.hmget(KEYS.gen(life.id), FIELDS)
            pipeline.exists(KEYS.req(life.id))
            pipeline.xrange(KEYS.log(life.id))
            pipeline.pttl(KEYS.gen(life.id))
        pipeline.hgetall(KEYS.outbox)
        found: list[Any] = pipeline.execute()
    for i, life in enumerate(world.lives):
        fields, request, log, ttl = found[4 * i : 4 * i + 4]
        flags = ["1" if flag else None for flag in (life.cancel, life.skip)]
        counts = [str(count) if count else None for count in (life.crashes, life.tries)]
        numbers = [str(number) for number in (life.attempt, life.next, life.base)]
        assert fields == [life.state, *numbers, *flags, *counts]
        assert bool(request) is not life.ended
        assert log == life.log
        assert (ttl == -1) is (not life.ended or life.in_ledger)
        life.reads_well(log)
        if life.state is State.COMPLETED and life.id not in world.unreported:
            final = [texts for index, texts in world.shown[life.id].items() if index >= life.base]
            assert all(len(texts) == 1 for texts in final), "no index is used again"
    assert {id: entry.split()[:2] for id, entry in found[-1].items()} == {
        life.id: ["interactive", str(life.seq)] for life in world.lives if life.in_outbox
    }
    for place in WAITING:
        waiting = {life.id for life in world.lives if life.place == place}
        assert scores(world.client, f"{KEYS.prefix}{place}").keys() == waiting
    leases = scores(world.client, KEYS.lease)
    assert {g: score > 1 for g, score in leases.items()} == {
        life.id: life.live for life in world.lives if life.state is State.LEASED
    }
    assert scores(world.client, KEYS.queued("interactive")) == {
        life.id: life.seq for life in world.lives if life.place == "queued:interactive"
    }
    assert scores(world.client, KEYS.deadlines).keys() == {life.id for life in world.lives if life.deadline}


def has_one_record_of_each_fact(world: World) -> None:
    told = [decode_record(fields["r"]) for _, fields in entries(world.client, KEYS.ledger)]
    assert [(type(r), r.generation) for r in told] == world.unsettled
    records = world.records + told
    for life in world.lives:
        departures = [r for r in records if isinstance(r, Departed) and r.generation == life.id]
        assert {r.accepted.id: r.state for r in departures} == {
            id: state for id, state in {life.id: life.own, **life.joined}.items() if state
        }
        assert len({r.accepted.id for r in departures}) == len(departures)
        assert all(r.tail <= life.next for r in departures)
        ends = [r for r in records if isinstance(r, Ended) and r.generation == life.id]
        assert sum(isinstance(r, Accepted) and r.id == life.id for r in records) == 1
        assert len(ends) == life.ended
        for record in ends:
            assert (record.state, record.attempt) == (life.state, life.attempt)
            assert (record.base, record.next) == (life.base, life.next)
            assert [(p.number, p.state) for p in record.past] == life.past
            numbers = [p.number for p in record.past]
            assert numbers == list(range(1, len(numbers) + 1))
            assert life.attempt - len(numbers) in (0, 1), (
                "its last attempt ended it, or it waited for another"
            )
            assert all(p.started_ms and p.started_ms <= p.ended_ms for p in record.past)
            assert (record.first_chunk_ms is not None) is bool(texts_of(life.log))
            assert (record.leased_ms is not None) is (record.started_ms is not None) is (life.attempt > 0)
