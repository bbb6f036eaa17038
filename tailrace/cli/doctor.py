"""``tailrace doctor``: every part looked at, a line for each, and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tailrace import connection
from tailrace.cli.options import Home, Json
from tailrace.errors import TailraceError

if TYPE_CHECKING:
    from schemas.settings import Settings
    from stores.health import Finding
    from stores.redis import Redis

T = TypeVar("T")

#: What ``connection.json`` says in place of settings that are not in the environment.
_SETTINGS = ("redis_url", "broker_url", "database_url")
_COLOURS = {"ok": "32", "warn": "33", "fail": "31"}
#: How long Redis may take to answer the first time, in seconds, and how often it is asked: on a machine with much to do
#: the doctor itself is slow.
PATIENCE, TRIES = 3.0, 3


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
    settings, stack = _settings(home, folder)
    if retry_dead:
        moved = _server_side(_retry(settings))
        print(json.dumps({"retried": moved}) if as_json else f"{moved} records are on the ledger again")
        return
    found = _server_side(_examine(settings, folder if stack else None))
    failed = any(finding.status == "fail" for finding in found)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [_plain(finding) for finding in found]}))
    else:
        _show(found)
    raise typer.Exit(1 if failed else 0)


def _settings(home: Path | None, folder: Path) -> tuple[Settings, bool]:
    """The settings, and whether Redis is the one of the home folder's stack. Raises TailraceError."""
    from pydantic import ValidationError

    from schemas.settings import Settings

    there = connection.read(folder)
    given = {name: os.environ.get(f"TAILRACE_{name.upper()}") for name in _SETTINGS} if home is None else {}
    if there is None and (home is not None or not given["redis_url"]):
        raise TailraceError(
            f"no stack is known (looked in {folder}): set TAILRACE_REDIS_URL and TAILRACE_DATABASE_URL, "
            "or start one: tailrace up"
        )
    # Where only some are given, `tailrace up` has made the others; where Redis is, it is not about its stack.
    own = there is not None and not given.get("redis_url")
    values: dict[str, Any] = {}
    if there is not None and own:
        values = {name: given.get(name) or getattr(there, name) for name in _SETTINGS}
        if there.providers and not os.environ.get("TAILRACE_PROVIDERS"):
            values["providers"] = there.providers
    try:
        return Settings(**values), own
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise TailraceError(f"TAILRACE_{str(first['loc'][0]).upper()}: {first['msg']}") from None


def _server_side(work: Coroutine[Any, Any, T]) -> T:
    from schemas.errors import TailraceError as ServerError

    try:
        return asyncio.run(work)
    except ServerError as error:
        raise TailraceError(error.message) from None


async def _open(settings: Settings) -> Redis:
    from schemas.errors import Unavailable
    from stores.redis import Redis

    for _ in range(TRIES - 1):
        with contextlib.suppress(Unavailable):
            return await Redis.open(settings.redis_url, partitions=settings.partitions, patience=PATIENCE)
    return await Redis.open(settings.redis_url, partitions=settings.partitions, patience=PATIENCE)


async def _retry(settings: Settings) -> int:
    from stores.ledger import retry_dead

    redis = await _open(settings)
    try:
        return sum([await retry_dead(redis, partition) for partition in range(redis.partitions)])
    finally:
        redis.close()


async def _examine(settings: Settings, stack: Path | None) -> list[Finding]:
    """All checks; of a stack that is not running, those that need none of its processes."""
    from producers import health as outside
    from stores import health

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
    looks = [asyncio.to_thread(health.database, settings), outside.providers(settings)]
    if running:
        looks = [_redis(settings), *looks, asyncio.to_thread(outside.broker, settings)]
    parts = await asyncio.gather(*looks)
    return [*found, *(finding for part in parts for finding in part)]


async def _redis(settings: Settings) -> list[Finding]:
    from schemas.errors import TailraceError as ServerError
    from stores import health

    try:
        redis = await _open(settings)
    except ServerError as error:
        return [health.fail("redis", error.message, "Nothing works without it.")]
    try:
        return await health.redis_findings(redis, settings)
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
