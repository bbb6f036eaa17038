"""Batches while workers are killed or stopped and Redis restarts: every row once, and what was under way once more."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from schemas.keys import Keys
from tests.support.api import asking
from tests.support.batches import Watched, put_batch
from tests.support.calls import most_at_once
from tests.support.stack import Part, Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

PROVIDERS = {
    "narrow": {
        "max_concurrency": 5,
        "bulk_share": 1.0,
        "retry": {"tries": 6, "first": 0.1, "longest": 0.5, "total": 60},
    }
}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(interactive=0, appendonly=True, providers=PROVIDERS) as stack:
        yield stack


def sent(stack: Stack) -> Counter[str]:
    return Counter(call.prompt for call in stack.backend.completions)


def leader(stack: Stack) -> Part:
    """The worker that leads partition 0."""
    token = str(stack.redis.get(Keys(0).lock("ledger")))
    return next(part for part in stack.parts.values() if part.process and f":{part.pid}:" in token)


def rows(name: str, count: int, **more: object) -> list[dict[str, object]]:
    fake = {"chunks": 20, "interval_ms": 25}
    return [asking(f"{name} {n}", fake=fake, **more) for n in range(count)]


def put(stack: Stack, name: str, count: int, concurrency: int = 20) -> Watched:
    stack.backend.reset()
    id = put_batch(
        stack.engine, rows(name, count), tenant=stack.tenant(), max_concurrency=concurrency, slice_rows=25
    )
    return Watched(stack, id)


def check(batch: Watched, count: int, calls: Counter[str], kills: int, most_again: int) -> None:
    """Each row has an answer; who was sent more than once was under way at a kill."""
    row = batch.over()
    assert (row.status, row.completed, row.failed) == ("completed", count, 0)
    assert [line["custom_id"] for line in batch.lines("output")] == [f"row-{n}" for n in range(count)]
    assert len(calls) == count
    assert max(calls.values()) <= 1 + kills
    assert calls.total() - count <= most_again


@pytest.mark.parametrize("whom", ["the leader", "another worker"])
def test_rows_of_a_killed_worker_are_finished_by_the_others(stack: Stack, whom: str) -> None:
    with stack.worker(f"more-{whom[:3]}", "bulk", 4):
        batch = put(stack, f"killed {whom}", 200)
        stack.backend.wait_for(40)
        bulk = [part for name, part in stack.parts.items() if name != "gateway"]
        wait_until(lambda: leader(stack) in bulk, what="leader")
        first = leader(stack)
        victim = first if whom == "the leader" else next(part for part in bulk if part is not first)
        victim.end(signal.SIGKILL)
        batch.over()
        check(batch, 200, sent(stack), kills=1, most_again=20)
        if victim.name == "bulk":
            stack.parts.pop("bulk")
            stack.add_worker("bulk", "bulk", 4)


def test_a_stopped_worker_hands_its_slices_back_at_once(stack: Stack) -> None:
    """Short rows end where they are; nothing is sent twice."""
    with stack.worker("stopped", "bulk", 4) as stopped:
        batch = put(stack, "stopped", 200)
        stack.backend.wait_for(30)
        stopped.end(signal.SIGTERM, 30)
        assert stopped.process is not None
        assert stopped.process.returncode == 0
        batch.over()
        check(batch, 200, sent(stack), kills=0, most_again=0)


def test_redis_restarts_under_a_batch(stack: Stack) -> None:
    batch = put(stack, "restart", 150)
    stack.backend.wait_for(30)
    time.sleep(1.5)  # what appendfsync everysec may lose is another test's
    stack.valkey.kill()
    stack.valkey.start()
    batch.over()
    check(batch, 150, sent(stack), kills=1, most_again=40)


def test_all_workers_are_killed_again_and_again(stack: Stack) -> None:
    batch = put(stack, "again", 150)
    for kill in range(2):
        stack.backend.wait_for(40 * (kill + 1))
        stack.parts.pop("bulk").end(signal.SIGKILL)
        stack.add_worker("bulk", "bulk", 4)
    batch.over()
    # 20 at the first kill; at the second one those of a slice, and those that it was just recovering.
    check(batch, 150, sent(stack), kills=2, most_again=20 + 2 * 20)


def test_a_providers_limit_holds_for_batches(stack: Stack) -> None:
    """Also where the batch may have more; what waits for a permit is bounded too."""
    stack.backend.reset()
    bodies = [
        asking(f"narrow {n}", model="narrow:fake", fake={"chunks": 3, "interval_ms": 10}) for n in range(150)
    ]
    batch = put_batch(stack.engine, bodies, tenant=stack.tenant(), provider="narrow", slice_rows=25)
    watched = Watched(stack, batch)
    most = 0
    while watched.row.ended_ms is None:
        most = max(most, stack.redis.zcard(Keys(0).parked))
        time.sleep(0.05)
    assert (watched.row.completed, watched.row.failed) == (150, 0)
    assert 2 <= most_at_once(stack.backend.completions) <= 5
    assert sent(stack).total() == 150
    assert most <= 12


def test_a_slice_is_a_task_that_celery_shows(stack: Stack) -> None:
    """As Flower asks for it, too: by batch and first row."""
    batch = put(stack, "seen", 40, concurrency=1)
    stack.backend.wait_for(2)
    command = [sys.executable, "-P", "-m", "celery", "-A", "workers.app", "inspect", "active", "--json"]
    told = subprocess.run(
        command, env=stack.environment, cwd=stack.folder, capture_output=True, check=True, timeout=60
    )
    tasks = [task for tasks in json.loads(told.stdout).values() for task in tasks]
    found = [task["id"] for task in tasks if task["name"] == "tailrace.slice"]
    # Asking takes a while on a busy machine: by then it may be the second one.
    assert any(id.startswith((f"{batch.id}-0-", f"{batch.id}-25-")) for id in found)
    batch.over()
