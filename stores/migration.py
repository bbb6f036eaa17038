"""The schema's revision: migrating to one, and checking that the database is at the one that the code knows."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine

from schemas.errors import ConfigurationError
from stores import postgresql
from stores.sql import BUSY_SECONDS, LOCK_MIGRATION, is_sqlite, lock, make_engine, place, reading

if TYPE_CHECKING:
    from alembic.config import Config

#: How long one migration waits for another process's, seconds.
WAIT_SECONDS = 300

_MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def migrate(target: Engine | str, revision: str = "head") -> None:
    """Bring the schema to ``revision``. Two processes may do so at once: the second waits and finds it done.

    Raises ConfigurationError for a database that cannot be opened or that a newer Tailrace has migrated.
    """
    from alembic import command

    with _alembic(target) as config:
        command.upgrade(config, revision)


def downgrade(target: Engine | str, revision: str = "base") -> None:
    """Take the schema back to ``revision``. What newer tables and columns held is lost."""
    from alembic import command

    with _alembic(target) as config:
        command.downgrade(config, revision)


@contextmanager
def _alembic(target: Engine | str) -> Generator[Config]:
    """Alembic's configuration, holding a connection in a transaction that excludes other migrations."""
    engine = make_engine(target) if isinstance(target, str) else target
    try:
        with engine.connect() as connection:
            if is_sqlite(engine):
                # Only outside a transaction; and a table that is rebuilt must not cascade to its children.
                _pragmas(connection, busy_timeout=WAIT_SECONDS * 1000, foreign_keys=0)
            try:
                with connection.begin():
                    if not is_sqlite(engine):
                        connection.detach()  # a connection that waits without bound goes back to no pool
                        postgresql.wait_for_ever(connection)
                        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
                        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{WAIT_SECONDS}s'")
                        lock(connection, LOCK_MIGRATION)
                    _refuse_newer(_revision(connection))
                    yield alembic_config(connection)
            finally:
                if is_sqlite(engine):
                    _pragmas(connection, busy_timeout=BUSY_SECONDS * 1000, foreign_keys=1)
    finally:
        if isinstance(target, str):
            engine.dispose()


def _pragmas(connection: Connection, **values: int) -> None:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    for name, value in values.items():
        driver.execute(f"PRAGMA {name} = {value}")


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without a file; ``connection`` is what its commands then run on."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def current_revision(engine: Engine) -> str | None:
    """The schema's revision, None for a database that was never migrated."""
    with reading(engine) as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    """The revision that this version of Tailrace works with."""
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert head is not None
    return head


def check_schema(engine: Engine) -> None:
    """Raises ConfigurationError unless the database is at this version's revision."""
    current = current_revision(engine)
    if current == head_revision():
        return
    _refuse_newer(current)
    state = (
        "has no tables yet" if current is None else f"is at schema revision {current}, not {head_revision()}"
    )
    raise ConfigurationError(f"The database {place(engine.url)} {state}: run `tailrace migrate`.")


def _refuse_newer(revision: str | None) -> None:
    from alembic.script import ScriptDirectory

    if revision is None:
        return
    script = ScriptDirectory.from_config(alembic_config())
    if revision not in {each.revision for each in script.walk_revisions()}:
        raise ConfigurationError(
            f"The database is at schema revision {revision}, which this Tailrace does not know: run a newer one."
        )
