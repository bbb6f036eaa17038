"""For the commands that work on the server's own parts: where the database is, and their errors as one line."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tailrace import connection
from tailrace.errors import TailraceError

if TYPE_CHECKING:
    from sqlalchemy import Engine


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
