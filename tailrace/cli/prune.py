"""``tailrace prune``: the end of old completions."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tailrace import connection
from tailrace.cli.options import Home
from tailrace.cli.output import warn
from tailrace.cli.server_side import database, open_redis, run, settings_of
from tailrace.errors import TailraceError

DAY_MS = 24 * 3600 * 1000


def prune(
    days: Annotated[
        float | None,
        typer.Option(
            "--older-than", metavar="DAYS", min=0, help="Days to keep (default: TAILRACE_RETENTION_DAYS)."
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(metavar="T", help="Remove a tenant with all that it has, its keys too.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask whether a tenant is to go.")] = False,
    home: Home = None,
) -> None:
    """Remove completions that are older than some days, with their texts. Their usage records stay.

    With --tenant, remove all that a tenant has: keys, completions, texts, usage records, what is in Redis.
    """
    if tenant is not None:
        if days is not None:
            raise typer.BadParameter("a tenant goes whole", param_hint="--older-than")
        if not yes:
            typer.confirm(f"Remove the tenant '{tenant}' with all that it has?", abort=True, err=True)
        _erase(tenant, home)
        return
    days = _configured() if days is None else days
    with database(home) as engine:
        from stores import retention

        uncached: list[str] = []
        pruned = retention.prune(engine, int(time.time() * 1000 - days * DAY_MS), uncached.extend)
    print(f"{pruned:,} completions removed")
    if uncached:
        _cool(uncached, home)


def _cool(fingerprints: Sequence[str], home: Path | None) -> None:
    """Drop Redis's copies of cached results that are gone."""

    async def cool() -> None:
        from stores.flights import Flights

        redis = await open_redis(settings)
        try:
            await Flights(redis).cool(*fingerprints)
        finally:
            redis.close()

    try:
        settings, _ = settings_of(home, connection.home_path(home))
        run(cool())
    except TailraceError as error:
        warn(f"copies of cached results stay in Redis until they expire: {error}")


def _erase(tenant: str, home: Path | None) -> None:
    settings, _ = settings_of(home, connection.home_path(home))
    with database(home) as engine:
        from producers.erasure import Erased, Erasure

        async def erase() -> Erased:
            redis = await open_redis(settings)
            try:
                return await Erasure(redis, engine, key_seconds=settings.key_cache_seconds).erase(tenant)
            finally:
                redis.close()

        erased = run(erase())
    print(f"{erased.completions:,} completions and {erased.keys:,} keys of the tenant '{tenant}' removed")


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
