"""What Alembic runs: the revisions, on the connection that ``stores.migration`` hands over in its transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from schemas.tables import metadata

connection = context.config.attributes.get("connection")
if not isinstance(connection, Connection):
    raise RuntimeError(
        "Migrations run through stores.migration.migrate(), which brings the connection and its lock."
    )

context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
