"""``tailrace migrate``: the database schema."""

from __future__ import annotations

from typing import Annotated

import typer

from tailrace.cli.options import Home
from tailrace.cli.server_side import database


def migrate(
    down: Annotated[
        str | None,
        typer.Option(
            "--down", metavar="REV", help="Go back to this revision instead; 'base' empties the database."
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Bring the database to the newest schema."""
    with database(home, migrated=False) as engine:
        from stores import migration

        if down is None:
            migration.migrate(engine)
        else:
            migration.downgrade(engine, down)
        print(f"the database is at revision {migration.current_revision(engine) or 'base'}")
