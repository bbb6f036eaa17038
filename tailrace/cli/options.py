"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None,
    typer.Option(
        "--home", metavar="DIR", help="Home folder of the stack (default: TAILRACE_HOME or ~/.tailrace)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
