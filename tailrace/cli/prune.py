"""``tailrace prune``: the end of old completions."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from tailrace.cli.options import Home
from tailrace.cli.server_side import database

DAY_MS = 24 * 3600 * 1000


def prune(
    days: Annotated[
        float | None,
        typer.Option(
            "--older-than", metavar="DAYS", min=0, help="Days to keep (default: TAILRACE_RETENTION_DAYS)."
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Remove completions that are older than some days, with their texts. Their usage records stay."""
    days = _configured() if days is None else days
    with database(home) as engine:
        from stores import retention

        pruned = retention.prune(engine, int(time.time() * 1000 - days * DAY_MS))
    print(f"{pruned:,} completions removed")


def _configured() -> float:
    text = os.environ.get("TAILRACE_RETENTION_DAYS", "")
    try:
        days = float(text)
    except ValueError:
        days = -1
    if days <= 0:
        raise typer.BadParameter(
            "say how many days to keep, or set TAILRACE_RETENTION_DAYS", param_hint="--older-than"
        )
    return days
