"""Streams a second at 100 at once: straight to the backend, by the SDK script, through Tailrace, through LiteLLM; and
what Tailrace's processes spend on a chunk meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.jobs import Flood, Flooded, Target
from benchmarks.load import Load
from benchmarks.meter import Meter, Spent
from benchmarks.profiler import Profiler
from benchmarks.stack import Stack
from schemas.keys import Keys
from schemas.ids import partition_of

STREAMS = 100
#: Chunks of text in a stream, and the backend's pause between them, in milliseconds.
CHUNKS, PACE = 100, 2
PACED: Mapping[str, Any] = {"chunks": CHUNKS, "interval_ms": PACE}
UNPACED: Mapping[str, Any] = {"chunks": CHUNKS}


@dataclass(frozen=True, slots=True)
class Lane:
    """One way to the backend: who asks, and where. ``share`` makes its windows longer or shorter than the others'."""

    name: str
    load: Load
    target: Target
    order: Mapping[str, Any] = field(default_factory=lambda: PACED)
    share: float = 1.0


@dataclass(slots=True)
class Round:
    """One window of one lane."""

    flooded: Flooded
    spent: Spent
    entries: float | None = None

    def per_chunk(self, amount: float) -> float:
        return amount / max(1, self.flooded.chunks)


class Floods:
    """Runs lanes in turn, and keeps their rounds by name. ``seconds`` is a window, ``warm`` what goes before it."""

    def __init__(self, stack: Stack, *, seconds: float, warm: float) -> None:
        self._stack = stack
        self._seconds = seconds
        self._warm = warm
        self.rounds: dict[str, list[Round]] = {}

    def run(self, lane: Lane, *, profile: Callable[[float], list[Profiler]] | None = None) -> Round:
        pids = {
            "worker": self._stack.worker.pid,
            "gateway": self._stack.gateway.pid,
            "valkey": self._stack.valkey.pid,
            "backend": self._stack.backend.pid,
            "client": lane.load.pid,
        }
        seconds = self._seconds * lane.share
        with self._stack.client() as client:
            meter = Meter(pids, client)
            begin = time.monotonic() + self._warm + 0.1
            lane.load.start(Flood(lane.target, dict(lane.order), STREAMS, begin, begin + seconds))
            time.sleep(max(0.0, begin - time.monotonic()))
            profilers = profile(seconds) if profile else []
            meter.reset()
            time.sleep(max(0.0, begin + seconds - time.monotonic()))
            spent = meter.spent()
            flooded = lane.load.result()
            assert isinstance(flooded, Flooded)
            for profiler in profilers:
                profiler.wait()
            self._settle()
            found = Round(flooded, spent, self._entries(client, flooded))
        self.rounds.setdefault(lane.name, []).append(found)
        return found

    def rate(self, name: str) -> float | None:
        """The median of a lane, in streams a second."""
        rounds = self.rounds.get(name)
        return median(r.flooded.streams_per_second for r in rounds) if rounds else None

    def ratio(self, name: str, to: str) -> float | None:
        """The median of the rounds' ratios: what was measured side by side is compared."""
        pairs = list(zip(self.rounds.get(name, []), self.rounds.get(to, []), strict=False))
        rates = [(a.flooded.streams_per_second, b.flooded.streams_per_second) for a, b in pairs]
        return median(a / b for a, b in rates if b) if any(b for _, b in rates) else None

    def _settle(self) -> None:
        """The backend has no streams left of this round."""
        until = time.monotonic() + 20
        url = self._stack.backend_url.removesuffix("/v1") + "/healthz"
        while httpx.get(url, trust_env=False).json()["active"] and time.monotonic() < until:
            time.sleep(0.05)

    def _entries(self, client: Any, flooded: Flooded) -> float | None:
        """Entries a chunk in the logs of a few streams; the end's is not one."""
        if not flooded.completions or not flooded.per_stream:
            return None
        logs = [Keys(partition_of(id, 1)).log(id) for id in flooded.completions]
        return sum(client.xlen(log) - 1 for log in logs) / len(logs) / flooded.per_stream


def profilers(stack: Stack, names: list[str], folder: Path, *, native: bool) -> Callable[[float], list[Profiler]]:
    """Start py-spy on the named processes."""
    pids = {"worker": stack.worker.pid, "gateway": stack.gateway.pid}
    return lambda seconds: [Profiler(name, pids[name], seconds, folder, native=native) for name in names]
