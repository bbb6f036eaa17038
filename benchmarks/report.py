"""The table: what was measured, its target, and whether it was met."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line. ``value`` None: it could not be measured, and ``note`` says why. ``met`` None: there is no target."""

    section: str
    name: str
    value: float | None
    unit: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run. ``rounds`` are the single measurements behind the medians, by name."""

    machine: dict[str, str]
    rows: list[Row]
    rounds: dict[str, list[float]]


def show(report: Report) -> None:
    """A table on a terminal, plain lines elsewhere."""
    terminal = sys.stdout.isatty()
    text = StringIO()
    console = Console(highlight=False) if terminal else Console(file=text, width=400, highlight=False)
    for name, fact in report.machine.items():
        console.print(f"{name}: {fact}", markup=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD if terminal else None, pad_edge=False)
    for title in ("measure", "result", "target", "met", "note"):
        table.add_column(title, justify="right" if title == "result" else "left")
    section = ""
    for row in report.rows:
        if row.section != section:
            section = row.section
            table.add_row()
            table.add_row(f"[bold]{section}[/bold]")
        table.add_row(f"  {row.name}", number(row), row.target, _met(row), row.note)
    console.print(table)
    missed = [row.name for row in report.rows if row.met is False]
    judged = [row for row in report.rows if row.met is not None]
    console.print(f"\n{len(judged) - len(missed)} of {len(judged)} targets met", soft_wrap=True)
    sys.stdout.writelines(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def number(row: Row) -> str:
    if row.value is None:
        return "–"
    digits = 0 if abs(row.value) >= 100 else 1 if abs(row.value) >= 10 else 2
    return f"{row.value:,.{digits}f} {row.unit}".rstrip()


def _met(row: Row) -> str:
    return {None: "", True: "[green]yes[/green]", False: "[red]no[/red]"}[row.met]


def save(report: Report, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def rounded(rounds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: [round(value, 4) for value in values] for name, values in rounds.items()}
