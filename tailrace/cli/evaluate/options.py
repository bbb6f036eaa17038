"""Options that the commands of runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[
    Path,
    typer.Option("--runs", metavar="DIR", file_okay=False, help="Where runs are."),
]
RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's folder, its id, the beginning of one, or `latest`."),
]
Budget = Annotated[
    float | None,
    typer.Option("--budget", metavar="DOLLARS", min=0.000001, help="Stop when it has cost so much."),
]
LocalModel = Annotated[
    bool, typer.Option("--local-model", help="With no server configured: a small real model on this CPU.")
]
