"""``tailrace doctor``: every part looked at, a line for each, and what to do."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailrace import connection
from tailrace.cli.options import Home, Json
from tailrace.cli.server_side import open_redis, run, settings_of

if TYPE_CHECKING:
    from schemas.settings import Settings
    from stores.health import Finding

_COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


def doctor(
    retry_dead: Annotated[
        bool,
        typer.Option(
            "--retry-dead", help="Put records that the database refused back on the ledger, and end."
        ),
    ] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Check every part, and say what to do: exit 1 where something has failed, 0 with warnings alone.

    It looks where TAILRACE_REDIS_URL, TAILRACE_BROKER_URL and TAILRACE_DATABASE_URL say, else at the stack that
    `tailrace up` runs in the home folder.
    """
    folder = connection.home_path(home)
    settings, stack = settings_of(home, folder)
    if retry_dead:
        moved = run(_retry(settings))
        print(json.dumps({"retried": moved}) if as_json else f"{moved} records are on the ledger again")
        return
    found = run(_examine(settings, folder if stack else None))
    failed = any(finding.status == "fail" for finding in found)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [_plain(finding) for finding in found]}))
    else:
        _show(found)
    raise typer.Exit(1 if failed else 0)


async def _retry(settings: Settings) -> int:
    from stores.ledger import retry_dead

    redis = await open_redis(settings)
    try:
        return sum([await retry_dead(redis, partition) for partition in range(redis.partitions)])
    finally:
        redis.close()


async def _examine(settings: Settings, stack: Path | None) -> list[Finding]:
    """All checks; of a stack that is not running, those that need none of its processes."""
    from producers import health as outside
    from stores import health, storage_health

    found: list[Finding] = []
    running = True
    if stack is not None:
        running = _is_running(stack)
        if running:
            found.append(health.ok("stack", f"`tailrace up` runs in {stack}"))
        else:
            found.append(
                health.fail("stack", f"the one of {stack} is not running", "Start it: `tailrace up`.")
            )
    looks = [
        asyncio.to_thread(health.database, settings),
        asyncio.to_thread(storage_health.files, settings),
        outside.providers(settings),
    ]
    if running:
        looks = [_redis(settings), *looks, asyncio.to_thread(outside.broker, settings)]
    parts = await asyncio.gather(*looks)
    return [*found, *(finding for part in parts for finding in part)]


async def _redis(settings: Settings) -> list[Finding]:
    from producers import health as outside
    from schemas.errors import TailraceError as ServerError
    from stores import health
    from stores.limit_health import limit_findings

    try:
        redis = await open_redis(settings)
    except ServerError as error:
        return [health.fail("redis", error.message, "Nothing works without it.")]
    try:
        found = await health.redis_findings(redis, settings)
        return [*found, *await limit_findings(redis, settings), *await outside.circuits(settings, redis)]
    finally:
        redis.close()


def _is_running(home: Path) -> bool:
    """Somebody holds the lock of the home folder."""
    try:
        descriptor = os.open(home / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _plain(finding: Finding) -> dict[str, str]:
    return {
        "check": finding.check,
        "status": finding.status.value,
        "found": finding.found,
        "advice": finding.advice,
    }


def _show(found: list[Finding]) -> None:
    width = max(len(finding.check) for finding in found)
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for finding in found:
        mark = f"{finding.status.value:4}"
        if colours:
            mark = f"\033[{_COLOURS[finding.status.value]}m{mark}\033[0m"
        advice = f". {finding.advice}" if finding.advice else ""
        print(f"{mark}  {finding.check:{width}}  {' '.join((finding.found + advice).split())}")
