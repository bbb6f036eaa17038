"""Batches: how fast a file of requests becomes rows that can be sent and these become answers, beside the script that
people write; and what that takes of memory and disk, whatever the size of the file."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec
import psutil

from benchmarks.meter import Meter, Spent
from benchmarks.stack import ROOT, Stack

#: Rows of the files, side by side.
ROWS = (10_000, 100_000)
#: Rows of the file by which a command's own memory is told from what its rows take.
FEW = 20
#: Between looks at a batch, and at the memory of processes, in seconds.
LOOK, SAMPLE = 0.2, 0.05
#: The longest that anything here may take, in seconds.
PATIENCE = 600.0
#: What Tailrace's processes are called that answer a batch.
OURS = ("gateway", "bulk", "worker", "valkey")

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


class Answered(msgspec.Struct, frozen=True):
    """A batch from its POST to its output file, in seconds. ``ended``: from ``in_progress`` until all rows had ended;
    ``files``: until its files were written. ``grown`` is MiB of processes and of Redis's data beyond what they had
    before, ``sql_bytes`` what the database has grown by."""

    rows: int
    ended: float
    files: float
    total: float
    spent: Spent
    grown: dict[str, float]
    sql_bytes: int

    @property
    def cpu(self) -> float:
        """Microseconds of all of Tailrace's processes for a row, from the POST to the output file."""
        return sum(self.spent.cpu[name] for name in OURS) / self.rows * 1e6


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
def growth(
    pids: Mapping[str, int], more: Mapping[str, Callable[[], int]] | None = None
) -> Generator[dict[str, float]]:
    """By process, how much its and its children's resident memory was at most beyond what it had before, in MiB;
    ``more`` is what else has a size in bytes."""
    sizes: dict[str, Callable[[], int]] = {name: _resident(pid) for name, pid in pids.items()}
    sizes.update(more or {})
    before = {name: size() for name, size in sizes.items()}
    grown = dict.fromkeys(sizes, 0.0)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE):
            for name, size in sizes.items():
                grown[name] = max(grown[name], (size() - before[name]) / MIB)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield grown
    finally:
        over.set()
        thread.join()


def _resident(pid: int) -> Callable[[], int]:
    process = psutil.Process(pid)

    def size() -> int:
        total = 0
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total

    return size


def submit(stack: Stack, rows: int) -> Submitted:
    """A file is uploaded, and a batch is made of it, until its rows can be sent; then it is cancelled."""
    pids = {name: stack.pids[name] for name in ("gateway", "bulk")}
    with TemporaryDirectory(prefix="tr-bench-") as folder, connect(stack) as client:
        path = Path(folder) / "input.jsonl"
        write_input(path, rows)
        size, before = path.stat().st_size, _size(stack)
        with growth(pids) as grown:
            begin = time.perf_counter()
            file_id = upload(client, path)
            uploaded = time.perf_counter()
            # So that what is sent while this is measured is next to nothing.
            id = make(client, file_id, max_concurrency=1)
            wait(client, id, lambda batch: batch["status"] != "validating")
            end = time.perf_counter()
        sql_bytes = _size(stack) - before
        cancel(client, id)
    return Submitted(rows, uploaded - begin, end - begin, grown, size, sql_bytes)


def answer(stack: Stack, path: Path, *, max_concurrency: int | None = None) -> Answered:
    """A batch of a file that is uploaded already, until its output is here."""
    pids = {name: stack.pids[name] for name in ("gateway", "bulk")}
    rows = sum(1 for _ in path.open("rb"))
    with connect(stack) as client, stack.client() as valkey:
        file_id = upload(client, path)
        before = _size(stack)
        meter = Meter(stack.pids, valkey)
        used: Callable[[], int] = lambda: int(valkey.info("memory")["used_memory"])  # noqa: E731
        with growth(pids, {"redis": used}) as grown:
            begin = time.perf_counter()
            id = make(
                client, file_id, **({} if max_concurrency is None else {"max_concurrency": max_concurrency})
            )
            batch = wait(client, id, lambda batch: batch["ended"])
            written = _download(client, batch["output_file_id"]) if batch["output_file_id"] else 0
            total = time.perf_counter() - begin
        spent = meter.spent()
    if written != rows:
        raise RuntimeError(f"a batch of {rows} rows has {written} lines of output: {batch['request_counts']}")
    in_progress, finalizing, ended = _moments(stack, id)
    return Answered(
        rows=rows,
        ended=(finalizing - in_progress) / 1000,
        files=(ended - finalizing) / 1000,
        total=total,
        spent=spent,
        grown=grown,
        sql_bytes=_size(stack) - before,
    )


def command(stack: Stack, path: Path) -> float:
    """``tailrace batch run`` on a file, until its results are there: the most memory that it had, in MiB."""
    environment = stack.environment | {
        "TAILRACE_URL": stack.url,
        "TAILRACE_API_KEY": stack.tailrace.headers["authorization"].partition(" ")[2],
    }
    out = path.with_suffix(".out")
    process = subprocess.Popen(
        [sys.executable, "-m", "tailrace", "batch", "run", str(path), "-o", str(out)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    most = 0
    size = _resident(process.pid)
    until = time.monotonic() + PATIENCE
    while process.poll() is None:
        if time.monotonic() > until:
            process.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            most = max(most, size())
        time.sleep(SAMPLE)
    if process.returncode:
        raise RuntimeError(f"tailrace batch run ended with {process.returncode}")
    return most / MIB


def connect(stack: Stack) -> httpx.Client:
    return httpx.Client(base_url=stack.url, headers=stack.tailrace.headers, timeout=PATIENCE, trust_env=False)


def upload(client: httpx.Client, path: Path) -> str:
    """The file's id."""
    with path.open("rb") as file:
        answer = client.post("/v1/files", data={"purpose": "batch"}, files={"file": file})
    return answer.raise_for_status().json()["id"]


def make(client: httpx.Client, file_id: str, **fields: Any) -> str:
    """The batch's id."""
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return client.post("/v1/batches", json={**asked, **fields}).raise_for_status().json()["id"]


def cancel(client: httpx.Client, id: str) -> None:
    client.post(f"/v1/batches/{id}/cancel").raise_for_status()
    wait(client, id, lambda batch: batch["ended"])


def wait(client: httpx.Client, id: str, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """``ended`` is whether it is over. Raises RuntimeError where it does not come to that."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        batch = client.get(f"/v1/batches/{id}").raise_for_status().json()
        batch["ended"] = batch["status"] in ("completed", "cancelled", "expired", "failed")
        if done(batch):
            return batch
        if batch["ended"]:
            raise RuntimeError(f"the batch is {batch['status']}: {batch['errors']}")
        time.sleep(LOOK)
    raise RuntimeError(f"the batch {id} took more than {PATIENCE:.0f} s")


def _download(client: httpx.Client, file_id: str | None) -> int:
    """Its lines."""
    lines = 0
    with client.stream("GET", f"/v1/files/{file_id}/content") as response:
        for piece in response.raise_for_status().iter_bytes():
            lines += piece.count(b"\n")
    return lines


def _moments(stack: Stack, id: str) -> tuple[int, int, int]:
    """When its rows could be sent, when they had all ended, and when it had: milliseconds of Redis's clock."""
    with contextlib.closing(sqlite3.connect(stack.folder / "tailrace.db")) as database:
        return database.execute(
            "SELECT in_progress_ms, finalizing_ms, ended_ms FROM batches WHERE id = ?", (id,)
        ).fetchone()


def _size(stack: Stack) -> int:
    database = stack.folder / "tailrace.db"
    files = (database, database.with_name(f"{database.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
