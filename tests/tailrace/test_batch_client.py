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


async def test_a_batch_that_is_not_there(stack: Stack, api: Api) -> None:
    async with tailrace.Client(stack.url, api.api_key) as client:
        with pytest.raises(tailrace.NotFound):
            await client.batches.batch("batch_" + "0" * 32).retrieve()
        with pytest.raises(tailrace.APIError):
            await client.batches.create("file-" + "0" * 32)
