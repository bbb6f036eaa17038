"""A row of a batch is a completion like any other: followed, cancelled, deleted, shared, failed over, counted."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.support.api import CHAT, Api, asking, ordered
from tests.support.stack import Stack
from tests.support.valkey import wait_until
from tests.tailrace.command import command, environment

#: An answer that takes some seconds.
SLOW = {"chunks": 100, "interval_ms": 50}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(aliases={"one-or-other": ["nowhere:fake", "fake:fake-b"]}) as stack:
        yield stack
        stack.check_balanced()


class Batch:
    """A batch made over HTTP."""

    def __init__(self, api: Api, bodies: Sequence[dict[str, Any]], **fields: Any) -> None:
        lines = [
            json.dumps({"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": body})
            for n, body in enumerate(bodies)
        ]
        files = {"file": ("in.jsonl", "\n".join(lines).encode())}
        file = api.post("/v1/files", data={"purpose": "batch"}, files=files).json()
        asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", **fields}
        self._api = api
        self.id = api.post("/v1/batches", json=asked).json()["id"]

    def now(self) -> dict[str, Any]:
        return self._api.get(f"/v1/batches/{self.id}").json()

    def over(self) -> dict[str, Any]:
        wait_until(
            lambda: self.now()["status"] in ("completed", "failed", "cancelled"), 120, "end of a batch"
        )
        return self.now()

    def lines(self) -> list[dict[str, Any]]:
        """What all its rows have come to."""
        self.over()
        results = self._api.get(f"/v1/batches/{self.id}/results").text
        return [json.loads(line) for line in results.splitlines()]

    def bodies(self) -> list[dict[str, Any]]:
        return [line["response"]["body"] for line in self.lines()]


def running(api: Api, name: str) -> str:
    """The id of the completion with that metadata, once it has said something."""
    found: list[str] = []

    def there() -> bool:
        data = api.get(CHAT, params={"metadata[name]": name}).json()["data"]
        found[:] = [item["id"] for item in data if item["status"] == "in_progress"]
        return bool(found)

    wait_until(there, 60, f"completion {name} that runs")
    return found[0]


def test_a_row_is_followed_while_it_runs(api: Api, stack: Stack) -> None:
    """Over HTTP, and with ``tailrace tail``: it is found by its metadata in the list of completions."""
    batch = Batch(api, [asking("followed", fake=SLOW, metadata={"name": "followed"})])
    id = running(api, "followed")
    with api.events(method="GET", url=f"{CHAT}/{id}/stream") as stream:
        assert stream.next(3)
        assert batch.now()["status"] == "in_progress"
        told = subprocess.run(
            command("tail", id), env=environment(URL=stack.url, API_KEY=api.api_key),
            capture_output=True, text=True, timeout=90, check=True,
        )  # fmt: skip
        stream.rest()
    assert told.stdout.strip() == ordered(100).strip()
    (body,) = batch.bodies()
    assert (body["id"], body["choices"][0]["message"]["content"]) == (id, ordered(100))


def test_a_row_is_cancelled_alone(api: Api) -> None:
    """As any completion is; its batch goes on, and has it among its failed rows."""
    bodies = [asking("cancelled alone", fake=SLOW, metadata={"name": "alone"}), asking("another")]
    batch = Batch(api, bodies)
    id = running(api, "alone")
    assert api.delete(f"{CHAT}/{id}").status_code == 409
    assert api.post(f"{CHAT}/{id}/cancel").status_code == 200
    cancelled, other = batch.lines()
    assert batch.now()["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert (cancelled["custom_id"], cancelled["response"]) == ("r0", None)
    assert cancelled["error"]["code"] == "batch_cancelled"
    assert other["response"]["status_code"] == 200


def test_an_answer_that_is_deleted_is_not_in_the_files(api: Api) -> None:
    slow = asking("slow", fake=SLOW)
    batch = Batch(api, [asking("deleted", metadata={"name": "deleted"}), slow])

    def answered() -> bool:
        return batch.now()["request_counts"]["completed"] == 1

    wait_until(answered, 60, "an answer")
    (item,) = api.get(CHAT, params={"metadata[name]": "deleted"}).json()["data"]
    assert api.delete(f"{CHAT}/{item['id']}").status_code == 200
    deleted, other = batch.lines()
    assert (deleted["response"], deleted["error"]["code"]) == (None, "answer_deleted")
    assert other["response"]["status_code"] == 200


def test_a_row_goes_on_when_a_client_that_joined_it_leaves(api: Api) -> None:
    """``x-on-disconnect: cancel`` cancels what is that client's alone."""
    body = asking("joined", temperature=0, fake=SLOW)
    batch = Batch(api, [body])
    api.backend.wait_until(lambda: bool(api.provider_requests("joined")))
    with api.events(body, headers={"x-on-disconnect": "cancel"}) as stream:
        assert stream.headers["x-cache"] == "join"
        joiner = stream.id
        stream.next(2)
    wait_until(lambda: api.stored(joiner)["status"] == "cancelled", 60, "cancelled joiner")
    (answer,) = batch.bodies()
    assert answer["choices"][0]["message"]["content"] == ordered(100)
    assert len(api.provider_requests("joined")) == 1


def test_choices_tools_and_aliases(api: Api) -> None:
    """Several choices and tool calls are in the answer; an alias goes on to its next target, and the row says so."""
    bodies = [
        asking("choices", n=2, fake={"chunks": 3}),
        asking(
            "tools", tools=[{"type": "function", "function": {"name": "tool_0"}}], fake={"tool_calls": True}
        ),
        asking("an alias", model="one-or-other", fake={"chunks": 3}),
        asking("joined choices", n=2, temperature=0, fake={"chunks": 3}),
        asking("joined choices", n=2, temperature=0, fake={"chunks": 3}),
    ]
    batch = Batch(api, bodies)
    choices, tools, alias, first, second = batch.bodies()
    assert [choice["index"] for choice in choices["choices"]] == [0, 1]
    assert choices["choices"][1]["message"]["content"] == " tok0'1 tok1'1 tok2'1"
    assert tools["choices"][0]["finish_reason"] == "tool_calls"
    assert len(tools["choices"][0]["message"]["tool_calls"]) == 2
    assert (alias["model"], alias["resolved_provider"], alias["resolved_model"]) == (
        "one-or-other",
        "fake",
        "fake-b",
    )
    assert first["choices"] == second["choices"]
    assert len(api.provider_requests("joined choices")) == 1


def test_usage_tells_batches_apart(api: Api) -> None:
    """By filter and by group, in the sums as in the batch's own."""
    batch = Batch(api, [asking(f"used {n}", fake={"chunks": 4}) for n in range(7)])
    assert batch.over()["usage"]["output_tokens"] == 28
    alone = api.plain("used alone", fake={"chunks": 4})
    assert alone.status_code == 200

    def sums(**query: str) -> dict[Any, int]:
        asked = {"start_time": str(int(time.time()) - 3600), "group_by": "batch", **query}
        data = api.get("/v1/organization/usage/completions", params=asked).json()["data"]
        results = [result for bucket in data for result in bucket["results"]]
        return {result["batch"]: result["num_model_requests"] for result in results}

    wait_until(lambda: sums() == {True: 7, False: 1}, 60, "usage of all")
    assert sums(batch="true") == {True: 7}
    assert sums(batch="false") == {False: 1}
