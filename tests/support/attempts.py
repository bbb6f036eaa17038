"""Attempts at one generation, one after the other, as workers write them: chunks that tell their attempt, restart
markers, the end. A generation that a real worker has is taken from it first."""

from __future__ import annotations

import time
from typing import Any

from schemas.states import State
from stores.redis import Redis
from tests.support.generations import LEASE_MS, Room, batch, ended


class Writer:
    """Whoever has the current attempt. Each chunk's text is its attempt and index, each head has the attempt."""

    def __init__(
        self, room: Room, generation: str, *, attempt: int = 1, base: int = 0, tail: int = 0
    ) -> None:
        self.room = room
        self.generation = generation
        self.attempt = attempt
        self.base = base
        self.tail = tail

    @classmethod
    async def instead(cls, room: Room, generation: str) -> Writer:
        """Takes a generation over from the worker that has it, whose lease and attempt are void from then on."""
        attempt = await take_over(room.redis, generation)
        state = await room.log.state(generation)
        assert state is not None
        return cls(room, generation, attempt=attempt, base=state.base, tail=state.next)

    async def write(self, *sizes: int) -> None:
        """An entry of each size."""
        for size in sizes:
            head = b'{"top":{"attempt":%d},"choice":{}}' % self.attempt if self.tail == self.base else b""
            said = [b'"%d:%d "' % (self.attempt, self.tail + place) for place in range(size)]
            chunks = batch(self.tail, items=said, head=head)
            assert await self.room.scripts.append(self.generation, self.attempt, chunks) == 0
            self.tail += size

    async def restart(self, *, rolled_back: bool = False) -> None:
        """The next attempt. Where the last one had chunks, or may have had, a marker says that they are abandoned."""
        self.attempt = await take_over(self.room.redis, self.generation)
        if rolled_back:
            keys = self.room.redis.keys(self.generation)
            await self.room.redis.command(keys.partition, "HSET", keys.gen(self.generation), "skip", 1)
        base = await self.room.scripts.restart(self.generation, self.attempt)
        assert base is not None
        self.base = self.tail = base

    async def end(self, state: State = State.COMPLETED) -> None:
        await self.room.scripts.end(ended(self.generation, state), self.attempt)

    @property
    def answer(self) -> list[tuple[int, int]]:
        """(index, attempt) of the current attempt's chunks."""
        return [(index, self.attempt) for index in range(self.base, self.tail)]

    @property
    def text(self) -> str:
        """What they say."""
        return "".join(f"{attempt}:{index} " for index, attempt in self.answer)


async def take_over(space: Redis, generation: str) -> int:
    """The next attempt number, and a lease for it."""
    keys = space.keys(generation)
    until = int(time.time() * 1000) + LEASE_MS
    commands: list[tuple[str | int, ...]] = [
        ("MULTI",),
        ("HINCRBY", keys.gen(generation), "attempt", 1),
        ("ZADD", keys.lease, until, generation),
        ("EXEC",),
    ]
    *_, answer = await space.commands(keys.partition, commands)
    return answer[0]


def told(index: int, chunk: dict[str, Any]) -> tuple[int, int]:
    """A chunk as (index, attempt). Its text, its index and the head that it is rendered with are of one attempt."""
    attempt, said = chunk["choices"][0]["delta"]["content"].split(":")
    assert int(said) == index
    assert chunk["attempt"] == int(attempt), "rendered with the head of another attempt"
    return index, int(attempt)
