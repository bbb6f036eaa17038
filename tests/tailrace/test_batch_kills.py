"""``tailrace batch run`` while workers, the gateway and the command itself are killed at random: each row once."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psutil
import pytest

from tests.support.backend import Received
from tests.support.stack import Stack
from tests.support.valkey import wait_until
from tests.tailrace.command import command, environment

pytestmark = pytest.mark.once

#: Another one with `TAILRACE_TEST_SEED`.
SEED = int(os.environ.get("TAILRACE_TEST_SEED") or secrets.randbelow(1_000_000))
ROWS, CONCURRENCY = 500, 25
WORKERS = ("bulk", "bulk-too")
#: Each is killed so often, in an order and at times that the seed says; before them a worker that has rows in flight.
KILLS = ("worker",) * 3 + ("gateway",) * 3 + ("command",) * 4
#: The backend may hear of a call so much later than the worker sent it, and a worker may die before it has written
#: down the end of an answer that is so old, in seconds.
MARGIN = 2.0
SECONDS = 240.0


@pytest.fixture(params=["sqlite", "postgresql"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with Stack(database_url=url, interactive=0) as stack:
        stack.add_worker(WORKERS[1], "bulk", 4)
        yield stack


class Run:
    """The command, started again whenever it ends before it is through."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        self._folder = folder
        _, key = stack.key(stack.tenant())
        self._environment = environment(URL=stack.url, API_KEY=key)
        self._log = folder / "log.txt"
        self.ends: list[int] = []
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = ("in.jsonl", "-o", "out.jsonl", "--max-concurrency", str(CONCURRENCY))
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command("batch", "run", *arguments),
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def told(self) -> str:
        return self._log.read_text()

    def is_through(self) -> bool:
        """Whether it has ended well; one that hasn't is started again."""
        code = self._process.poll()
        if code not in (0, None):
            self.ends.append(code)
            self._process = self._start()
        return code == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


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


def busiest(stack: Stack) -> str:
    """The worker with the most rows in flight."""
    ports = {call.port for call in stack.backend.completions if call.ended is None}

    def rows(name: str) -> int:
        return sum(
            c.laddr.port in ports for c in psutil.Process(stack.parts[name].pid).net_connections("tcp")
        )

    return max(WORKERS, key=rows)


def unexplained(calls: list[Received], kills: list[float]) -> bool:
    """Whether the row was sent again though no kill had hit it in flight; each kill explains one call."""
    left = list(kills)
    for call, again in itertools.pairwise(calls):
        begin = call.at - MARGIN if call.ended == "closed" else call.at
        end = again.at if call.ended_at is None else min(again.at, call.ended_at + MARGIN)
        hit = next((kill for kill in left if begin <= kill <= end), None)
        if hit is None:
            return True
        left.remove(hit)
    return False


def _times(calls: dict[str, list[Received]], kills: list[float]) -> str:
    """Calls and kills in seconds since the first kill."""
    start = kills[0]
    lines = [f"kills: {[round(kill - start, 3) for kill in kills]}"]
    for row, made in calls.items():
        times = [
            (round(c.at - start, 3), c.ended, None if c.ended_at is None else round(c.ended_at - start, 3))
            for c in made
        ]
        lines.append(f"{row}: {times}")
    return "\n".join(lines)


def test_each_row_once_whoever_is_killed(tmp_path: Path, stack: Stack) -> None:
    """Sent at most once, plus once for each kill that hit it in flight; in the output exactly once, in order."""
    print(f"TAILRACE_TEST_SEED={SEED}")
    random = Random(SEED)
    write_rows(tmp_path / "in.jsonl")
    plan = ["worker that is busy", *random.sample(KILLS, len(KILLS))]
    worker_kills: list[float] = []
    run = Run(tmp_path, stack)
    try:
        for what in plan:
            time.sleep(random.uniform(0.3, 4.0))
            if what.startswith("worker"):
                wait_until(lambda: run.is_through() or stack.backend.active > 0, SECONDS, "row in flight")
                name = random.choice(WORKERS) if what == "worker" else busiest(stack)
                os.kill(stack.parts[name].pid, signal.SIGKILL)
                worker_kills.append(time.time())
                stack.parts.pop(name).end(signal.SIGKILL)
                stack.add_worker(name, "bulk", 4, wait=False)
            elif what == "gateway":
                stack.parts["gateway"].end(signal.SIGKILL)
                stack.parts["gateway"].start(stack.folder)
            else:
                run.kill()
            run.is_through()
        wait_until(run.is_through, SECONDS, "end of the command")
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

    calls: defaultdict[str, list[Received]] = defaultdict(list)
    for call in stack.backend.completions:
        calls[call.prompt].append(call)
    assert set(calls) == {f"row {n}" for n in range(ROWS)}
    again = {row: made for row, made in calls.items() if len(made) > 1}
    wrong = {row: made for row, made in again.items() if unexplained(made, worker_kills)}
    assert not wrong, _times(wrong, worker_kills)
    assert again, "no kill hit a row in flight"
    assert stack.balanced() == []
