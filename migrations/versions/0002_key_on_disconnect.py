"""What becomes of completions whose client leaves, by key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("on_disconnect", sa.Text()))


def downgrade() -> None:
    op.drop_column("api_keys", "on_disconnect")
