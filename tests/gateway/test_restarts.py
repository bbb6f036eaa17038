"""An answer that is started again under its readers: streams say so and end, whole answers are the final attempt's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest

from tests.support.api import CHAT, SEED, Api, asking, dump, error_of, text_of
from tests.support.attempts import Writer, told
from tests.support.generations import accepted, room
from tests.support.stack import Stack
from tests.support.valkey import wait_until

LAST = "x-last-chunk-index"
T = TypeVar("T")


def played(stack: Stack, work: Callable[[Writer], Awaitable[None]], writer: Writer) -> Writer:
    """``work`` done by a worker of ours."""

    async def play() -> None:
        async with room(stack.valkey.url) as space:
            writer.room = space
            await work(writer)

    asyncio.run(play())
    return writer


def begun(stack: Stack, api: Api, work: Callable[[Writer], Awaitable[None]]) -> Writer:
    """A completion of the tenant whose worker we are, after ``work``."""

    async def begin() -> Writer:
        async with room(stack.valkey.url) as space:
            generation = await space.running(accepted(tenant=api.tenant))
            writer = Writer(space, generation)
            await work(writer)
            return writer

    return asyncio.run(begin())


def taken_over(stack: Stack, completion_id: str) -> Writer:
    """A completion that a real worker has begun, and has no more."""

    async def take() -> Writer:
        async with room(stack.valkey.url) as space:
            return await Writer.instead(space, completion_id)

    return asyncio.run(take())


async def three(writer: Writer) -> None:
    await writer.write(2, 1)


async def again(writer: Writer) -> None:
    """A marker, four chunks, and the end."""
    await writer.restart()
    await writer.write(1, 3)
    await writer.end()


async def again_after_a_rollback(writer: Writer) -> None:
    await writer.restart(rolled_back=True)
    await writer.write(1, 3)
    await writer.end()


both = pytest.mark.parametrize("work", [again, again_after_a_rollback])


@both
def test_the_seeds_stream_ends_with_an_error_event(stack: Stack, api: Api, work: Any) -> None:
    """It says where to start; its id is one with which an EventSource that comes back is stopped."""
    writer = begun(stack, api, three)
    url = f"{CHAT}/{writer.generation}/stream"
    with api.events(url=url, method="GET") as stream:
        assert [told(f.id or 0, f.data) for f in stream.next(3)] == [(0, 1), (1, 1), (2, 1)]
        played(stack, work, writer)
        (last,) = stream.rest()
    assert last.event == "error"
    assert last.data.startswith(f"restarted: The answer was started again at index {writer.base};")
    assert last.data.endswith("Start from -1.")
    assert last.id == writer.base - 1
    answer = api.get(url, headers={"Last-Event-ID": str(last.id)})
    assert (answer.status_code, answer.headers["x-base-index"]) == (409, str(writer.base))
    whole = api.follow(writer.generation, -1)
    assert [told(*pair) for pair in whole.chunks.items()] == writer.answer
    assert whole.last.event == "done"


@both
def test_resuming_before_the_final_attempt_is_a_conflict(each_stack: Stack, each_api: Api, work: Any) -> None:
    """By every way to resume, from Redis and from the books; from its first chunk on all is as ever."""
    stack, api = each_stack, each_api
    writer = played(stack, work, begun(stack, api, three))
    for _ in ("Redis", "the books"):
        for after in {0, 2, writer.base - 1}:
            answers: list[httpx.Response] = [
                api.post(url, json=asking(), headers={"x-completion-id": writer.generation, LAST: str(after)})
                for url in (SEED, CHAT)
            ]
            answers.append(api.get(f"{CHAT}/{writer.generation}/stream?after={after}"))
            for answer in answers:
                assert answer.status_code == 409
                error = error_of(answer)
                assert (error["code"], error["param"]) == ("restarted", LAST)
                assert "Start from -1" in error["message"]
                assert answer.headers["x-base-index"] == str(writer.base)
        for after in range(writer.base, writer.tail):
            headers = {"x-completion-id": writer.generation, LAST: str(after)}
            found = api.seed(headers=headers).chunks
            assert [told(*pair) for pair in found.items()] == [p for p in writer.answer if p[0] > after]
        assert api.get(f"{CHAT}/{writer.generation}/stream?after={writer.tail}").status_code == 204
        stack.forget(writer.generation)


@both
def test_whole_answers_are_those_of_the_final_attempt(each_stack: Stack, each_api: Api, work: Any) -> None:
    """Where it is retrieved and where it is resumed without streaming, from Redis and from the books."""
    stack, api = each_stack, each_api
    writer = played(stack, work, begun(stack, api, three))
    for _ in ("Redis", "the books"):
        resumed = api.plain(headers={"x-completion-id": writer.generation, LAST: "-1"}).json()
        for body in (api.stored(writer.generation), resumed):
            assert body["choices"][0]["message"]["content"] == writer.text
            assert body["attempt"] == 2
        stack.forget(writer.generation)


def test_openais_stream_ends_with_an_error_chunk(stack: Stack, api: Api) -> None:
    """And without ``[DONE]``."""
    body = asking(api.tenant, stream=True, fake={"chunks": 50, "stall_after": 3})
    with api.events(body, url=CHAT) as stream:
        stream.next(4)
        writer = taken_over(stack, stream.id)
        played(stack, again, writer)
        (last,) = stream.rest()
    assert last.data["error"]["code"] == "restarted"
    assert f"index {writer.base};" in last.data["error"]["message"]
    assert api.follow(stream.id).text == writer.text


def test_who_waits_for_the_whole_answer_gets_the_final_attempt(stack: Stack, api: Api) -> None:
    """A request without ``stream`` hears of no restart."""
    answers: list[httpx.Response] = []
    body = asking(api.tenant, fake={"chunks": 50, "stall_after": 3})
    waiter = threading.Thread(target=lambda: answers.append(api.post(CHAT, content=dump(body))))
    waiter.start()
    with Api(str(api.base_url), api.api_key, tenant=api.tenant, backend=api.backend) as other:
        wait_until(lambda: bool(other.get(CHAT).json()["data"]), what="completion in the list")
        (item,) = other.get(CHAT).json()["data"]
        wait_until(lambda: int(stack.state(item["id"]).get("next", 0)) > 3, what="chunks")
    writer = taken_over(stack, item["id"])
    played(stack, again, writer)
    waiter.join(20)
    (answer,) = answers
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == writer.text


def test_a_stream_that_was_given_nothing_yet_goes_on(stack: Stack, api: Api) -> None:
    """Its reader has nothing that was abandoned, and begins at the new attempt's first chunk."""
    writer = begun(stack, api, three)

    async def silently(writer: Writer) -> None:
        await writer.restart()

    played(stack, silently, writer)
    with api.events(url=f"{CHAT}/{writer.generation}/stream", method="GET") as stream:
        played(stack, silently, writer)

        async def finish(writer: Writer) -> None:
            await writer.write(2)
            await writer.end()

        played(stack, finish, writer)
        frames = stream.rest()
    assert text_of(f.data for f in frames) == writer.text
    assert frames[-1].event == "done"
