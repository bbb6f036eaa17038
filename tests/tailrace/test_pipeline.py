"""The client against the real pipeline: gateway, Celery workers, Valkey, books, and a backend that breaks to order."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

import tailrace
from tests.support.attempts import Writer
from tests.support.generations import room
from tests.support.stack import Stack
from tests.tailrace.command import run

QUESTION: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def key(stack: Stack) -> str:
    """That of a tenant of this test's own."""
    return stack.key(stack.tenant("client"))[1]


@pytest.fixture
async def client(stack: Stack, key: str) -> AsyncGenerator[tailrace.Client]:
    async with tailrace.Client(stack.url, key) as client:
        yield client


async def test_submit_follow_collect(client: tailrace.Client) -> None:
    """What is read chunk by chunk, from any index, is what the result says."""
    completion = await client.submit(**QUESTION, fake={"chunks": 20, "interval_ms": 5})
    chunks = [chunk async for chunk in completion.chunks()]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    result = await completion.result()
    assert result["choices"][0]["message"]["content"] == "".join(chunk.text for chunk in chunks)
    assert result["usage"]["completion_tokens"] > 0
    for after in (0, 7, len(chunks) - 2, len(chunks) - 1, len(chunks) + 5):
        assert [chunk async for chunk in completion.chunks(after)] == chunks[after + 1 :]


async def test_a_hundred_at_once(client: tailrace.Client) -> None:
    completions = await asyncio.gather(
        *(client.submit(**QUESTION, fake={"text": f"answer {n}", "interval_ms": 1}) for n in range(100))
    )
    texts = await asyncio.gather(*(completion.text() for completion in completions))
    assert texts == [f"answer {n}" for n in range(100)]


async def test_a_cancel_of_a_live_stream(client: tailrace.Client) -> None:
    """Its reader and whoever waits for its result are told."""
    completion = await client.submit(**QUESTION, fake={"chunks": 1000, "interval_ms": 20})
    waiting = asyncio.create_task(completion.result())
    chunks = completion.chunks()
    await anext(chunks)
    assert await completion.status() == "in_progress"
    assert await completion.cancel() == "cancelled"
    with pytest.raises(tailrace.CompletionCancelled):
        async for _ in chunks:
            pass
    with pytest.raises(tailrace.CompletionCancelled):
        await waiting


async def test_a_cancel_by_every_client(client: tailrace.Client, stack: Stack, key: str) -> None:
    """Without asyncio and from the command line too; partial text stays, and a finished one as it is."""
    order = {"chunks": 50, "stall_after": 3}
    for way in ("sync", "command"):
        completion = await client.submit(**QUESTION, fake=order)
        async with aclosing(completion.chunks()) as chunks:
            text = "".join([(await anext(chunks)).text for _ in range(4)])
        if way == "sync":

            def cancel(id: str = completion.id) -> str:
                with tailrace.SyncClient(stack.url, key) as sync:
                    return sync.completion(id).cancel()

            assert await asyncio.to_thread(cancel) == "cancelled"
        else:
            settings = {"URL": stack.url, "API_KEY": key}
            done = await asyncio.to_thread(run, "cancel", completion.id, settings=settings)
            assert (done.returncode, done.stdout) == (0, f"{completion.id}  cancelled\n"), done.stderr
        record = await completion.retrieve()
        assert (record["status"], record["choices"][0]["message"]["content"]) == ("cancelled", text)
    finished = await client.submit(**QUESTION)
    await finished.result()
    assert await finished.cancel() == "completed"


async def test_an_answer_that_is_started_again(client: tailrace.Client, stack: Stack, key: str) -> None:
    """Who reads chunks is told where the new attempt begins, with and without asyncio; who waits for the result
    gets that one."""
    completion = await client.submit(**QUESTION, fake={"chunks": 50, "stall_after": 3})
    chunks = completion.chunks()
    seen = [(await anext(chunks)).index for _ in range(4)]
    result = asyncio.create_task(completion.result())
    async with room(stack.valkey.url) as space:
        writer = await Writer.instead(space, completion.id)
        await writer.restart()
        await writer.write(2)
        with pytest.raises(tailrace.Restarted, match="started again") as told:
            await anext(chunks)
        assert told.value.base == writer.base == seen[-1] + 1

        def resume() -> None:
            with tailrace.SyncClient(stack.url, key) as sync, pytest.raises(tailrace.Restarted) as again:
                next(sync.completion(completion.id).chunks(after=1))
            assert again.value.base == writer.base

        await asyncio.to_thread(resume)
        await writer.write(1)
        await writer.end()
    assert (await result)["choices"][0]["message"]["content"] == writer.text
    found = [chunk async for chunk in completion.chunks()]
    assert ("".join(c.text for c in found), found[0].index) == (writer.text, writer.base)
    assert await completion.text() == writer.text


async def test_a_failure_of_the_provider(client: tailrace.Client) -> None:
    """The provider's own words reach the caller, live and later."""
    error = {"message": "the prompt is no good", "type": "invalid_request_error", "code": "bad_prompt"}
    completion = await client.submit(**QUESTION, fake={"status": 400, "error": error})
    with pytest.raises(tailrace.CompletionFailed, match="the prompt is no good") as caught:
        await completion.result()
    assert caught.value.code == "bad_prompt"
    with pytest.raises(tailrace.CompletionFailed, match="the prompt is no good"):
        await anext(completion.chunks())


async def test_refusals(client: tailrace.Client, stack: Stack) -> None:
    with pytest.raises(tailrace.InvalidRequest) as caught:
        await client.submit(**QUESTION, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.request_id
    with pytest.raises(tailrace.NotFound, match="no-such-model"):
        await client.submit(model="fake:no-such-model", messages=QUESTION["messages"])
    with pytest.raises(tailrace.NotFound):
        await client.completion("chatcmpl-nobody").status()
    async with tailrace.Client(stack.url, "tr-wrong") as stranger:
        with pytest.raises(tailrace.Unauthenticated):
            await stranger.models()


async def test_an_idempotency_key_adopts_the_completion(client: tailrace.Client) -> None:
    first = await client.submit(**QUESTION, idempotency_key="run-7-row-3")
    second = await client.submit(**QUESTION, idempotency_key="run-7-row-3")
    assert first.id == second.id
    with pytest.raises(tailrace.InvalidRequest) as caught:
        await client.submit(**QUESTION, seed=1, idempotency_key="run-7-row-3")
    assert caught.value.code == "idempotency_key_reused"
    await first.result()


async def test_an_end_user_sees_only_what_is_theirs(client: tailrace.Client, stack: Stack, key: str) -> None:
    async with tailrace.Client(stack.url, key, end_user="ann") as ann:
        hers = await ann.submit(**QUESTION)
        await hers.result()
    async with tailrace.Client(stack.url, key, end_user="bob") as bob:
        with pytest.raises(tailrace.NotFound):
            await bob.completion(hers.id).status()
    assert await client.completion(hers.id).status() == "completed"


async def test_listing_and_deleting(client: tailrace.Client, stack: Stack) -> None:
    made = [await client.submit(**QUESTION, metadata={"n": str(n % 2)}) for n in range(6)]
    for completion in made:
        await completion.result()
    await asyncio.to_thread(stack.settled, *(completion.id for completion in made))
    assert [c["id"] async for c in client.list(order="asc")] == [completion.id for completion in made]
    odd = [c["id"] async for c in client.list(order="desc", metadata={"n": "1"}, status="completed", limit=2)]
    assert odd == [made[5].id, made[3].id]
    await made[0].delete()
    with pytest.raises(tailrace.NotFound):
        await made[0].result()


async def test_tail_of_the_real_thing(client: tailrace.Client, stack: Stack, key: str) -> None:
    """Odd characters arrive as they are, also where the terminal is no Unicode one."""
    completion = await client.submit(**QUESTION, fake={"pieces": ["größer ", "als 水", "\ud83d\ude00"]})
    settings = {"URL": stack.url, "API_KEY": key}
    done = await asyncio.to_thread(run, "tail", completion.id, settings=settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "größer als 水\U0001f600\n", "")
    os.environ["PYTHONIOENCODING"] = "ascii"
    try:
        done = await asyncio.to_thread(run, "tail", completion.id, settings=settings)
    finally:
        del os.environ["PYTHONIOENCODING"]
    assert (done.returncode, done.stdout, done.stderr) == (0, "gr??er als ??\n", "")


async def test_the_cache(stack: Stack, client: tailrace.Client, key: str) -> None:
    """What it has saved, and dropping it: from Python, and from the command line."""
    ids: list[str] = []
    for _ in range(2):
        completion = await client.submit(**QUESTION, temperature=0)
        await completion.result()
        ids.append(completion.id)
    await asyncio.to_thread(stack.settled, *ids)
    found = await client.cache()
    assert (found["entries"], found["hits"], found["misses"]) == (1, 1, 1)

    def command(*arguments: str) -> str:
        done = run("cache", *arguments, settings={"URL": stack.url, "API_KEY": key})
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    shown = await asyncio.to_thread(command, "stats")
    assert "hit rate      50%" in shown
    assert json.loads(await asyncio.to_thread(command, "stats", "--json")) == found
    assert (await client.purge_cache(older_than=3600))["entries"] == 0
    assert "0 results" in await asyncio.to_thread(command, "purge", "--older-than", "7d")
    gone = json.loads(await asyncio.to_thread(command, "purge", "--model", "fake", "--json"))
    assert (gone["entries"], gone["bytes"]) == (1, found["bytes"])
    done = run("cache", "purge", "--older-than", "soon", settings={"URL": stack.url, "API_KEY": key})
    assert done.returncode == 2
    assert "duration" in done.stderr
