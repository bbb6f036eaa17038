"""Bulk work beside others: rows a second beside the script that people write, and what an interactive request feels of
rows that wait."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec

from benchmarks import batches
from benchmarks.batches import Answered
from benchmarks.jobs import FirstChunks, Times
from benchmarks.load import Load
from benchmarks.stack import LIMITED, Stack
from benchmarks.throughput import PACED, STREAMS, Floods, Lane

#: Rows of a batch that is compared, of ``PACED`` streams.
ROWS = 2000
#: Rows that wait while interactive requests are timed.
WAITING = 100_000


class Pair(msgspec.Struct, frozen=True):
    """The script's streams a second and its CPU for one, in microseconds; and a batch, right after it."""

    script: float
    script_cpu: float
    batch: Answered

    @property
    def ratio(self) -> float:
        """By the time in which rows ended."""
        return self.batch.rows / self.batch.ended / self.script

    @property
    def whole_ratio(self) -> float:
        """By the time from POST to the output file."""
        return self.batch.rows / self.batch.total / self.script


def pairs(stack: Stack, sdk: Load, *, seconds: float, rounds: int) -> Generator[Pair]:
    """The script and a batch in turn, each with as many streams at once."""
    lane = Lane("sdk", sdk, stack.direct, share=3, warm=5)
    floods = Floods(stack, seconds=seconds)
    with TemporaryDirectory(prefix="tr-bench-") as folder:
        path = Path(folder) / "input.jsonl"
        batches.write_input(path, ROWS, fake=dict(PACED))
        batches.answer(stack, path, max_concurrency=STREAMS)  # connections, caches
        for _ in range(rounds):
            found = floods.run(lane)
            cpu = found.per_stream(found.spent.cpu["client"]) * 1e6
            yield Pair(found.rate, cpu, batches.answer(stack, path, max_concurrency=STREAMS))


def first_chunks(stack: Stack, load: Load, *, count: int) -> dict[str, list[float]]:
    """Milliseconds to the first chunk of an interactive request: with an idle queue, and with a batch of ``WAITING``
    rows under way, of a provider of which few calls are allowed at once, and of one without such a limit. Before each
    batch the queue is idle."""
    found: dict[str, list[float]] = {}

    def time(name: str) -> None:
        job = FirstChunks([stack.tailrace], {"chunks": 5, "interval_ms": 2}, count)
        done = load.run(job)
        assert isinstance(done, Times)
        found.setdefault(name, []).extend(done.by_name["tailrace"])

    time("warm")
    del found["warm"]
    for name, model in (("limited", f"{LIMITED}:fake"), ("unlimited", "fake:fake")):
        time(f"idle, {name}")
        with _under_way(stack, model):
            time(name)
    return found


@contextmanager
def _under_way(stack: Stack, model: str) -> Generator[None]:
    with TemporaryDirectory(prefix="tr-bench-") as folder, batches.connect(stack) as client:
        path = Path(folder) / "input.jsonl"
        batches.write_input(path, WAITING, model=model, fake=dict(PACED))
        id = batches.make(client, batches.upload(client, path))
        batches.wait(client, id, lambda batch: batch["request_counts"]["completed"] > 0)
        try:
            yield
        finally:
            batches.cancel(client, id)


def middle(found: list[Pair], name: str) -> float:
    return median(getattr(pair, name) for pair in found)
