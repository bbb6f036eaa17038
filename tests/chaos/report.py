"""What a run came to: tables for a terminal, and all of it as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from tests.chaos.faults import KILL_WORKER, Injected

#: Problems that are printed; ``--json`` has all.
PRINTED = 40


class Report(msgspec.Struct, kw_only=True):
    """Durations are seconds."""

    seed: int
    seconds: float
    wanted: int
    ok: bool = False
    accepted: int = 0
    finished: int = 0
    #: Completions that nobody was told of, and that were finished too.
    strays: int = 0
    #: Asked for without a key, and the answer was lost.
    unknown: int = 0
    running_least: int = 0
    running_median: int = 0
    faults: list[dict[str, Any]] = []
    fault_counts: dict[str, int] = {}
    fault_minimum: int = 0
    kills_hit: int = 0
    kills_minimum: int = 0
    enough: int = 0
    recovery: dict[str, dict[str, float]] = {}
    not_recovered: int = 0
    status: dict[str, int] = {}
    failures: dict[str, int] = {}
    shapes: dict[str, int] = {}
    attempts: dict[str, int] = {}
    provider_requests: dict[str, int] = {}
    restarted: int = 0
    counts: dict[str, int] = {}
    readings: int = 0
    chunks_read: int = 0
    tracebacks: int = 0
    #: How often a part gave up as it started, because a server was away.
    false_starts: dict[str, int] = {}
    unmet: list[str] = []
    problems: dict[str, list[str]] = {}


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Count, p50, p99 and max."""
    found = sorted(values)
    if not found:
        return {"count": 0}
    return {
        "count": len(found),
        "p50": found[len(found) // 2],
        "p99": found[min(len(found) - 1, int(len(found) * 0.99))],
        "max": found[-1],
    }


def fault_rows(injected: Sequence[Injected]) -> list[dict[str, Any]]:
    return [
        {"name": f.name, "part": f.part, "at": round(f.at, 2), "lasted": round(f.lasted, 2), "hit": f.hit}
        for f in injected
    ]


def histogram(values: Iterable[int]) -> dict[str, int]:
    """How often each number comes, as text, in its order."""
    return {str(value): times for value, times in sorted(Counter(values).items())}


def show(report: Report, console: Console) -> None:
    """Tables, what is unmet, and the first problems."""
    faults = Table("fault", "times", "at least", "parts", box=box.SIMPLE_HEAD, title="Faults injected")
    for name, times in report.fault_counts.items():
        parts = Counter(f["part"] for f in report.faults if f["name"] == name)
        told = ", ".join(f"{part} {n}" for part, n in sorted(parts.items())) if len(parts) > 1 else ""
        least = f"{report.kills_minimum} that hit" if name == KILL_WORKER else str(report.fault_minimum)
        if name == KILL_WORKER:
            told = f"{report.kills_hit} hit {report.enough} or more streams: {told}"
        faults.add_row(name, str(times), least, told)
    console.print(faults)

    recovery = Table("recovery after kill -9 (s)", "streams", "p50", "p99", "max", box=box.SIMPLE_HEAD)
    for name, row in report.recovery.items():
        numbers = [f"{row[n]:.1f}" if n in row else "" for n in ("p50", "p99", "max")]
        recovery.add_row(name, str(int(row["count"])), *numbers)
    console.print(recovery)

    table = Table("what", "count", box=box.SIMPLE_HEAD, title="Completions")
    table.add_row("accepted", f"{report.accepted:,}")
    table.add_row("finished", f"{report.finished:,}")
    table.add_row("nobody was told of, and finished", f"{report.strays:,}")
    table.add_row("asked for without a key, and the answer was lost", f"{report.unknown:,}")
    table.add_row("going at once: median, least", f"{report.running_median}, {report.running_least}")
    for name, count in report.status.items():
        table.add_row(f"  {name}", f"{count:,}")
    for name, count in report.failures.items():
        table.add_row(f"    failed: {name}", f"{count:,}")
    table.add_row("attempts: completions", _pairs(report.attempts))
    table.add_row("provider requests: completions", _pairs(report.provider_requests))
    table.add_row("final attempt began behind a restart", f"{report.restarted:,}")
    table.add_row("readers", f"{report.readings:,}")
    table.add_row("chunks read", f"{report.chunks_read:,}")
    for name, count in sorted(report.counts.items()):
        table.add_row(f"  {name}", f"{count:,}")
    table.add_row("ended as they started", _pairs(report.false_starts))
    table.add_row("tracebacks in the logs", f"{report.tracebacks:,}")
    console.print(table)

    for line in report.unmet:
        console.print(f"UNMET  {line}", markup=False, highlight=False)
    for name, problems in list(report.problems.items())[:PRINTED]:
        console.print(f"WRONG  {name}", markup=False, highlight=False)
        for problem in problems[:6]:
            console.print(f"         {problem}", markup=False, highlight=False, soft_wrap=True)
    more = len(report.problems) - PRINTED
    if more > 0:
        console.print(f"       and {more} more: --json FILE has them all", markup=False, highlight=False)
    outcome = "everything was found once" if report.ok else "NOT everything is as it has to be"
    console.print(f"seed {report.seed}: {outcome}", highlight=False)


def _pairs(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value}: {times:,}" for value, times in values.items())


def write(report: Report, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
