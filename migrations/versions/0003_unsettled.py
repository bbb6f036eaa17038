"""An index of the completions that have no end yet: few among many."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = "ix_completions_unsettled"


def upgrade() -> None:
    queued = sa.text("status = 'queued'")
    op.create_index(NAME, "completions", ["id"], sqlite_where=queued, postgresql_where=queued)


def downgrade() -> None:
    op.drop_index(NAME, "completions")
