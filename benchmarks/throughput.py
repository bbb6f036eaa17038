"""Streams a second at 100 at once: straight to the backend, by the SDK script, through Tailrace, through LiteLLM; and
what Tailrace's processes spend on a chunk meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx
import msgspec
import redis

from benchmarks import targets
from benchmarks.jobs import Flood, Flooded, Target
from benchmarks.load import Load
from benchmarks.meter import Meter, Spent
from benchmarks.profiler import Profiler
from benchmarks.report import Row
from benchmarks.stack import Stack
from schemas.ids import partition_of
from schemas.keys import Keys

#: Streams at once.
STREAMS = 100
#: Chunks of text in a stream, and the backend's pause between them, in milliseconds.
CHUNKS, PACE = 100, 2
PACED: Mapping[str, Any] = {"chunks": CHUNKS, "interval_ms": PACE}
UNPACED: Mapping[str, Any] = {"chunks": CHUNKS}
SHORT: Mapping[str, Any] = {"chunks": 1}
#: How long the backend's last streams of a round may take to end, in seconds.
SETTLE = 20.0


@dataclass(frozen=True, slots=True)
class Lane:
    """One way to the backend: who asks, and where. ``share`` makes windows longer or shorter than the others', ``warm``
    is what goes before each, in seconds."""

    name: str
    load: Load
    target: Target
    order: Mapping[str, Any] = field(default_factory=lambda: PACED)
    share: float = 1.0
    warm: float = 1.0


@dataclass(frozen=True, slots=True)
class Round:
    """One window of one lane. ``entries`` is how many of them the logs have for a chunk."""

    flooded: Flooded
    spent: Spent
    entries: float | None

    @property
    def rate(self) -> float:
        return self.flooded.streams_per_second

    def per_chunk(self, amount: float) -> float:
        return amount / max(1, self.flooded.chunks)

    def per_stream(self, amount: float) -> float:
        return self.per_chunk(amount) * self.flooded.per_stream


class Floods:
    """Runs lanes in turn and keeps their rounds by name. A window is ``seconds`` long."""

    def __init__(self, stack: Stack, *, seconds: float) -> None:
        self._stack = stack
        self._seconds = seconds
        self.rounds: dict[str, list[Round]] = {}

    def run(self, lane: Lane, *, profile: Callable[[float], Sequence[Profiler]] | None = None) -> Round:
        """One window, once the lane is warm and until the backend is idle again."""
        seconds = self._seconds * lane.share
        with self._stack.client() as client:
            meter = Meter({**self._stack.pids, "client": lane.load.pid}, client)
            begin = time.monotonic() + lane.warm
            lane.load.start(Flood(lane.target, dict(lane.order), STREAMS, begin, begin + seconds))
            _sleep_until(begin)
            meter.reset()
            profilers = profile(seconds) if profile else []
            _sleep_until(begin + seconds)
            spent = meter.spent()
            flooded = lane.load.result()
            assert isinstance(flooded, Flooded)
            for profiler in profilers:
                profiler.wait()
            self._settle()
            found = Round(flooded, spent, _entries(client, flooded))
        self.rounds.setdefault(lane.name, []).append(found)
        return found

    @property
    def complaints(self) -> dict[str, str]:
        """What was wrong with answers that were not whole, by lane."""
        found: dict[str, str] = {}
        for name, rounds in self.rounds.items():
            broken = [r.flooded for r in rounds if r.flooded.broken]
            if broken:
                found[name] = f"{sum(f.broken for f in broken)} complaints; one: {broken[0].complaint[:200]}"
        return found

    def median(self, name: str, value: Callable[[Round], float | None]) -> float | None:
        """Of a lane's rounds; None where there are none."""
        values = [v for v in map(value, self.rounds.get(name, [])) if v is not None]
        return median(values) if values else None

    def ratio(self, name: str, to: str) -> float | None:
        """The median of the rounds' ratios: what ran side by side is compared."""
        pairs = zip(self.rounds.get(name, []), self.rounds.get(to, []), strict=False)
        ratios = [one.rate / other.rate for one, other in pairs if other.rate]
        return median(ratios) if ratios else None

    def _settle(self) -> None:
        """The backend has no streams left of this round."""
        until = time.monotonic() + SETTLE
        url = self._stack.backend_url.removesuffix("/v1") + "/healthz"
        while httpx.get(url, trust_env=False).json()["active"] and time.monotonic() < until:
            time.sleep(0.05)


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def _entries(client: redis.Redis, flooded: Flooded) -> float | None:
    """Entries by chunk in the logs of a few streams; the end's is not one."""
    if not flooded.completions or not flooded.per_stream:
        return None
    logs = [Keys(partition_of(id, 1)).log(id) for id in flooded.completions]
    lengths = [client.xlen(log) - 1 for log in logs]
    return sum(lengths) / len(logs) / flooded.per_stream


def lanes(stack: Stack, load: Load, sdk: Load | None, litellm: Target | None) -> list[Lane]:
    """In the order of their turns. Where a stream takes seconds, a window must be longer than one."""
    found = [Lane("raw", load, stack.direct)]
    if sdk is not None:
        found.append(Lane("sdk", sdk, stack.direct, share=3, warm=5))
    found.append(Lane("tailrace", load, stack.tailrace))
    if litellm is not None:
        found.append(Lane("litellm", load, litellm, share=6, warm=8))
    found.append(Lane("raw unpaced", load, stack.direct, UNPACED, share=0.5))
    found.append(Lane("tailrace unpaced", load, stack.tailrace, UNPACED, share=0.5))
    found.append(Lane("tailrace short", load, stack.tailrace, SHORT, share=0.5))
    return found


#: Cached answers: of one chunk, and of as many as the streams above have.
HITS = {"hits short": SHORT, "hits": UNPACED}


def hit_lanes(stack: Stack, load: Load) -> list[Lane]:
    """The first request of each makes the result, while the lane gets warm; all others are answered by it."""
    target = msgspec.structs.replace(
        stack.tailrace, headers=stack.tailrace.headers | {"cache-control": "max-age=86400"}
    )
    return [Lane(name, load, target, order) for name, order in HITS.items()]


def hit_rows(floods: Floods) -> list[Row]:
    section = f"cached hits/s, {STREAMS} at once, one gateway process"
    found: list[Row] = []
    for lane, order in HITS.items():
        rate = floods.median(lane, lambda r: r.rate)
        cpu = floods.median(lane, lambda r: r.per_stream(r.spent.cpu["gateway"]) * 1e3)
        found.append(
            Row(
                section=section,
                name=f"answers of {order['chunks']} chunk{'s' if order['chunks'] > 1 else ''}",
                value=rate,
                unit="/s",
                target=f"≥ {targets.HITS:,}",
                met=None if rate is None else rate >= targets.HITS,
                note="" if cpu is None else f"{cpu:.2f} ms of the gateway's CPU each",
            )
        )
    return found


SPEED = f"streams/s, {STREAMS} at once, {CHUNKS} chunks {PACE} ms apart"
COST = "cost of a chunk through Tailrace, meanwhile"


def rows(floods: Floods, *, notes: Mapping[str, str]) -> list[Row]:
    """``notes`` on lanes: versions, and why one was not run."""
    of_raw, of_litellm = floods.ratio("tailrace", "raw"), floods.ratio("tailrace", "litellm")
    found = [
        _speed(floods, "raw", "raw client, straight to the backend", notes),
        _speed(floods, "sdk", "openai SDK script, straight to the backend", notes),
        _speed(floods, "litellm", "LiteLLM proxy, one process", notes),
        _speed(floods, "tailrace", "Tailrace, one gateway and one worker", notes),
        Row(
            section=SPEED,
            name="Tailrace / raw",
            value=of_raw,
            unit="×",
            target=f"≥ {targets.OF_RAW} ×",
            met=None if of_raw is None else of_raw >= targets.OF_RAW,
        ),
        Row(
            section=SPEED,
            name="Tailrace / LiteLLM",
            value=of_litellm,
            unit="×",
            target=f"≥ {targets.OF_LITELLM} ×, then ≥ {targets.OF_LITELLM_NEXT} ×",
            met=None if of_litellm is None else of_litellm >= targets.OF_LITELLM,
        ),
        Row(section=SPEED, name="Tailrace / SDK script", value=floods.ratio("tailrace", "sdk"), unit="×"),
        _speed(floods, "raw unpaced", "raw client, unpaced", notes),
        _speed(floods, "tailrace unpaced", "Tailrace, unpaced", notes),
        _speed(floods, "tailrace short", "Tailrace, streams of 1 chunk", notes),
    ]
    return [*found, *_cost(floods)]


def _speed(floods: Floods, lane: str, name: str, notes: Mapping[str, str]) -> Row:
    rates = [round.rate for round in floods.rounds.get(lane, [])]
    said = [notes[lane]] if lane in notes else []
    if len(rates) > 1:
        said.append(f"{min(rates):.0f} to {max(rates):.0f}")
    if lane in floods.complaints:
        said.append(floods.complaints[lane])
    return Row(
        section=SPEED,
        name=name,
        value=floods.median(lane, lambda r: r.rate),
        unit="/s",
        note="; ".join(said),
    )


def _cost(floods: Floods) -> list[Row]:
    def row(
        name: str,
        unit: str,
        value: Callable[[Round], float | None],
        *,
        note: str = "",
        lane: str = "tailrace",
    ) -> Row:
        return Row(section=COST, name=name, value=floods.median(lane, value), unit=unit, note=note)

    def cpu(process: str) -> Callable[[Round], float]:
        return lambda r: r.per_chunk(r.spent.cpu[process]) * 1e6

    def cpu_stream(process: str) -> Callable[[Round], float]:
        return lambda r: r.per_stream(r.spent.cpu[process]) * 1e3

    def kernel(process: str) -> str:
        share = floods.median("tailrace", lambda r: r.spent.system[process] / max(r.spent.cpu[process], 1e-9))
        return "" if share is None else f"{100 * share:.0f}% of it in the kernel"

    ours = ("worker", "bulk", "gateway", "valkey")
    notes = {"bulk": "the ledger and the books, which the bulk worker leads"}
    found = [row(f"CPU, {p}", "µs", cpu(p), note=notes.get(p) or kernel(p)) for p in ours]
    found.append(row("CPU, all of Tailrace's", "µs", lambda r: sum(cpu(p)(r) for p in ours)))
    found += [
        row(f"CPU, {process}", "µs", cpu(process), note="not Tailrace's") for process in ("backend", "client")
    ]
    found += [
        row("log entries", "", lambda r: r.entries),
        row("calls of Redis scripts", "", lambda r: r.per_chunk(r.spent.scripts)),
        row("Redis commands, with those in scripts", "", lambda r: r.per_chunk(sum(r.spent.calls.values()))),
        row("bytes to Redis", "B", lambda r: r.per_chunk(r.spent.bytes_in)),
        row("bytes from Redis", "B", lambda r: r.per_chunk(r.spent.bytes_out)),
    ]
    short = "of a whole completion of 1 chunk"
    found += [
        row(f"CPU, {p}, a completion", "ms", cpu_stream(p), note=short, lane="tailrace short") for p in ours
    ]
    return found
