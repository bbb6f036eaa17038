"""Batches: how fast a file of requests becomes rows that can be sent, and what that takes of memory and disk."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec
import psutil

from benchmarks.stack import Stack

#: Rows of the files, side by side.
ROWS = (10_000, 100_000)
#: Between looks at a batch, and at the memory of processes, in seconds.
LOOK, SAMPLE = 0.02, 0.05
#: The longest that anything here may take, in seconds.
PATIENCE = 300.0

MIB = 1024 * 1024


class Submitted(msgspec.Struct, frozen=True):
    """Seconds from the first byte of the upload, and MiB of processes beyond what they had before."""

    rows: int
    upload: float
    total: float
    grown: dict[str, float]
    file_bytes: int
    sql_bytes: int

    @property
    def rate(self) -> float:
        return self.rows / self.total


def write_input(path: Path, rows: int, **body: Any) -> None:
    """Rows as an evaluation may have them: some 350 bytes each."""
    system = {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}
    with path.open("wb") as out:
        for n in range(rows):
            question = f"Question {n}: what is the capital of the country with the number {n % 195}? " * 2
            request = {
                "model": "fake",
                "messages": [system, {"role": "user", "content": question}],
                "max_tokens": 100,
                **body,
            }
            line = {"custom_id": f"row-{n}", "method": "POST", "url": "/v1/chat/completions", "body": request}
            out.write(json.dumps(line).encode() + b"\n")


@contextlib.contextmanager
def growth(pids: dict[str, int]) -> Generator[dict[str, float]]:
    """By process, how much its and its children's resident memory was at most beyond what it had before, in MiB."""
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    before = {name: _resident(process) for name, process in processes.items()}
    grown = dict.fromkeys(pids, 0.0)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE):
            for name, process in processes.items():
                grown[name] = max(grown[name], (_resident(process) - before[name]) / MIB)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield grown
    finally:
        over.set()
        thread.join()


def _resident(process: psutil.Process) -> int:
    size = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            size += one.memory_info().rss
    return size


def submit(stack: Stack, rows: int) -> Submitted:
    """A file is uploaded, and a batch is made of it, until its rows can be sent; then it is cancelled."""
    pids = {name: stack.pids[name] for name in ("gateway", "bulk")}
    database = stack.folder / "tailrace.db"
    with TemporaryDirectory(prefix="tr-bench-") as folder, _client(stack) as client:
        path = Path(folder) / "input.jsonl"
        write_input(path, rows)
        size, before = path.stat().st_size, _size(database)
        with growth(pids) as grown, path.open("rb") as file:
            begin = time.perf_counter()
            answer = client.post("/v1/files", data={"purpose": "batch"}, files={"file": file})
            file_id = answer.raise_for_status().json()["id"]
            uploaded = time.perf_counter()
            asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            # So that what is sent while this is measured is next to nothing.
            made = client.post("/v1/batches", json={**asked, "max_concurrency": 1})
            id = made.raise_for_status().json()["id"]
            wait(client, id, lambda batch: batch["status"] != "validating")
            end = time.perf_counter()
        sql_bytes = _size(database) - before
        client.post(f"/v1/batches/{id}/cancel").raise_for_status()
        wait(client, id, lambda batch: batch["status"] == "cancelled")
    return Submitted(rows, uploaded - begin, end - begin, grown, size, sql_bytes)


def wait(client: httpx.Client, id: str, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Raises RuntimeError where it does not come to that."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        batch = client.get(f"/v1/batches/{id}").raise_for_status().json()
        if done(batch):
            return batch
        if batch["status"] == "failed":
            raise RuntimeError(f"the batch failed: {batch['errors']}")
        time.sleep(LOOK)
    raise RuntimeError(f"the batch {id} took more than {PATIENCE:.0f} s")


def _client(stack: Stack) -> httpx.Client:
    headers = stack.tailrace.headers
    return httpx.Client(base_url=stack.url, headers=headers, timeout=PATIENCE, trust_env=False)


def _size(database: Path) -> int:
    files = (database, database.with_name(f"{database.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
