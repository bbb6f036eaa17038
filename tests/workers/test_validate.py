"""The task that validates a batch, and workers that die in it."""

from __future__ import annotations

import json
import signal
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select

from schemas.tables import batch_rows
from tests.support.api import Api, asking
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

#: So many that they are checked by a process of its own, and take a while.
ROWS = 30_000


def upload(api: Api) -> str:
    row = {
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": asking("hi", fake={"headers_delay_ms": 60_000}),
    }
    data = b"".join(json.dumps({"custom_id": f"r{n}", **row}).encode() + b"\n" for n in range(ROWS))
    answer = api.post("/v1/files", data={"purpose": "batch"}, files={"file": ("input.jsonl", data)})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def written(stack: Stack, id: str) -> int:
    with stack.engine.connect() as connection:
        return connection.scalar(select(func.count()).where(batch_rows.c.batch_id == id)) or 0


def checkers(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "producers.checking" in child.cmdline()]


def test_a_worker_that_is_killed_while_it_validates_leaves_it_to_the_next(postgres_url: str) -> None:
    """Every row is there once, and the process that checked lines for the dead worker is gone, too."""
    with Stack(database_url=postgres_url) as stack, stack.api() as api:
        asked: dict[str, Any] = {"input_file_id": upload(api), "endpoint": "/v1/chat/completions"}
        made = api.post("/v1/batches", json={**asked, "completion_window": "24h", "max_concurrency": 1})
        id = made.json()["id"]
        wait_until(lambda: written(stack, id) > 0, 60, "rows")
        found = checkers(stack.parts["bulk"].pid)
        assert api.get(f"/v1/batches/{id}").json()["status"] == "validating"
        stack.remove("bulk", signal.SIGKILL)
        assert len(found) == 1
        wait_until(lambda: not found[0].is_running(), 60, "end of the process that checks lines")
        assert written(stack, id) < ROWS
        stack.add_worker("bulk", "bulk", 4)
        wait_until(
            lambda: api.get(f"/v1/batches/{id}").json()["status"] != "validating", 120, "batch in progress"
        )
        batch = api.get(f"/v1/batches/{id}").json()
        assert (batch["status"], batch["request_counts"]["total"]) == ("in_progress", ROWS)
        numbers = select(batch_rows.c.n, batch_rows.c.custom_id).where(batch_rows.c.batch_id == id)
        with stack.engine.connect() as connection:
            rows = connection.execute(numbers.order_by(batch_rows.c.n)).all()
        assert rows == [(n, f"r{n}") for n in range(ROWS)]
        assert api.post(f"/v1/batches/{id}/cancel").status_code == 200
        wait_until(lambda: api.get(f"/v1/batches/{id}").json()["status"] == "cancelled", 120, "its end")
