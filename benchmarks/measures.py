"""The measures: each runs what it compares in turns and adds its rows to the report."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import batches, bulk, latency, logs, targets, throughput, usage
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
    for name in ("gateway", "bulk"):
        run.rows.append(_grown(section, name, {rows: found.grown[name] for rows, found in last.items()}))
    size = largest.sql_bytes / largest.rows
    run.rows.append(Row(section=section, name="SQL, SQLite", value=size, unit="B a row"))
    run.keep("submitted rows/s", {"rate": rates})


def measure_bulk(run: Run) -> None:
    sdk = run.exit.enter_context(Load("benchmarks.sdk"))
    section = f"bulk, {throughput.STREAMS} at once, {throughput.CHUNKS} chunks {throughput.PACE} ms apart"
    found: list[bulk.Pair] = []
    for pair in bulk.pairs(run.stack, sdk, seconds=run.effort.seconds, rounds=run.effort.rounds):
        found.append(pair)
        say(
            f"round {len(found)} of {run.effort.rounds}: script {pair.script:.1f}/s, batch "
            f"{pair.batch.rows / pair.batch.ended:.1f} rows/s"
        )
    scripts, rates = [pair.script for pair in found], [pair.batch.rows / pair.batch.ended for pair in found]
    note = f"{p50([pair.script_cpu for pair in found]):,.0f} µs of CPU each; {min(scripts):.0f} to {max(scripts):.0f}"
    run.rows.append(Row(section=section, name="openai SDK script", value=p50(scripts), unit="/s", note=note))
    note = (
        f"{p50([pair.batch.cpu for pair in found]):,.0f} µs of CPU each; {min(rates):.0f} to {max(rates):.0f}"
    )
    run.rows.append(Row(section=section, name="a batch", value=p50(rates), unit="rows/s", note=note))
    whole = p50([pair.ratio for pair in found])
    target = f"≥ {targets.OF_SDK} ×, then ≥ {targets.OF_SDK_NEXT} ×"
    run.rows.append(
        Row(
            section=section,
            name="batch / script, until all rows had ended",
            value=whole,
            unit="×",
            target=target,
            met=whole >= targets.OF_SDK,
        )
    )
    whole = p50([pair.whole_ratio for pair in found])
    note = f"{bulk.ROWS:,} rows"
    run.rows.append(
        Row(section=section, name="batch / script, from POST to output", value=whole, unit="×", note=note)
    )
    run.keep("bulk rows/s", {"script": scripts, "batch": rates})


def measure_batches(run: Run) -> None:
    """One pass of each: sent, then answered by the cache, then by the command."""
    sent: dict[int, batches.Answered] = {}
    cached: dict[int, batches.Answered] = {}
    command: dict[int, float] = {}
    with TemporaryDirectory(prefix="tr-bench-") as folder:
        for rows in (batches.FEW, *batches.ROWS):
            path = Path(folder) / f"{rows}.jsonl"
            # The seed, so that no file's rows are another's.
            batches.write_input(path, rows, temperature=0, seed=rows, fake={"chunks": 1})
            found = batches.answer(run.stack, path)
            say(f"{rows:,} rows: {rows / found.ended:,.0f} rows/s sent, {found.cpu:,.0f} µs of CPU each")
            again = batches.answer(run.stack, path)
            say(f"{rows:,} rows: {rows / again.ended:,.0f} rows/s cached, {again.cpu:,.0f} µs of CPU each")
            command[rows] = batches.command(run.stack, path)
            if rows != batches.FEW:
                sent[rows], cached[rows] = found, again
    most = max(batches.ROWS)
    section = "batches of answers of one chunk"
    for name, answers in (("sent", sent), ("cached", cached)):
        for rows, found in answers.items():
            note = (
                f"files {found.files:.1f} s, POST to output {found.total:.1f} s; {found.cpu:,.0f} µs of CPU and "
                f"{found.sql_bytes / rows:,.0f} bytes of SQL a row"
            )
            rate = rows / found.ended
            run.rows.append(
                Row(section=section, name=f"{rows:,} rows {name}", value=rate, unit="rows/s", note=note)
            )
    name = f"{most:,} cached rows, in progress to completed"
    seconds = cached[most].ended + cached[most].files
    run.rows.append(_most(section, name, seconds, targets.CACHED_SECONDS, "s"))
    name = "CPU of a cached row, POST to output"
    run.rows.append(_most(section, name, cached[most].cpu, targets.CACHED_CPU, "µs"))
    for name in ("gateway", "bulk", "redis"):
        grown = {rows: max(sent[rows].grown[name], cached[rows].grown[name]) for rows in batches.ROWS}
        run.rows.append(_grown(section, name, grown))
    beyond = {rows: command[rows] - command[batches.FEW] for rows in batches.ROWS}
    run.rows.append(_grown(section, "command", beyond))


def _grown(section: str, name: str, grown: Mapping[int, float]) -> Row:
    note = ", ".join(f"{rows:,} rows: {size:.0f}" for rows, size in grown.items())
    most = max(grown.values())
    return _most(section, f"memory of the {name} beyond idle", most, targets.BATCH_MIB[name], "MiB", note)


def measure_interactive(run: Run) -> None:
    say(f"first chunk of interactive requests, {bulk.WAITING:,} rows waiting")
    times = bulk.first_chunks(run.stack, run.load, count=run.effort.requests)
    section = f"first chunk of an interactive request, {bulk.WAITING:,} bulk rows in the queue"
    for name, what in (("limited", "provider with a limit"), ("unlimited", "provider without one")):
        idle, busy = times[f"idle, {name}"], times[name]
        note = f"idle {p50(idle):.1f} ms, now {p50(busy):.1f} ms; p99 {p99(idle):.1f} and {p99(busy):.1f} ms"
        added = p50(busy) - p50(idle)
        run.rows.append(
            _most(section, f"added by the queue, p50, {what}", added, targets.QUEUED_MS, "ms", note)
        )
    run.keep("first chunk ms beside bulk", times)


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
    "bulk": measure_bulk,
    "batches": measure_batches,
    "interactive": measure_interactive,
}


def say(line: str) -> None:
    """Progress, out of the way of the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)
