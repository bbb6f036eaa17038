"""For the commands that work on the server's own parts: where the database is, and their errors as one line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tailrace import connection
from tailrace.errors import TailraceError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from schemas.settings import Settings
    from stores.redis import Redis
    from stores.storage import Storage

T = TypeVar("T")

#: What ``connection.json`` says in place of settings that are not in the environment.
_SETTINGS = ("redis_url", "broker_url", "database_url")
#: How long Redis may take to answer the first time, in seconds, and how often it is asked: on a machine with much to do
#: the command itself is slow.
PATIENCE, TRIES = 3.0, 3


def database_url(home: Path | None) -> str:
    """``TAILRACE_DATABASE_URL``, else the database of the home folder's stack. Raises TailraceError."""
    url = None if home else os.environ.get("TAILRACE_DATABASE_URL")
    if url:
        return url
    folder = connection.home_path(home)
    found = connection.read(folder)
    if found is None or not found.database_url:
        raise TailraceError(
            f"no database is known (looked in {folder}): set TAILRACE_DATABASE_URL, or start a stack: tailrace up"
        )
    return found.database_url


@contextmanager
def database(home: Path | None, *, migrated: bool = True) -> Generator[Engine]:
    """The database, open; what the server's own modules raise comes out as TailraceError.

    ``migrated``: it must have the tables of this version.
    """
    url = database_url(home)
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from schemas.errors import TailraceError as ServerError
    from stores.migration import check_schema
    from stores.sql import make_engine

    try:
        engine = make_engine(url)
        try:
            if migrated:
                check_schema(engine)
            yield engine
        finally:
            engine.dispose()
    except ServerError as error:
        raise TailraceError(error.message) from None
    except CommandError as error:
        raise TailraceError(str(error)) from None
    except SQLAlchemyError as error:
        raise TailraceError(f"the database refused: {getattr(error, 'orig', None) or error}") from None


def settings_of(home: Path | None, folder: Path) -> tuple[Settings, bool]:
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
        if there.files and not os.environ.get("TAILRACE_FILES"):
            values["files"] = there.files
    try:
        return Settings(**values), own
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise TailraceError(f"TAILRACE_{str(first['loc'][0]).upper()}: {first['msg']}") from None


def open_storage(home: Path | None) -> Storage:
    """Where the files of the stack are: ``TAILRACE_FILES``, else what ``connection.json`` says, else the home folder.

    Raises the server's errors, for the block of ``database``.
    """
    from schemas.settings import Settings
    from stores import storage

    folder = connection.home_path(home)
    there = connection.read(folder)
    given = os.environ.get("TAILRACE_FILES") if home is None else None
    return storage.open_storage(
        Settings(home=folder, files=given or (there.files if there is not None else None) or None)
    )


def run(work: Coroutine[Any, Any, T]) -> T:
    from schemas.errors import TailraceError as ServerError

    try:
        return asyncio.run(work)
    except ServerError as error:
        raise TailraceError(error.message) from None


async def open_redis(settings: Settings) -> Redis:
    from schemas.errors import Unavailable
    from stores.redis import Redis

    for _ in range(TRIES - 1):
        with suppress(Unavailable):
            return await Redis.open(settings.redis_url, partitions=settings.partitions, patience=PATIENCE)
    return await Redis.open(settings.redis_url, partitions=settings.partitions, patience=PATIENCE)
