"""The measures: each runs what it compares in turns and adds its rows to the report."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks import batches, latency, logs, targets, throughput, usage
from benchmarks.latency import p50, p99
from benchmarks.load import Load
from benchmarks.proxy import VERSION, NoProxy, Proxy
from benchmarks.report import Row
from benchmarks.stack import Stack
from benchmarks.throughput import Floods


@dataclass(frozen=True, slots=True)
class Effort:
    """How long it all takes: rounds, seconds of a window, requests of each kind."""

    rounds: int
    seconds: float
    requests: int
    resumes: int


FULL = Effort(rounds=5, seconds=4, requests=200, resumes=30)
QUICK = Effort(rounds=1, seconds=2, requests=50, resumes=10)


@dataclass(slots=True)
class Run:
    """What the measures share, and where they put what they find."""

    effort: Effort
    stack: Stack
    load: Load
    exit: ExitStack
    litellm: bool = True
    rows: list[Row] = field(default_factory=list[Row])
    failures: list[str] = field(default_factory=list[str])
    rounds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def keep(self, what: str, measured: Mapping[str, Sequence[float]]) -> None:
        self.rounds |= {f"{what}, {name}": list(values) for name, values in measured.items()}


def measure_throughput(run: Run) -> None:
    allowed = 1000 * throughput.STREAMS / (throughput.CHUNKS * throughput.PACE)
    notes = {"raw": f"the pace allows {allowed:.0f}"}
    litellm: Proxy | None = None
    if not run.litellm:
        notes["litellm"] = "left out: --no-litellm"
    else:
        say(f"LiteLLM {VERSION}: its environment, and its start")
        try:
            litellm = Proxy(run.stack)
            notes["litellm"] = f"version {VERSION}"
        except NoProxy as error:
            notes["litellm"] = f"LiteLLM {VERSION} could not be measured: {error}"
            say(notes["litellm"])
    sdk = run.exit.enter_context(Load("benchmarks.sdk"))
    lanes = throughput.lanes(run.stack, run.load, sdk, litellm.target if litellm else None)
    warming = Floods(run.stack, seconds=0.5)
    for lane in lanes:
        say(f"warming up: {lane.name}")
        warming.run(lane)
    floods = Floods(run.stack, seconds=run.effort.seconds)
    for number in range(run.effort.rounds):
        for lane in lanes:
            found = floods.run(lane)
            say(f"round {number + 1} of {run.effort.rounds}: {lane.name} {found.rate:.1f} streams/s")
    if litellm is not None:
        litellm.stop()
    run.rows += throughput.rows(floods, notes=notes)
    run.failures += [
        f"{lane}: {said}" for lane, said in floods.complaints.items() if lane.startswith("tailrace")
    ]
    run.keep("streams/s", {name: [r.rate for r in rounds] for name, rounds in floods.rounds.items()})


def measure_first_chunk(run: Run) -> None:
    say("first chunk, one request at a time")
    times = latency.first_chunks(run.stack, run.load, count=run.effort.requests)
    section = "first chunk, idle"
    over = p50(times["tailrace"]) - p50(times["direct"])
    for name in ("direct", "tailrace"):
        note = f"p99 {p99(times[name]):.1f} ms"
        run.rows.append(
            Row(section=section, name=f"{name}, p50", value=p50(times[name]), unit="ms", note=note)
        )
    run.rows.append(_most(section, "over direct, p50", over, targets.FIRST_CHUNK_MS, "ms"))
    run.keep("first chunk ms", times)


def measure_delay(run: Run) -> None:
    for interval, judged in ((throughput.PACE, True), (20, False)):
        say(f"chunk delay, {latency.STREAMS} streams, {interval} ms a chunk")
        delays = latency.chunk_delays(run.stack, run.load, interval_ms=interval, rounds=run.effort.rounds)
        section = f"chunk delay, {latency.STREAMS} streams, a chunk every {interval} ms"
        direct, ours = delays["direct"], delays["tailrace"]
        for name, which, target in (("p50", p50, targets.DELAY_P50_MS), ("p99", p99, targets.DELAY_P99_MS)):
            over = which(ours) - which(direct)
            note = f"direct {which(direct):.2f} ms, Tailrace {which(ours):.2f} ms"
            if judged:
                run.rows.append(_most(section, f"over direct, {name}", over, target, "ms", note))
            else:
                run.rows.append(
                    Row(section=section, name=f"over direct, {name}", value=over, unit="ms", note=note)
                )


def measure_memory(run: Run) -> None:
    say("memory of a log")
    size = asyncio.run(logs.bytes_per_chunk(run.stack))
    name = "100 one-token chunks, each an entry of its own"
    run.rows.append(_most("Redis memory of a log", name, size, targets.LOG_BYTES, "B a chunk"))


def measure_resume(run: Run) -> None:
    say(f"resuming in a log of {logs.LONG:,} chunks")
    found = asyncio.run(logs.resumes(run.stack, run.load, count=run.effort.resumes))
    section = f"resume in a log of {logs.LONG:,} chunks, to the first chunk"
    for state, by_index in found.items():
        middles = {index: p50(times) for index, times in by_index.items()}
        slowest = max(middles, key=lambda index: middles[index])
        note = "p50 by index: " + ", ".join(f"{index} {middle:.1f}" for index, middle in middles.items())
        name = f"{state} log, slowest index ({slowest})"
        run.rows.append(_most(section, name, middles[slowest], targets.RESUME_MS, "ms", note))
        spread = max(middles.values()) - min(middles.values())
        name = f"{state} log, between slowest and fastest index"
        run.rows.append(_most(section, name, spread, targets.RESUME_SPREAD_MS, "ms"))
        run.keep(f"resume ms, {state}", {str(index): times for index, times in by_index.items()})


def measure_usage(run: Run) -> None:
    section = f"a month of {usage.RECORDS:,} usage records among {usage.RECORDS + usage.OTHERS:,}, added up"
    say(section)
    for database, answers in usage.measure(run.effort.rounds):
        for question, answer in answers.items():
            name, middle = f"{database}, {question}", p50(answer.times)
            run.rows.append(_most(section, name, middle, targets.USAGE_MS[database], "ms", answer.plan))
            run.keep("usage ms", {name: answer.times})


def measure_hits(run: Run) -> None:
    floods = Floods(run.stack, seconds=run.effort.seconds)
    for number in range(run.effort.rounds):
        for lane in throughput.hit_lanes(run.stack, run.load):
            found = floods.run(lane)
            say(f"round {number + 1} of {run.effort.rounds}: {lane.name} {found.rate:.0f}/s")
    run.rows += throughput.hit_rows(floods)
    run.failures += [f"{lane}: {said}" for lane, said in floods.complaints.items()]
    run.keep("hits/s", {name: [r.rate for r in rounds] for name, rounds in floods.rounds.items()})


def measure_submit(run: Run) -> None:
    rates: list[float] = []
    last: dict[int, batches.Submitted] = {}
    for number in range(run.effort.rounds):
        for rows in batches.ROWS:
            found = last[rows] = batches.submit(run.stack, rows)
            say(f"round {number + 1} of {run.effort.rounds}: {rows:,} rows, {found.rate:,.0f} rows/s")
            if rows == max(batches.ROWS):
                rates.append(found.rate)
    section = "a batch, from its upload to rows that can be sent"
    largest = last[max(batches.ROWS)]
    note = f"{largest.file_bytes / largest.rows:.0f} bytes a row; upload {largest.upload:.2f} s of {largest.total:.2f}"
    run.rows.append(_least(section, f"{largest.rows:,} rows", p50(rates), targets.SUBMITTED, "rows/s", note))
    for name, target in targets.BATCH_MIB.items():
        note = ", ".join(f"{rows:,} rows: {found.grown[name]:.0f}" for rows, found in last.items())
        grown = max(found.grown[name] for found in last.values())
        run.rows.append(_most(section, f"memory of the {name} beyond idle", grown, target, "MiB", note))
    size = largest.sql_bytes / largest.rows
    run.rows.append(Row(section=section, name="SQL, SQLite", value=size, unit="B a row"))
    run.keep("submitted rows/s", {"rate": rates})


def _least(section: str, name: str, value: float, target: float, unit: str, note: str = "") -> Row:
    return Row(
        section=section,
        name=name,
        value=value,
        unit=unit,
        target=f"≥ {target:,} {unit}",
        met=value >= target,
        note=note,
    )


def _most(section: str, name: str, value: float, target: float, unit: str, note: str = "") -> Row:
    return Row(
        section=section,
        name=name,
        value=value,
        unit=unit,
        target=f"≤ {target} {unit}",
        met=value <= target,
        note=note,
    )


MEASURES: dict[str, Callable[[Run], None]] = {
    "throughput": measure_throughput,
    "first-chunk": measure_first_chunk,
    "delay": measure_delay,
    "memory": measure_memory,
    "resume": measure_resume,
    "usage": measure_usage,
    "hits": measure_hits,
    "submit": measure_submit,
}


def say(line: str) -> None:
    """Progress, out of the way of the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)
