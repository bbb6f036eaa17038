"""Worker processes: many streams in one, a queue for each kind of work, and what a killed one leaves."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from producers.catalog import Catalog
from producers.publish import make_publisher
from producers.submit import Caller, Submitter
from schemas.keys import Keys
from schemas.request import validate_request
from schemas.settings import Settings
from schemas.states import Queue
from stores.config import read_providers
from stores.redis import Redis
from tests.support.api import CHAT, SEED, Api, asking, ordered, parse_frames, text_of
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once


def test_one_process_carries_hundreds_of_streams_at_once(api: Api, stack: Stack) -> None:
    """300 answers at the same time, each whole, with its own chunks in order."""
    streams = 300
    results: dict[int, str] = {}
    # All say their first word at the same time, so that the last is there before the first has ended.
    begin = time.monotonic() + 12

    async def one(client: httpx.AsyncClient, number: int) -> None:
        pieces = [f" {number}.{i}" for i in range(10)]
        wait = max(0.0, begin - time.monotonic())
        body = asking(fake={"pieces": pieces, "first_delay_ms": wait * 1000, "interval_ms": 200})
        async with client.stream("POST", SEED, json=body) as response:
            assert response.status_code == 200
            content = b"".join([piece async for piece in response.aiter_raw()])
        frames = [frame for frame in parse_frames([content]) if not frame.is_comment]
        assert frames[-1].event == "done"
        assert [frame.id for frame in frames] == list(range(len(frames)))
        results[number] = text_of(frame.data for frame in frames)

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=stack.url, headers=api.headers, timeout=60, limits=limits, verify=False
        ) as client:
            await asyncio.gather(*(one(client, number) for number in range(streams)))

    running = threading.Thread(target=lambda: asyncio.run(run()))
    running.start()
    wait_until(lambda: api.backend.active >= streams, seconds=60, what=f"{streams} streams at once")
    running.join(60)
    assert results == {n: "".join(f" {n}.{i}" for i in range(10)) for n in range(streams)}


class TestKilled:
    def test_a_killed_worker_costs_its_readers_nothing(self, api: Api, stack: Stack) -> None:
        """Within its lease and a margin others go on with what it streamed; streams of other workers never stop."""
        ids: list[str] = []
        lost: list[str] = []
        with stack.worker("victim", "interactive", 50) as victim:
            while len(lost) < 3:
                ids.append(
                    api.background(f"{len(ids)}", temperature=0, fake={"chunks": 200, "interval_ms": 30})
                )
                wait_until(lambda: "worker" in stack.state(ids[-1]), what="claim")
                if stack.worker_of(ids[-1]) is victim:
                    lost.append(ids[-1])
                assert len(ids) < 100
            wait_until(lambda: all(int(stack.state(i)["next"]) > 0 for i in lost), what="first chunks")
        for completion_id in ids:
            assert api.follow(completion_id).text == ordered(200)
        rows = stack.settled(*ids)
        assert {row.status for row in rows} == {"completed"}
        assert {row.id for row in rows if row.usage and row.usage.attempts > 1} == set(lost)

    def test_a_killed_gateway_costs_its_readers_nothing(self, api: Api, stack: Stack) -> None:
        """Another one goes on from the last chunk that came, without a gap or a repeat."""
        port = free_port()
        stack.add_gateway("second", port)
        body = asking(api.tenant, fake={"chunks": 60, "interval_ms": 25})
        other = Api(f"http://127.0.0.1:{port}", api.api_key, tenant=api.tenant, backend=api.backend)
        with other, other.events(body) as stream:
            frames = stream.next(8)
            stack.remove("second", signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                frames += stream.rest()
        headers = {"x-last-chunk-index": str(frames[-1].id)}
        frames += api.whole(body, headers=headers).frames
        assert [frame.id for frame in frames] == list(range(len(frames)))
        assert text_of(frame.data for frame in frames) == ordered(60)
        assert len(api.provider_requests(api.tenant)) == 1


def our_connections(stack: Stack) -> list[str]:
    """The connections for chunks and channels to Valkey; Celery's are those of another library."""
    rows: Any = stack.redis.client_list()
    return [row["id"] for row in rows if row["resp"] == "3" and not row.get("lib-name")]


def test_lost_connections_to_valkey_lose_no_chunk(api: Api, stack: Stack) -> None:
    """Workers and readers connect again, and nobody notices: no gap, no repeat, no error."""
    with api.events(asking(fake={"chunks": 100, "interval_ms": 20})) as stream:
        frames = stream.next(5)
        for _ in range(3):
            # Of gateway and worker one each for commands and channels, of the two control threads one each.
            wait_until(lambda: len(our_connections(stack)) >= 6, what="connections")
            for number in our_connections(stack):
                stack.redis.execute_command("CLIENT", "KILL", "ID", number)
            frames += stream.next(20)
        frames += stream.rest()
    assert [frame.id for frame in frames] == list(range(len(frames)))
    assert frames[-1].event == "done"
    assert text_of(frame.data for frame in frames) == ordered(100)
    assert api.follow(stream.id).frames == frames


class TestBulk:
    @asynccontextmanager
    async def submitter(self, stack: Stack) -> AsyncGenerator[Submitter]:
        settings = Settings(redis_url=stack.valkey.url, providers=stack.folder / "providers.toml")
        redis = await Redis.open(settings.redis_url)
        publisher = make_publisher(settings)
        try:
            async with httpx.AsyncClient(verify=False) as client:
                yield Submitter(redis, Catalog(read_providers(settings), client), publisher, stack.books)
        finally:
            await publisher.close()
            redis.close()
            await asyncio.sleep(0)  # the transports' own goodbye

    async def submit(self, stack: Stack, api: Api, **more: Any) -> str:
        async with self.submitter(stack) as submitter:
            caller = Caller(api.tenant, "key_of_a_batch")
            request = validate_request(asking(api.tenant, **more))
            return (await submitter.submit(request, caller, queue=Queue.BULK)).id

    async def test_bulk_work_is_done_by_the_bulk_worker(self, stack: Stack, api: Api) -> None:
        """On its own queue, also while the interactive worker can't; its log is kept for seconds only."""
        with stack.paused("interactive0"):
            completion_id = await self.submit(stack, api)
            (row,) = await asyncio.to_thread(stack.settled, completion_id)
        assert (row.status, row.queue) == ("completed", "bulk")
        keys = Keys(0)
        for name in (keys.gen(completion_id), keys.log(completion_id)):
            assert int(stack.redis.pttl(name)) <= 5000
        assert api.stored(completion_id)["choices"][0]["message"]["content"] == ordered()

    async def test_interactive_work_waits_for_its_own_worker(self, stack: Stack, api: Api) -> None:
        """The bulk worker idles beside it."""
        with stack.paused("interactive0"):
            completion_id = api.background(api.tenant)
            await asyncio.to_thread(stack.settled, await self.submit(stack, api))
            assert stack.state(completion_id)["state"] == "queued"
            assert len(api.provider_requests(api.tenant)) == 1
        assert api.follow(completion_id).text == ordered()
        assert api.get(f"{CHAT}/{completion_id}").json()["status"] == "completed"
