"""``tailrace eval list`` and ``show``: the runs that there are, and how one has ended."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace.amounts import money
from tailrace.cli.evaluate.options import RunName, Runs
from tailrace.cli.options import Json
from tailrace.cli.output import say, warn

if TYPE_CHECKING:
    from tailrace.evaluation.folder import Folder
    from tailrace.evaluation.outputs import Summary


def list_runs(
    runs: Runs = Path("runs"),
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only runs with this tag.")] = None,
    as_json: Json = False,
) -> None:
    """List runs, the newest first."""
    from tailrace.evaluation import folder as folders

    found = [folder for folder in folders.every(runs) if tag is None or tag in folder.manifest.tags]
    if as_json:
        for folder in found:
            print(json.dumps(as_value(folder, short=True)))
    elif found:
        _print_list(found)
    else:
        say(f"there are no runs in {runs}" + (f" with the tag {tag!r}" if tag else ""))


def show(
    run: RunName,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Show the figures of a run."""
    from tailrace.evaluation import folder as folders

    folder = folders.find(runs, run)
    if as_json:
        print(json.dumps(as_value(folder)))
    else:
        tell(folder)


def tell(folder: Folder) -> None:
    """The figures, for a person."""
    from tailrace.evaluation import terminal
    from tailrace.evaluation.folder import REPORT
    from tailrace.evaluation.outputs import read_summary

    summary = read_summary(folder.path)
    if summary is None:
        say(f"{folder.manifest.id} is {status_of(folder)} and has no results yet")
        return
    report = str(folder.path / REPORT)
    terminal.summary(summary.run, summary.figures, terminal.make_console(), report=report)


def status_of(folder: Folder) -> str:
    """A run that nobody works on has been left."""
    from tailrace.errors import TailraceError

    status = folder.manifest.status
    if status != "running":
        return status
    try:
        with folder.locked():
            return "detached"
    except TailraceError:
        return status


def as_value(folder: Folder, *, short: bool = False) -> dict[str, Any]:
    """A run for programs; ``short`` leaves the figures out."""
    import msgspec

    from tailrace.evaluation.folder import REPORT, SAMPLES
    from tailrace.evaluation.outputs import read_summary

    manifest = folder.manifest
    told: dict[str, Any] = {
        "id": manifest.id,
        "folder": str(folder.path),
        "suite": manifest.name,
        "tags": manifest.tags,
        "status": status_of(folder),
        "reason": manifest.reason,
        "created": round(manifest.created),
        "items": manifest.items,
        "cost_nano": str(manifest.spent_nano),
        "seconds": round(manifest.seconds, 3),
    }
    summary = _listed(folder) if short else read_summary(folder.path)
    if summary is None:
        return told | {"scores": None}
    if short:
        return told | {"scores": _scores(summary.figures)}
    files = {"report": str(folder.path / REPORT), "samples": str(folder.path / SAMPLES)}
    return told | files | {"figures": msgspec.to_builtins(summary.figures, str_keys=True)}


def _listed(folder: Folder) -> Summary | None:
    """A list shows all runs, also one whose summary is broken."""
    from tailrace.errors import TailraceError
    from tailrace.evaluation.outputs import read_summary

    try:
        return read_summary(folder.path)
    except TailraceError as error:
        warn(str(error))
        return None


def _scores(figures: Any) -> dict[str, dict[str, float | None]]:
    return {
        arm.key: {
            name: None if scorer.score is None else scorer.score.mean for name, scorer in arm.scorers.items()
        }
        for arm in figures.arms
    }


def _print_list(found: list[Folder]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from tailrace.evaluation.terminal import make_console

    console = make_console()
    table = Table(box=SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for title, justify in (("run", "left"), ("begun", "left"), ("status", "left"), ("items", "right")):
        table.add_column(title, justify=justify)  # pyright: ignore[reportArgumentType]
    table.add_column("score", overflow="fold")
    table.add_column("cost", justify="right")
    table.add_column("tags")
    for folder in found:
        manifest = folder.manifest
        summary = _listed(folder)
        scores: list[str] = []
        for arm in summary.figures.arms if summary is not None else ():
            first = next(iter(arm.scorers.values()), None)
            mean = "–" if first is None or first.score is None else f"{first.score.mean:.3f}"
            scores.append(f"{arm.key} {mean}")
        cells = [
            folder.path.name,  # by which it is found: copies have the same id
            _when(manifest.created),
            status_of(folder),
            f"{manifest.items:,}",
            ", ".join(scores),
            money(manifest.spent_nano),
            " ".join(manifest.tags),
        ]
        table.add_row(*map(Text, cells))
    console.print(table)


def _when(second: float) -> str:
    age = time.time() - second
    return datetime.fromtimestamp(second, UTC).astimezone().strftime("%H:%M" if age < 43_200 else "%Y-%m-%d")
