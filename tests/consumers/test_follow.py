"""Following a completion: whoever reads, whenever and from wherever, gets the same chunks under the same indexes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.follow import Follow, collect, renderer_for
from schemas.codec import ChunkEncoder
from schemas.errors import Conflict, Failure, GenerationFailed, NotFound
from schemas.states import State
from stores.chunklog import PAGE
from stores.flights import Flights
from stores.outcomes import Batch
from tests.support.generations import accepted, batch, ended, texts
from tests.support.house import House, chunks, items, numbered
from tests.support.properties import examples
from tests.support.waiting import until

pytestmark = pytest.mark.both_servers

sizes_of_entries = st.lists(st.integers(1, 5), max_size=8)


# -- The same for all


@examples(12)
@given(sizes=sizes_of_entries, with_end=st.integers(0, 4))
async def test_any_coalescing_and_any_resume_index(house: House, sizes: list[int], with_end: int) -> None:
    """However chunks share entries, a reader gets exactly those after its index, from Redis and from the books."""
    generation = await house.room.running()
    first = await house.write(generation, sizes)
    last = batch(first, with_end) if with_end else Batch(first, 0, b"")
    await house.room.scripts.end(ended(generation), 1, last)
    total = first + with_end
    for after in range(-1, total + 2):
        assert await items(await house.open(generation, after)) == numbered(after + 1, total)
    await house.expire(generation)
    for after in range(-1, total + 2):
        assert await items(await house.open(generation, after)) == numbered(after + 1, total)


#: What happens before an entry of a size is written: who joins (as a part of the log so far), how long they may run.
steps = st.lists(
    st.tuples(st.integers(1, 5), st.none() | st.floats(0, 1), st.integers(0, 3)),
    max_size=8,
)


@examples(25)
@given(steps=steps, settled=st.booleans())
async def test_readers_agree(house: House, steps: list[tuple[int, float | None, int]], settled: bool) -> None:
    """Whoever was there first, joins while it is written, at any index, or comes late: all read the same."""
    record = accepted()
    reader = await house.followers.prepare(record.id)
    await house.room.accept(record)
    first = house.followers.attach(reader, await house.find(record.id))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        readings = [(0, group.create_task(chunks(first)))]
        await house.room.claim(record.id)
        tail = 0
        for size, join, turns in [*steps, (0, 1.0, 0)]:
            if join is not None:
                after = round(join * tail) - 1
                readings.append((after + 1, group.create_task(chunks(await house.open(record.id, after)))))
            for _ in range(turns):
                await asyncio.sleep(0)
            tail = await house.write(record.id, [size] if size else [], tail)
        await house.room.scripts.end(ended(record.id), 1)
        if settled:
            await house.expire(record.id)
    whole = await chunks(await house.open(record.id))
    assert [(i, c["choices"][0]["delta"]["content"]) for i, c in whole] == [(i, str(i)) for i in range(tail)]
    assert all(chunk["system_fingerprint"] == "fp" for _, chunk in whole)
    for start, reading in readings:
        assert reading.result() == whole[start:]
    await until(lambda: house.channels() == [], 5)


async def test_the_head_comes_with_the_first_chunks(house: House) -> None:
    """What all chunks share is there for a reader who opens and reads at any moment about the first append."""
    for turns in range(40):
        generation = await house.room.running()
        reading = asyncio.create_task(chunks(await house.open(generation)))
        for _ in range(turns):
            await asyncio.sleep(0)
        await house.write(generation, [2])
        await house.room.scripts.end(ended(generation), 1)
        assert [chunk.get("system_fingerprint") for _, chunk in await reading] == ["fp", "fp"]


async def test_what_belongs_to_the_completion(each_house: House) -> None:
    """Id, time and models are the completion's own in every chunk, live and from the books."""
    record = accepted(model="fast", provider="local", resolved_model="smollm2")
    generation = await each_house.room.finished(texts(0, 4), record)
    live = await chunks(await each_house.open(generation))
    completion = await each_house.find(generation)
    for index, chunk in live:
        assert chunk == {
            "id": record.id,
            "object": "chat.completion.chunk",
            "created": completion.created_ms // 1000,
            "model": "fast",
            "resolved_model": "smollm2",
            "resolved_provider": "local",
            "system_fingerprint": "fp",
            "choices": [
                {"index": 0, "delta": {"content": str(index)}, "finish_reason": None, "logprobs": None}
            ],
        }
    await each_house.expire(generation)
    assert await chunks(await each_house.open(generation)) == live


# -- From the books


async def test_long_logs_from_the_books(each_house: House) -> None:
    """After the keys' time a long log comes from SQL, the same from every index; odd texts included."""
    odd = [
        b'"\\ud83d"',
        b'"\\u0000"',
        b'[{"index":0,"delta":{"n":123456789012345678901234567890}}]',
        b'~"why"',
    ]
    log = [*odd, *texts(len(odd), 2 * PAGE + 40)]
    generation = await each_house.room.finished(log, size=7)
    from_redis = await items(await each_house.open(generation))
    assert from_redis == list(enumerate(log))
    await each_house.expire(generation)
    for after in (-1, 0, 2, PAGE - 1, PAGE, 2 * PAGE, len(log) - 2, len(log) - 1, len(log), 10**9):
        assert await items(await each_house.open(generation, after)) == from_redis[after + 1 :]


async def test_a_log_that_leaves_redis_under_a_reader(each_house: House) -> None:
    """A reader in the middle of a log whose time is over goes on from the books, without gap or repeat."""
    log = texts(0, 2 * PAGE + 10)
    generation = await each_house.room.finished(log, size=1)
    follow = await each_house.open(generation, 4)
    first = await follow.next()
    assert 0 < len(first) < len(log)
    await each_house.expire(generation)
    rest = await items(follow)
    read = [(e.first + place, item) for e in first for place, item in enumerate(e.items)]
    assert read + rest == list(enumerate(log))[5:]


async def test_a_live_reader_who_sleeps_through_the_end(house: House) -> None:
    """Whoever stops reading while the log is written, ended, settled and gone, still gets all of it."""
    generation = await house.room.running()
    await house.write(generation, [1])
    follow = await house.open(generation)
    assert [e.first for e in await follow.next()] == [0]
    reader = follow._reader
    assert reader is not None
    reader.poke(0)  # what waits for the reader is to be read again, as after an overflow
    await house.write(generation, [1] * 20, 1)
    await house.room.scripts.end(ended(generation), 1)
    await house.expire(generation)
    assert await items(follow) == numbered(1, 21)
    assert house.channels() == []


async def test_a_log_without_its_entries(house: House) -> None:
    """A reader doesn't wait for an end that is no longer there: it is sent to the books."""
    generation = await house.room.finished(texts(0, 4))
    follow = await house.open(generation)
    await house.settle()
    house.client.delete(house.room.redis.keys(generation).log(generation))
    async with asyncio.timeout(5):
        assert await items(follow) == numbered(0, 4)


@pytest.mark.parametrize("settled", [False, True])
async def test_an_answer_without_chunks(each_house: House, settled: bool) -> None:
    """An end alone is all that such a log has, wherever it is read."""
    generation = await each_house.room.finished([])
    if settled:
        await each_house.expire(generation)
    follow = await each_house.open(generation)
    assert follow.past_end
    assert await items(follow) == []


async def test_text_that_is_not_to_be_kept(each_house: House) -> None:
    """With ``store: false`` the text is there while Redis has it, and later there is none, also in mid-reading."""
    generation = await each_house.room.finished(texts(0, 2 * PAGE), accepted(store=False), size=1)
    follow = await each_house.open(generation)
    await follow.next()
    await each_house.expire(generation)
    with pytest.raises(NotFound, match="not stored"):
        await items(follow)
    with pytest.raises(NotFound, match="not stored"):
        await each_house.open(generation)
    assert await items(await each_house.open(generation, 2 * PAGE)) == []


async def test_a_deleted_completion(each_house: House) -> None:
    """Deleting takes the text from whoever is reading it, and nobody finds it any more."""
    generation = await each_house.room.finished(texts(0, 2 * PAGE), size=1)
    late = await each_house.open(generation)
    completion = late.completion
    follow = await each_house.open(generation)
    await follow.next()
    await each_house.settle()
    assert each_house.books.delete(generation)
    await Flights(each_house.room.redis).drop(generation, generation)
    for reading in (follow, late):
        with pytest.raises(NotFound, match=f"'{generation}' is gone"):
            await items(reading)
    assert await each_house.followers.finder.find(generation) is None
    with pytest.raises(NotFound, match="gone"):
        await each_house.followers.open(completion)


# -- Where a reader may start


async def test_places_that_are_not_there_yet(house: House) -> None:
    """An index past the tail of an unfinished log is a conflict that names the last one; the tail itself is fine."""
    generation = await house.room.accept()
    with pytest.raises(Conflict, match="Index 0 does not exist yet: the last one so far is -1"):
        await house.open(generation, 0)
    await house.room.claim(generation)
    await house.write(generation, [3])
    for after in (3, 4, 10**12):
        with pytest.raises(
            Conflict, match=f"Index {after} does not exist yet: the last one so far is 2"
        ) as no:
            await house.open(generation, after)
        assert (no.value.code, no.value.param) == ("index_out_of_range", "x-last-chunk-index")
    await until(lambda: house.channels() == [])
    reading = asyncio.create_task(items(await house.open(generation, 2)))
    await house.write(generation, [2], 3)
    await house.room.scripts.end(ended(generation), 1)
    assert await reading == numbered(3, 5)


async def test_past_the_end(each_house: House) -> None:
    """Past the end of a finished log there is the end, at once, in Redis and in the books."""
    generation = await each_house.room.finished(texts(0, 3))
    for _ in range(2):
        for after in (2, 3, 10**12):
            follow = await each_house.open(generation, after)
            assert follow.past_end
            async with asyncio.timeout(5):
                (entry,) = await follow.next()
            assert entry.end is not None
            assert (entry.first, entry.items, entry.end.state) == (3, [], "completed")
            follow.close()
        assert not (await each_house.open(generation, 1)).past_end
        await each_house.expire(generation)


# -- Ends that are not whole


FAILURE = Failure("provider_error", "Too many.", "rate_limit", "model", 429, 429)


@pytest.mark.parametrize(
    ("record", "failure"),
    [
        ({"state": State.FAILED, "failure": FAILURE}, FAILURE),
        ({"state": State.FAILED}, Failure("failed", "The completion failed.")),
        (
            {"state": State.CANCELLED},
            Failure("cancelled", "The completion was cancelled.", "cancelled", None, 409),
        ),
    ],
)
async def test_ends_that_are_not_whole(each_house: House, record: dict[str, Any], failure: Failure) -> None:
    """Live, late and from the books a reader gets the chunks there are, and then the very same failure."""
    generation = await each_house.room.running()

    async def read(follow: Follow) -> tuple[list[int], Failure]:
        indexes: list[int] = []
        with pytest.raises(GenerationFailed) as failed:
            async for index, _ in follow.chunks(renderer_for(follow.completion)):
                indexes.append(index)
        return indexes, failed.value.cause

    live = asyncio.create_task(read(await each_house.open(generation)))
    await each_house.write(generation, [2, 1])
    await each_house.room.scripts.end(ended(generation, **record), 1)
    assert await live == ([0, 1, 2], failure)
    assert await read(await each_house.open(generation)) == ([0, 1, 2], failure)
    with pytest.raises(GenerationFailed, match=failure.message):
        follow = await each_house.open(generation)
        await collect(follow, renderer_for(follow.completion))
    await each_house.expire(generation)
    assert await read(await each_house.open(generation, 0)) == ([1, 2], failure)


async def test_cancelled_before_the_start(each_house: House) -> None:
    """Who waits for work that is cancelled in the queue gets its end."""
    generation = await each_house.room.accept()
    reading = asyncio.create_task(chunks(await each_house.open(generation)))
    await each_house.room.scripts.cancel(ended(generation, State.CANCELLED), "interactive")
    with pytest.raises(GenerationFailed, match="cancelled"):
        await reading
    await each_house.expire(generation)
    with pytest.raises(GenerationFailed, match="cancelled"):
        await chunks(await each_house.open(generation))


# -- Collecting


def piece(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish}


def call(index: int, **function: str) -> dict[str, Any]:
    id = {"id": f"call_{index}", "type": "function"} if "name" in function else {}
    return {"index": index, **id, "function": function}


async def stream(house: House, generation: str, sent: Sequence[dict[str, Any]], size: int) -> None:
    """Chunks as a provider sends them, through the encoder."""
    encoder = ChunkEncoder()
    encoded = [encoder.encode(msgspec.json.encode({"id": "x", "object": "y", **chunk})) for chunk in sent]
    found = [item for item in encoded if item is not None]
    for first in range(0, len(found), size):
        part = found[first : first + size]
        head = encoder.head if first == 0 else b""
        await house.room.scripts.append(generation, 1, Batch(first, len(part), b"\n".join(part), head))
    await house.room.scripts.end(ended(generation, finish_reasons=["stop"]), 1)


@pytest.mark.parametrize("size", [1, 3])
async def test_collecting(each_house: House, size: int) -> None:
    """Text, reasoning, tool calls, several choices and usage are put together, live, late and from the books."""
    usage = {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}
    sent: list[dict[str, Any]] = [
        {"system_fingerprint": "fp_1", "choices": [piece(role="assistant", content="")]},
        {"system_fingerprint": "fp_1", "choices": [piece(reasoning_content="Let ")]},
        {"system_fingerprint": "fp_1", "choices": [piece(reasoning_content="me.")]},
        {"system_fingerprint": "fp_1", "choices": [piece(content="Hé")]},
        {"system_fingerprint": "fp_1", "choices": [piece(1, role="assistant", content="Other")]},
        {"system_fingerprint": "fp_1", "choices": [piece(content="llo")]},
        {"system_fingerprint": "fp_1", "choices": [piece(1, tool_calls=[call(0, name="f", arguments="")])]},
        {"system_fingerprint": "fp_1", "choices": [piece(1, tool_calls=[call(1, name="g", arguments="")])]},
        {"system_fingerprint": "fp_1", "choices": [piece(1, tool_calls=[call(0, arguments='{"a":')])]},
        {"system_fingerprint": "fp_1", "choices": [piece(1, tool_calls=[call(1, arguments="{}")])]},
        {"system_fingerprint": "fp_1", "choices": [piece(1, tool_calls=[call(0, arguments="1}")])]},
        {"system_fingerprint": "fp_1", "choices": [piece(0, "stop"), piece(1, "tool_calls")]},
        {"system_fingerprint": "fp_1", "choices": [], "usage": usage},
    ]
    generation = await each_house.room.running()

    async def whole(follow: Follow) -> dict[str, Any]:
        return await collect(follow, renderer_for(follow.completion))

    live = asyncio.create_task(whole(await each_house.open(generation)))
    await stream(each_house, generation, sent, size)
    completion = await each_house.find(generation)
    answer = await live
    assert answer == {
        "id": generation,
        "object": "chat.completion",
        "created": completion.created,
        "model": "fake",
        "resolved_model": "m",
        "resolved_provider": "fake",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Héllo",
                    "refusal": None,
                    "reasoning_content": "Let me.",
                    "reasoning": "Let me.",
                },
                "logprobs": None,
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {
                    "role": "assistant",
                    "content": "Other",
                    "refusal": None,
                    "tool_calls": [
                        {
                            "id": "call_0",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"a":1}'},
                        },
                        {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            },
        ],
        "usage": usage,
    }
    assert await whole(await each_house.open(generation)) == answer
    await each_house.expire(generation)
    assert await whole(await each_house.open(generation)) == answer


# -- Finding


async def test_finding(each_house: House) -> None:
    """Redis and the books tell the same of a completion that has ended; of an unknown one neither tells anything."""
    record = accepted(end_user="ada", metadata={"run": "7"})
    generation = await each_house.room.finished(texts(0, 3), record)
    live = await each_house.find(generation)
    assert live.live is not None
    assert (live.state, live.next, live.end_user, live.metadata) == (
        State.COMPLETED,
        3,
        "ada",
        {"run": "7"},
    )
    await each_house.expire(generation)
    stored = await each_house.find(generation)
    assert stored.usage is not None
    assert msgspec.structs.replace(stored, usage=None) == msgspec.structs.replace(
        live, live=None, record=None
    )
    assert await each_house.followers.finder.find(accepted().id) is None


async def test_a_completion_that_ended_since_it_was_found(each_house: House) -> None:
    """Between finding and opening the log may end, settle and leave: the reader gets it all the same."""
    generation = await each_house.room.running()
    await each_house.write(generation, [2])
    completion = await each_house.find(generation)
    await each_house.write(generation, [2], 2)
    await each_house.room.scripts.end(ended(generation), 1)
    follow = await each_house.followers.open(completion, 3)  # an index that was not there when it was found
    assert await items(follow) == []
    await each_house.expire(generation)
    assert await items(await each_house.followers.open(completion, 0)) == numbered(1, 4)


# -- Leaving


async def test_a_reader_who_is_cancelled(house: House) -> None:
    """A follow that is cancelled while it waits leaves no subscription and no connection of its own behind."""
    generation = await house.room.running()
    await house.write(generation, [2])
    before = len(asyncio.all_tasks())
    got: list[int] = []

    async def read() -> None:
        follow = await house.open(generation)
        async for index, _ in follow.chunks(renderer_for(follow.completion)):
            got.append(index)

    readings = [asyncio.create_task(read()) for _ in range(5)]
    await until(lambda: len(got) == 10)
    assert house.channels() == [house.room.redis.keys(generation).channel(generation)]
    for reading in readings:
        reading.cancel()
    results = await asyncio.gather(*readings, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await until(lambda: house.channels() == [])
    assert not house.followers.hub._readers
    assert len(asyncio.all_tasks()) <= before + 1  # the hub's own task


async def test_a_reader_who_looks_again_and_again(house: House) -> None:
    """Giving up a wait, at whatever moment, loses nothing: the next one goes on where the last one stood."""
    generation = await house.room.running()
    follow = await house.open(generation)
    got: list[tuple[int, bytes]] = []

    async def write() -> None:
        tail = 0
        for size in [1, 2, 3] * 20:
            tail = await house.write(generation, [size], tail)
        await house.room.scripts.end(ended(generation), 1)

    writing = asyncio.create_task(write())
    turns = 0
    while follow.end is None:
        waiting = asyncio.create_task(follow.next())
        for _ in range(turns := (turns + 1) % 30):
            await asyncio.sleep(0)
        waiting.cancel()
        try:
            entries = await waiting
        except asyncio.CancelledError:
            continue
        got += [(e.first + place, item) for e in entries for place, item in enumerate(e.items)]
    await writing
    assert got == numbered(0, 120)
    follow.close()
