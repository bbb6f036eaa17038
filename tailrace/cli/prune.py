"""``tailrace prune``: the end of old completions, batches and files."""

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
from tailrace.cli.server_side import database, open_redis, open_storage, run, settings_of
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
    """Remove completions, ended batches and files that are older than some days. Usage records stay.

    With --tenant, remove all that a tenant has: keys, completions, texts, batches, files, usage records, what is in
    Redis.
    """
    if tenant is not None:
        if days is not None:
            raise typer.BadParameter("a tenant goes whole", param_hint="--older-than")
        if not yes:
            typer.confirm(f"Remove the tenant '{tenant}' with all that it has?", abort=True, err=True)
        _erase(tenant, home)
        return
    days = _configured() if days is None else days
    before_ms = int(time.time() * 1000 - days * DAY_MS)
    uncached: list[str] = []
    with database(home) as engine:
        from stores import retention
        from stores.files import Files

        storage = open_storage(home)
        files = Files(engine)
        if files.are_elsewhere(storage):
            raise TailraceError(
                "the files are not where TAILRACE_FILES and TAILRACE_HOME say: run this with those of the gateway"
            )
        pruned = retention.prune(engine, before_ms, uncached.extend)
        batches = retention.prune_batches(engine, before_ms)
        try:
            cleaned = files.clean(storage, before_ms)
        except OSError as error:
            raise TailraceError(f"the storage of files failed: {error}") from None
    print(f"{pruned:,} completions, {batches:,} batches and {cleaned:,} files removed")
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

        storage = open_storage(home)

        async def erase() -> Erased:
            redis = await open_redis(settings)
            try:
                erasure = Erasure(redis, engine, storage, key_seconds=settings.key_cache_seconds)
                return await erasure.erase(tenant)
            finally:
                redis.close()

        erased = run(erase())
    print(
        f"{erased.completions:,} completions, {erased.batches:,} batches, {erased.files:,} files and "
        f"{erased.keys:,} keys of the tenant '{tenant}' removed"
    )


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
