"""``tailrace batch run`` while workers, the gateway and the command itself are killed at random: each row once."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.support.kills import Killer, Restarted, by_prompt, times, unexplained
from tests.support.stack import Stack
from tests.tailrace.command import command, environment

pytestmark = pytest.mark.once

#: Another one with `TAILRACE_TEST_SEED`.
SEED = int(os.environ.get("TAILRACE_TEST_SEED") or secrets.randbelow(1_000_000))
ROWS, CONCURRENCY = 500, 25
WORKERS = ("bulk", "bulk-too")
#: Each is killed so often, in an order and at times that the seed says; before them a worker.
KILLS = ("worker",) * 3 + ("gateway",) * 3 + ("command",) * 4
SECONDS = 240.0


@pytest.fixture(params=["sqlite", "postgresql"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with Stack(database_url=url, interactive=0) as stack:
        stack.add_worker(WORKERS[1], "bulk", 4)
        yield stack


def write_rows(path: Path) -> None:
    with path.open("w") as file:
        for n in range(ROWS):
            body = {
                "model": "fake",
                "messages": [{"role": "user", "content": f"row {n}"}],
                "fake": {"chunks": 10, "interval_ms": 50},
            }
            row = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(row) + "\n")


def test_each_row_once_whoever_is_killed(tmp_path: Path, stack: Stack) -> None:
    """Sent at most once, plus once for each kill that hit it in flight; in the output exactly once, in order."""
    print(f"TAILRACE_TEST_SEED={SEED}")
    random = Random(SEED)
    write_rows(tmp_path / "in.jsonl")
    plan = ["worker", *random.sample(KILLS, len(KILLS))]
    _, key = stack.key(stack.tenant())
    line = command("batch", "run", "in.jsonl", "-o", "out.jsonl", "--max-concurrency", str(CONCURRENCY))
    run = Restarted(line, tmp_path, environment(URL=stack.url, API_KEY=key))
    killer = Killer(stack, WORKERS, random, SECONDS)
    try:
        killer.carry_out(plan, run)
    finally:
        run.kill()

    # 1: no gateway was there; 3: a row failed, because three workers died with it, and the next run sent it again.
    assert set(run.ends) <= {-signal.SIGKILL, 1, 3}, run.told
    assert "Traceback" not in run.told
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"r{n}" for n in range(ROWS)], run.told
    assert {line["response"]["status_code"] for line in lines} == {200}
    answer = " " + " ".join(f"tok{n}" for n in range(10))
    assert {line["response"]["body"]["choices"][0]["message"]["content"] for line in lines} == {answer}
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "log.txt"}

    calls = by_prompt(stack.backend.completions)
    assert set(calls) == {f"row {n}" for n in range(ROWS)}
    again = {row: made for row, made in calls.items() if len(made) > 1}
    wrong = {row: made for row, made in again.items() if unexplained(made, killer.kills)}
    assert not wrong, times(wrong, killer.kills)
    assert again, "no kill hit a row in flight"
    assert stack.balanced() == []
