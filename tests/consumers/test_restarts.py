"""Attempts that are abandoned: nobody ever reads the chunks of two as one answer."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.follow import Follow, collect, renderer_for
from schemas.codec import Renderer, chunks_of
from schemas.errors import Conflict, Restarted
from stores.chunklog import PAGE
from stores.scripts import SKIP
from tests.support.attempts import Writer, take_over, told
from tests.support.generations import accepted
from tests.support.house import House, items
from tests.support.properties import examples
from tests.support.waiting import until

pytestmark = pytest.mark.both_servers


@pytest.fixture
def writer_of(house: House) -> Any:
    async def make() -> Writer:
        return Writer(house.room, await house.room.running())

    return make


class Reading:
    """What one reader was given, and the restart that it was told of, if any. It stops there."""

    def __init__(self, follow: Follow, after: int) -> None:
        self.follow = follow
        self.after = after
        self.base = follow.completion.base
        self.got: list[tuple[int, int]] = []
        self.restarted: int | None = None
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for index, chunk in self.follow.chunks(renderer_for(self.follow.completion)):
                self.got.append(told(index, chunk))
        except Restarted as error:
            self.restarted = error.base

    def check(self, writer: Writer) -> None:
        indexes = [index for index, _ in self.got]
        assert indexes == list(range(indexes[0], indexes[0] + len(indexes))) if indexes else True
        assert len({attempt for _, attempt in self.got}) <= 1, f"a splice: {self.got}"
        if self.after >= 0 and self.got:
            assert self.got[0][0] == self.after + 1
        if self.restarted is not None:
            assert self.got or self.after >= 0, "nothing of what it had was abandoned"
            assert max([self.after, *indexes]) < self.restarted <= writer.base
        elif self.after == -1:
            assert self.got == writer.answer
        else:
            assert self.after >= writer.base
            assert self.got == writer.answer[self.after + 1 - writer.base :]


#: What happens one after the other: chunks, a new attempt, a reader who comes (as a part of the chunks there are, or
#: from the start), a lost connection, some turns of the loop for the readers.
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 4)),
        st.tuples(st.just("restart"), st.sampled_from([False, False, False, True])),
        st.tuples(st.just("open"), st.none() | st.floats(0, 1)),
        st.tuples(st.just("cut"), st.sampled_from(["pubsub", "normal"])),
        st.tuples(st.just("turns"), st.integers(1, 12)),
    ),
    max_size=24,
)


@examples(60)
@given(steps=steps, settled=st.booleans())
async def test_no_reader_ever_gets_a_splice(
    house: House, steps: list[tuple[str, Any]], settled: bool
) -> None:
    """Any sequence of attempts and chunks, readers at any index: what one reads is of one attempt and has no gap.
    Who starts at -1 and hears of no restart gets exactly the final attempt; who collects gets it in any case."""
    record = accepted()
    prepared = await house.followers.prepare(record.id)
    await house.room.accept(record)
    await house.room.claim(record.id)
    writer = Writer(house.room, record.id)
    completion = await house.find(record.id)
    readings = [Reading(house.followers.attach(prepared, completion), -1)]
    collecting = await house.open(record.id)
    collected = asyncio.create_task(collect(collecting, renderer_for(completion)))
    async with asyncio.timeout(30):
        script: list[tuple[str, Any]] = [*steps, ("open", None), ("write", 1)]
        for step, value in script:
            if step == "write":
                await writer.write(value)
            elif step == "restart":
                await writer.restart(rolled_back=value)
            elif step == "open":
                after = -1 if value is None else round(value * writer.tail) - 1
                try:
                    follow = await house.open(record.id, after)
                except Restarted as error:
                    assert 0 <= after < writer.base == error.base
                    continue
                assert after == -1 or after >= writer.base
                readings.append(Reading(follow, after))
            elif step == "cut":
                house.client.client_kill_filter(skipme=True, _type=value)
            else:
                for _ in range(value):
                    await asyncio.sleep(0)
        await writer.end()
        if settled:
            await house.expire(record.id)
        for reading in readings:
            await reading.task
            reading.check(writer)
        answer = await collected
        assert (answer["choices"][0]["message"]["content"], answer["attempt"]) == (
            writer.text,
            writer.attempt,
        )
        for after in {-1, writer.base, writer.tail - 1, writer.tail}:
            late = Reading(await house.open(record.id, after), after)
            await late.task
            late.check(writer)
        for after in {0, writer.base // 2, writer.base - 1} - {-1} if writer.base else ():
            with pytest.raises(Restarted, match=f"started again at index {writer.base}"):
                await house.open(record.id, after)
        await until(lambda: house.channels() == [])


async def test_a_live_reader_is_told_and_may_go_on(house: House, writer_of: Any) -> None:
    """Who has chunks of the old attempt gets Restarted with the new one's first index, and after it that attempt."""
    writer: Writer = await writer_of()
    await writer.write(2, 1)
    follow = await house.open(writer.generation)
    assert [e.next for e in await follow.next()] == [2, 3]
    await writer.restart()
    with pytest.raises(Restarted) as told_of:
        await follow.next()
    assert (told_of.value.base, told_of.value.code, told_of.value.http_status) == (3, "restarted", 409)
    await writer.write(2)
    await writer.end()
    assert [index for index, _ in await items(follow)] == [3, 4]


async def test_a_reader_who_has_nothing_yet_is_not_told(house: House, writer_of: Any) -> None:
    """Chunks that were on their way to it and never given are dropped without a word."""
    writer: Writer = await writer_of()
    follow = await house.open(writer.generation)
    await writer.write(2, 1)
    await writer.restart(rolled_back=True)
    await writer.write(1)
    await until(lambda: len(follow._reader._queue) == 4)  # type: ignore[union-attr]
    (entry,) = await follow.next()
    assert (entry.first, follow.last) == (SKIP + 3, SKIP + 3)
    follow.close()


async def test_opened_in_the_middle_and_not_given_anything(house: House, writer_of: Any) -> None:
    """What a resuming reader has already is abandoned as well: it is told, though it was given no chunk here."""
    writer: Writer = await writer_of()
    await writer.write(3)
    follow = await house.open(writer.generation, 2)
    await writer.restart()
    with pytest.raises(Restarted):
        await follow.next()
    follow.close()


async def test_a_marker_that_nobody_heard(house: House, writer_of: Any) -> None:
    """Where the channel failed to say it, the state or the next attempt's head does."""
    writer: Writer = await writer_of()
    await writer.write(3)
    follows = [await house.open(writer.generation) for _ in range(2)]
    for follow in follows:
        await follow.next()
    keys = house.room.redis.keys(writer.generation)
    writer.attempt = await take_over(house.room.redis, writer.generation)
    house.client.xadd(keys.log(writer.generation), {"r": 3}, id="3-1")
    house.client.hset(keys.gen(writer.generation), mapping={"base": 3, "next": 3})
    follows[0]._reader.poke(0)  # type: ignore[union-attr]
    with pytest.raises(Restarted):
        await follows[0].next()
    writer.base = 3
    await writer.write(1)
    with pytest.raises(Restarted):
        await follows[1].next()
    for follow in follows:
        assert [e.first for e in await follow.next()] == [3]
        follow.close()


async def test_an_attempt_without_chunks(house: House, writer_of: Any) -> None:
    """The head of the one before it is no head of the next one."""
    writer: Writer = await writer_of()
    await writer.write(2)
    await writer.restart(rolled_back=True)
    follow = await house.open(writer.generation)
    await writer.restart()
    await writer.write(2)
    await writer.end()
    found = [pair async for pair in follow.chunks(renderer_for(follow.completion))]
    assert [told(*pair) for pair in found] == [(SKIP + 2, 3), (SKIP + 3, 3)]


@pytest.mark.parametrize("rolled_back", [False, True])
async def test_a_long_log_that_was_abandoned(house: House, writer_of: Any, rolled_back: bool) -> None:
    """However many pages lie before the final attempt, a reader begins with its first chunk; SQL keeps it alone."""
    writer: Writer = await writer_of()
    await writer.write(*[1] * (PAGE + 20))
    behind = await house.open(writer.generation)
    assert (await behind.next())[0].first == 0
    await writer.restart(rolled_back=rolled_back)
    await writer.write(*[1] * (PAGE + 20))
    await writer.end()
    with pytest.raises(Restarted):
        await items(behind)
    behind.close()
    for _ in ("Redis", "the books"):
        found = await items(await house.open(writer.generation))
        assert [index for index, _ in found] == list(range(writer.base, writer.tail))
        assert found[0][1] == b'"2:%d "' % writer.base
        with pytest.raises(Conflict, match="Start from -1") as no:
            await house.open(writer.generation, writer.base - 1)
        assert (no.value.code, no.value.param) == ("restarted", "x-last-chunk-index")
        await house.expire(writer.generation)
    stored = house.books.stored_log(writer.generation)
    assert stored is not None
    assert (stored.base, stored.next, stored.items.count(b"\n") + 1) == (writer.base, writer.tail, PAGE + 20)


@pytest.mark.parametrize("given", [True, False])
async def test_a_log_that_restarts_ends_and_leaves_unseen(house: House, writer_of: Any, given: bool) -> None:
    """The books tell a reader of the restart, too, also where the last index it has is just before ``base``."""
    writer: Writer = await writer_of()
    follow = await house.open(writer.generation)
    reader = follow._reader
    assert reader is not None
    if given:
        await writer.write(2)
        await follow.next()
        reader.poke(0)  # what waits for the reader is to be read again, as after an overflow
    else:
        reader.poke(0)
        await writer.write(2)
    await writer.restart()
    await writer.write(2)
    await writer.end()
    await house.expire(writer.generation)
    if given:
        with pytest.raises(Restarted):
            await follow.next()
    entries = await follow.next()
    renderer: Renderer = renderer_for(follow.completion)
    renderer.set_head(follow.head)
    found = [e.first + place for e in entries for place, _ in enumerate(chunks_of(e.items, renderer))]
    assert found == [2, 3]
    assert follow.end is not None
    assert msgspec.structs.asdict(follow.end)["state"] == "completed"
