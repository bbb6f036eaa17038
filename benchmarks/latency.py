"""Time to the first chunk with nothing else to do, and the delay of each chunk of paced streams; over direct."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles

from benchmarks.jobs import FirstChunks, Paced, Times
from benchmarks.load import Load
from benchmarks.stack import Stack

#: Streams at once of the delay's measure, and how often each is asked for in a round.
STREAMS, REPEATS = 20, 5
CHUNKS = 100


def p50(times: Sequence[float]) -> float:
    return median(times)


def p99(times: Sequence[float]) -> float:
    return quantiles(times, n=100)[98]


def first_chunks(stack: Stack, load: Load, *, count: int) -> dict[str, list[float]]:
    """Milliseconds from sending a request to its first chunk, one request at a time, direct and Tailrace in turn."""
    short = {"chunks": 5, "interval_ms": 2}
    load.run(FirstChunks([stack.direct, stack.tailrace], short, 10))  # connections, caches
    done = load.run(FirstChunks([stack.direct, stack.tailrace], short, count))
    assert isinstance(done, Times)
    return done.by_name


def chunk_delays(stack: Stack, load: Load, *, interval_ms: float, rounds: int) -> dict[str, list[float]]:
    """Milliseconds from the backend's writing of a chunk to its arrival, direct and Tailrace in turn."""
    delays: dict[str, list[float]] = {}
    for _ in range(rounds):
        for target in (stack.direct, stack.tailrace):
            repeats = max(1, round(REPEATS * 2 / interval_ms))
            done = load.run(Paced(target, interval_ms, CHUNKS, STREAMS, repeats))
            assert isinstance(done, Times)
            for name, times in done.by_name.items():
                delays.setdefault(name, []).extend(times)
    return delays
