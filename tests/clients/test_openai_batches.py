"""Batches through the ``openai`` SDK as it comes, with nothing but another base URL."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.support.api import asking, ordered
from tests.support.stack import Stack
from tests.support.valkey import wait_until


@pytest.fixture
def client(each_stack: Stack) -> Iterator[openai.OpenAI]:
    with each_stack.api() as api:
        url = f"{each_stack.url}/v1"
        with openai.OpenAI(api_key=api.api_key, base_url=url, max_retries=2, timeout=30) as client:
            yield client


def row(custom_id: str, **fields: Any) -> dict[str, Any]:
    made = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return {**made, "body": asking(custom_id), **fields}


def make(client: openai.OpenAI, rows: list[dict[str, Any]], **fields: Any) -> Batch:
    data = io.BytesIO(b"".join(json.dumps(r).encode() + b"\n" for r in rows))
    file = client.files.create(file=("input.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **fields
    )


def until(client: openai.OpenAI, batch: Batch, *statuses: str) -> Batch:
    seen: list[Batch] = []

    def there() -> bool:
        seen.append(client.batches.retrieve(batch.id))
        return seen[-1].status in statuses

    wait_until(there, 60, f"a batch that is {' or '.join(statuses)}")
    return seen[-1]


def test_a_batch_is_made_validated_listed_and_cancelled(client: openai.OpenAI) -> None:
    slow = [row(f"r{n}", body=asking(f"{n}", fake={"headers_delay_ms": 30_000})) for n in range(150)]
    batch = make(client, slow, metadata={"run": "1"}, extra_body={"max_concurrency": 2})
    assert (batch.object, batch.metadata, batch.errors) == ("batch", {"run": "1"}, None)
    assert batch.request_counts is not None
    assert batch.to_dict()["max_concurrency"] == 2
    running = until(client, batch, "in_progress")
    assert running.request_counts is not None
    assert (running.request_counts.total, running.request_counts.completed) == (150, 0)
    assert running.in_progress_at is not None
    assert running.to_dict()["model"] == "fake"
    assert [found.id for found in client.batches.list(limit=10)] == [batch.id]
    stopping = client.batches.cancel(batch.id)
    assert stopping.status == "cancelling"
    assert stopping.cancelling_at is not None
    assert client.batches.cancel(batch.id).status in ("cancelling", "finalizing", "cancelled")


def test_the_tutorial_from_upload_to_results(client: openai.OpenAI) -> None:
    """As OpenAI's guide has it: answers by ``custom_id``, and what the provider refused in the error file."""
    refused = {"status": 400, "error": {"message": "no", "code": "bad_words"}}
    rows = [row(f"task-{n}", body=asking(f"task {n}", fake={"chunks": n + 1})) for n in range(4)]
    rows += [row("refused", body=asking("refused", fake=refused))]
    batch = until(client, make(client, rows), "completed")
    assert batch.request_counts is not None
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (5, 4, 1)
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    output = client.files.retrieve(batch.output_file_id)
    content = client.files.content(batch.output_file_id).content
    assert (output.purpose, output.status, output.bytes) == ("batch_output", "processed", len(content))
    results = [json.loads(line) for line in content.splitlines()]
    assert [line["custom_id"] for line in results] == [f"task-{n}" for n in range(4)]
    for n, line in enumerate(results):
        assert line["id"].startswith("batch_req_")
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        assert line["response"]["body"]["choices"][0]["message"]["content"] == ordered(n + 1)
    (line,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
    assert (line["custom_id"], line["response"]["status_code"]) == ("refused", 400)
    assert line["response"]["body"]["error"]["message"] == "no"
    usage = batch.to_dict()["usage"]
    assert isinstance(usage, dict)
    assert usage["output_tokens"] == 1 + 2 + 3 + 4


def test_a_batch_of_bad_lines_fails_and_says_why(client: openai.OpenAI) -> None:
    batch = make(client, [row("a"), row("a"), row("b", method="GET"), row("c", body={"model": "fake"})])
    failed = until(client, batch, "failed")
    assert failed.errors is not None
    assert failed.errors.data is not None
    told = [(error.line, error.code, error.param) for error in failed.errors.data]
    assert told == [
        (2, "duplicate_custom_id", "custom_id"),
        (3, "invalid_method", "method"),
        (4, "invalid_request", "body.messages"),
    ]
    assert failed.failed_at is not None
    assert failed.request_counts is not None
    assert failed.request_counts.total == 0
    with pytest.raises(openai.ConflictError, match="can't be cancelled"):
        client.batches.cancel(batch.id)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_" + "0" * 32)
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(
            input_file_id=batch.input_file_id,
            endpoint="/v1/embeddings",
            completion_window="24h",
        )
    assert refused.value.param == "endpoint"


def test_pages_of_batches_follow_each_other(client: openai.OpenAI) -> None:
    made = [make(client, [row("a", method="GET")]).id for _ in range(5)]
    assert [found.id for found in client.batches.list(limit=2)] == made[::-1]
