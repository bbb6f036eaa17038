"""Batches from Python, against the whole pipeline."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import tailrace
from tests.support.api import Api
from tests.support.stack import Stack
from tests.tailrace.server import Reply, Request, stand_in


def lines(count: int, **body: Any) -> bytes:
    rows = [
        {
            "custom_id": f"c{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "fake", "messages": [{"role": "user", "content": f"client {n}"}], **body},
        }
        for n in range(count)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def test_from_a_file_to_its_results(stack: Stack, api: Api, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(3, fake={"chunks": 1}))
    async with tailrace.Client(stack.url, api.api_key) as client:
        batch = await client.batches.submit(
            tmp_path / "in.jsonl", max_concurrency=2, metadata={"name": "mine"}
        )
        looks = [now async for now in batch.watch()]
        assert looks[-1]["status"] == "completed"
        assert looks[-1]["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
        assert all(one != other for one, other in itertools.pairwise(looks))
        ids = [json.loads(line)["custom_id"] async for line in batch.results()]
        assert ids == ["c0", "c1", "c2"]
        await batch.save(tmp_path / "out.jsonl")
        assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
        assert [there["id"] async for there in client.batches.list()] == [batch.id]
        assert await batch.failures() == []


async def test_one_key_makes_one_batch(stack: Stack, api: Api) -> None:
    async with tailrace.Client(stack.url, api.api_key) as client:
        file = await client.files.upload(io.BytesIO(lines(1)), name="one.jsonl")
        assert (await client.files.retrieve(file["id"]))["filename"] == "one.jsonl"
        first = await client.batches.create(file["id"], idempotency_key="once")
        again = await client.batches.create(file["id"], idempotency_key="once")
        assert first.id == again.id
        await first.wait()
        into = io.BytesIO(b"head ")
        into.seek(5)
        assert await client.files.download(file["id"], into) == len(lines(1))
        assert into.getvalue() == b"head " + lines(1)
        await client.files.delete(file["id"])
        with pytest.raises(tailrace.NotFound):
            await client.files.retrieve(file["id"])


def test_without_asyncio(stack: Stack, api: Api, tmp_path: Path) -> None:
    with tailrace.SyncClient(stack.url, api.api_key) as client:
        batch = client.batches.submit(io.BytesIO(lines(2, fake=[{"status": 400}, {"chunks": 1}])))
        assert batch.wait()["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        (reason,) = batch.failures()
        assert (reason["status"], reason["count"]) == (400, 1)
        retried = batch.retry()
        assert [now["status"] for now in retried.watch()][-1] == "completed"
        assert len(list(retried.results())) == 1
        retried.save(tmp_path / "out.jsonl")
        assert {there["id"] for there in client.batches.list()} == {batch.id, retried.id}


async def test_an_upload_and_a_download_that_break_off_start_again() -> None:
    """What comes out is whole, and nothing of the broken try is in it."""
    content = b"line\n" * 50_000

    def answer(request: Request) -> Reply:
        if request.path == "/v1/files":
            return Reply.of({"id": "file-1", "bytes": request.body.count(b"line\n")})
        return Reply(200, content)

    async with stand_in(answer) as server, tailrace.Client(server.url, "sk-test") as client:
        server.faults = [Reply.error(503, "unavailable", Retry_After="0"), Reply(200, b"{}", cut=0)]
        file = await client.files.upload(io.BytesIO(content))
        assert file["bytes"] == 50_000
        assert [request.method for request in server.requests] == ["POST"] * 3
        server.faults = [Reply(200, content, cut=100_000)]
        into = io.BytesIO(b"head ")
        into.seek(5)
        assert await client.files.download("file-1", into) == len(content)
        assert into.getvalue() == b"head " + content


async def test_watching_outlives_a_server_that_restarts() -> None:
    looks = iter(["validating", "in_progress", "completed"])

    def answer(request: Request) -> Reply:
        return Reply.of({"id": "batch_1", "status": next(looks)})

    async with stand_in(answer) as server, tailrace.Client(server.url, "sk-test", retries=0) as client:
        server.faults = [Reply.error(503, "unavailable"), None, Reply(200, b"{}", cut=1), None]
        watched = client.batches.batch("batch_1").watch()
        assert [now["status"] async for now in watched] == ["validating", "in_progress", "completed"]


async def test_a_batch_that_is_not_there(stack: Stack, api: Api) -> None:
    async with tailrace.Client(stack.url, api.api_key) as client:
        with pytest.raises(tailrace.NotFound):
            await client.batches.batch("batch_" + "0" * 32).retrieve()
        with pytest.raises(tailrace.APIError):
            await client.batches.create("file-" + "0" * 32)
