"""One connection for all readers: what they get when it is cut, when they are slow, and when the channel fails them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from consumers import hub as hub_module
from consumers.follow import Follow
from consumers.hub import Hub
from consumers.reader import BACKLOG
from schemas.errors import Unavailable
from stores.chunklog import Entry
from stores.redis import Redis
from tests.conftest import StartValkey
from tests.support.fake_redis import Command, fake_redis, greet
from tests.support.generations import accepted, batch, ended, room, texts
from tests.support.house import House, items, numbered
from tests.support.properties import examples
from tests.support.waiting import until

pytestmark = pytest.mark.both_servers


def others(client: redis.Redis) -> int:
    """Connections beside the one that counts them."""
    return len(client.client_list()) - 1


# -- One connection


async def test_many_readers_share_a_connection(house: House) -> None:
    """Three hundred readers of a hundred logs take one connection beside that for commands, and leave no channel."""
    house.client.client_kill_filter(skipme=True)
    generations = [await house.room.running() for _ in range(100)]
    readings = [asyncio.create_task(items(await house.open(g))) for g in generations * 3]
    await until(lambda: len(house.channels()) == 100)
    assert others(house.client) == 2
    for generation in generations:
        await house.write(generation, [2, 1])
        await house.room.scripts.end(ended(generation), 1, batch(3))
    assert await asyncio.gather(*readings) == [numbered(0, 4)] * 300
    assert others(house.client) == 2
    await until(lambda: house.channels() == [])
    await house.followers.close()
    await until(lambda: others(house.client) == 1)


async def test_the_last_reader_gives_up_the_channel(house: House) -> None:
    """A channel is subscribed to while anybody reads, and again when somebody comes back."""
    generation = await house.room.running()
    for _ in range(2):
        one, two = await house.open(generation), await house.open(generation)
        one.close()
        one.close()
        await until(lambda: len(house.channels()) == 1)
        await house.room.redis.command(0, "PING")
        assert len(house.channels()) == 1
        two.close()
        await until(lambda: house.channels() == [])


async def test_a_finished_log_needs_no_channel(house: House) -> None:
    """Who opens a log that has ended reads it and subscribes to nothing for long."""
    follow = await house.open(await house.room.finished(texts(0, 3)))
    await until(lambda: house.channels() == [])
    assert await items(follow) == numbered(0, 3)


async def test_a_second_reader_waits_for_the_channel_too(start_valkey: StartValkey) -> None:
    """Readers who come while a subscription is on its way don't read before it stands: what is written in between
    would be lost on them."""
    server = start_valkey()
    async with room(server.url) as space:
        hub = Hub(space.redis)
        await hub.add(hub.reader(accepted().id, -1))  # the connection is there
        generation = accepted().id
        with server.paused():
            adding = [asyncio.create_task(hub.add(hub.reader(generation, -1))) for _ in range(2)]
            done, _ = await asyncio.wait(adding, timeout=0.1)
            assert not done
        await asyncio.gather(*adding)
        await hub.close()


# -- The connection is cut


@contextmanager
def cut(client: redis.Redis, kind: str) -> Generator[None]:
    """Connections of a kind are killed before and after."""
    client.client_kill_filter(skipme=True, _type=kind)
    yield
    client.client_kill_filter(skipme=True, _type=kind)


@pytest.mark.parametrize("kinds", [["pubsub"], ["normal"], ["pubsub", "normal"]])
async def test_connections_are_killed(house: House, kinds: list[str]) -> None:
    """CLIENT KILL in mid-stream, again and again, of either connection or both: no gap and no repeat for anybody."""
    record = accepted()
    reader = await house.followers.prepare(record.id)
    generation = await house.room.running(record)
    follows = [house.followers.attach(reader, await house.find(generation))]
    follows += [await house.open(generation) for _ in range(4)]
    tail = await house.write(generation, [1, 2, 3])
    follows += [await house.open(generation, after) for after in (-1, 2, 5)]
    readings = [asyncio.create_task(items(follow)) for follow in follows]
    for turn in range(12):
        with cut(house.client, kinds[turn % len(kinds)]):
            tail = await house.write(generation, [1] * (turn % 4), tail)
        tail = await house.write(generation, [2], tail)
    await house.room.scripts.end(ended(generation), 1)
    firsts = [0] * 5 + [0, 3, 6]
    async with asyncio.timeout(10):
        assert await asyncio.gather(*readings) == [numbered(first, tail) for first in firsts]
    await until(lambda: house.channels() == [])


async def test_a_reader_who_has_heard_nothing_yet_comes_back(house: House) -> None:
    """Whose connection is lost before the first chunk is subscribed again before it looks what it missed."""
    record = accepted()
    reader = await house.followers.prepare(record.id)
    generation = await house.room.running(record)
    reading = asyncio.create_task(items(house.followers.attach(reader, await house.find(generation))))
    await until(lambda: reader._waiter is not None)
    with cut(house.client, "pubsub"):
        await house.write(generation, [2])
    await until(lambda: reader.expected == 2)
    assert len(house.channels()) == 1
    await house.room.scripts.end(ended(generation), 1, batch(2))
    async with asyncio.timeout(hub_module.SILENCE - 1):
        assert await reading == numbered(0, 3)


async def test_redis_is_away(start_valkey: StartValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader is told when Redis stays away; asked again when it is back, it goes on without a gap."""
    monkeypatch.setattr(hub_module, "RETRY_LAST", 0.01)
    server = start_valkey(appendonly=True, config={"appendfsync": "always"})
    async with room(server.url) as space:
        hub = Hub(space.redis)
        generation = await space.running()
        await space.scripts.append(generation, 1, batch(0, 2))
        reader = hub.reader(generation, -1)
        await reader.open()
        assert [e.first for e in await reader.next()] == [0]
        server.kill()
        with pytest.raises(Unavailable, match="not available"):
            await reader.next()
        await asyncio.to_thread(server.start)
        await space.scripts.append(generation, 1, batch(2, 3))
        async with asyncio.timeout(hub_module.SILENCE - 1):
            (entry,) = await reader.next()
        assert (entry.first, entry.items) == (2, texts(2, 3))
        await hub.close()


async def test_a_reader_who_leaves_while_the_hub_connects(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel whose last reader closes while it is being subscribed to again is not kept."""
    kept, left = await house.room.running(), await house.room.running()
    one, two = await house.open(kept), await house.open(left)
    asked, go_on = asyncio.Event(), asyncio.Event()
    channels = hub_module._Channels
    confirm = channels._confirm

    async def slowly(wire: hub_module.Wire) -> None:
        asked.set()
        await go_on.wait()
        await confirm(wire)

    monkeypatch.setattr(channels, "_confirm", staticmethod(slowly))
    house.client.client_kill_filter(skipme=True, _type="pubsub")
    reading = asyncio.create_task(items(one))
    await asked.wait()
    two.close()
    go_on.set()
    channel = house.room.redis.keys(kept).channel(kept)
    await until(lambda: house.channels() == [channel])
    await house.room.scripts.end(ended(kept), 1, batch(0, 1))
    assert await reading == numbered(0, 1)


async def test_a_reader_who_is_cancelled_while_the_hub_connects() -> None:
    """A connection that was opened for one who no longer waits is closed."""

    async def answer(command: Command, writer: asyncio.StreamWriter) -> None:
        if await greet(command, writer):
            return
        if command[0] in (b"INFO", b"GET"):
            writer.write(b"$17\r\ncluster_enabled:0\r\n" if command[0] == b"INFO" else b"$1\r\n1\r\n")

    async with fake_redis(answer) as fake:
        space = await Redis.open(fake.url)
        hub = Hub(space)
        reader = hub.reader(accepted().id, -1)
        opening = asyncio.create_task(reader.open())
        await until(lambda: [b"PING"] in fake.commands)
        assert fake.open == 2
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        reader.close()
        await until(lambda: fake.open == 1)
        await hub.close()
        space.close()


# -- Slow readers, and a channel that fails


async def test_a_slow_reader(house: House) -> None:
    """What waits for a slow reader is bounded; when it comes back it reads the rest from the stream."""
    generation = await house.room.running()
    fast = asyncio.create_task(items(await house.open(generation)))
    slow = await house.open(generation)
    big = [b'"%s"' % (b"%d" % i * 60_000) for i in range(40)]
    reader = slow._reader
    assert reader is not None
    for index in range(2):
        await house.room.scripts.append(generation, 1, batch(index, items=[big[index]]))
    waiting: list[int] = []
    while slow.expected < 2:
        await slow.next()
    for index in range(2, 40):
        await house.room.scripts.append(generation, 1, batch(index, items=[big[index]]))
        waiting.append(sum(len(item) for e in reader._queue for item in e.items))
    await house.room.scripts.end(ended(generation), 1)
    assert await fast == list(enumerate(big))
    assert max(waiting) <= BACKLOG
    assert await items(slow) == list(enumerate(big))[2:]


#: What a channel makes of the entries of a log: some never come, others come late, or twice.
failing = st.lists(st.integers(0, 9), max_size=15)


@examples(60)
@given(heard=failing, after=st.integers(-1, 8), pace=st.integers(1, 4))
async def test_a_channel_that_fails(house: House, heard: list[int], after: int, pace: int) -> None:
    """Messages that are lost, late, or come twice make a reader read the range again: it gets each index once."""
    generation = await house.room.running()
    hub = house.followers.hub
    reader = hub.reader(generation, after)
    try:
        await reader.open()
        hub.remove(reader)  # from here on it hears what we say
        sizes = [1, 3, 1, 2, 2]
        entries: list[Entry] = []
        first = 0
        for size in sizes:
            entries.append(Entry(first, texts(first, size)))
            first = await house.write(generation, [size], first)
        await house.room.scripts.end(ended(generation), 1)
        reader._stale = False  # and has missed all of it so far
        found: list[tuple[int, bytes]] = []
        end = False

        async def take() -> None:
            nonlocal end
            for entry in await reader.next():
                found.extend((entry.first + place, item) for place, item in enumerate(entry.items))
                end = end or entry.end is not None

        for count, place in enumerate(heard):
            if place < len(entries):
                reader.feed(entries[place], 1, 0)
            if count % pace == 0 and not end and (reader._queue or reader._stale):
                waiting = asyncio.create_task(take())
                done, _ = await asyncio.wait({waiting}, timeout=0.005)
                if not done:  # all that it was told was old
                    waiting.cancel()
                    await asyncio.wait({waiting})
        while not end:
            reader.poke(0)
            await take()
        assert found == numbered(after + 1, first)
    finally:
        reader.close()


async def test_silence(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an open log on which nothing is heard the range is read again: no message is needed to get on."""
    monkeypatch.setattr(hub_module, "SILENCE", 0.05)
    generation = await house.room.running()
    follow = await house.open(generation)
    keys = house.room.redis.keys(generation)
    reading = asyncio.create_task(follow.next())
    await until(lambda: follow._reader is not None and follow._reader._waiter is not None)
    with house.client.pipeline() as pipeline:  # as the append script, but without the bell
        pipeline.xadd(keys.log(generation), {"c": '"0"\n"1"'}, id="2-0")
        pipeline.hset(keys.gen(generation), "next", 2)
        pipeline.execute()
    async with asyncio.timeout(10):
        assert [(e.first, e.items) for e in await reading] == [(0, texts(0, 2))]
    follow.close()


async def test_a_lost_last_message(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no message comes at all, the end is found all the same."""
    monkeypatch.setattr(hub_module, "SILENCE", 0.05)
    generation = await house.room.running()
    follows: list[Follow] = [await house.open(generation) for _ in range(3)]
    for channels in house.followers.hub._channels.values():
        channels._message = lambda *_: None
    readings = [asyncio.create_task(items(follow)) for follow in follows]
    await house.write(generation, [2, 2])
    await house.room.scripts.end(ended(generation), 1)
    async with asyncio.timeout(10):
        assert await asyncio.gather(*readings) == [numbered(0, 4)] * 3
