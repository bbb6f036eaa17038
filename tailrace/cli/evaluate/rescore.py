"""``tailrace eval rescore``: other scores for the answers that a run has. No model is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tailrace.cli.batch import job
from tailrace.cli.evaluate.options import RunName, Runs
from tailrace.cli.options import Json
from tailrace.cli.output import say


def rescore(
    run: RunName,
    scorers: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            metavar="SCORER",
            help="A kind (exact), or all of one as YAML ({type: numeric, tolerance: 0.1}); repeatable. "
            "Default: those of the run, as they are now.",
        ),
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Leave out the scorers that the run has.")] = False,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Score the answers of a run again: with the scorers given, beside or in place of those that it has. What judges
    have said is kept; nobody is asked."""
    from tailrace.cli.evaluate.look import as_value, tell
    from tailrace.evaluation import folder as folders
    from tailrace.evaluation.rescoring import rescored
    from tailrace.evaluation.runner import Run

    folder = folders.find(runs, run)
    with job.on_disk(folder.path / "."), folder.locked():
        before = folder.manifest.status
        folder.manifest.suite = rescored(folder, scorers or (), only=only)
        with Run(folder) as again:
            again.conclude(again=True)
        if not as_json:
            say(f"{folder.manifest.id}, {before}, with {len(again.suite.scorers)} scorers:")
    if as_json:
        print(json.dumps(as_value(folder)))
    else:
        tell(folder)
