"""Limits of API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LIMITS = ("rpm", "tpm", "concurrent", "queued", "queued_bytes", "budget_nano")


def upgrade() -> None:
    for name in LIMITS:
        op.add_column("api_keys", sa.Column(name, sa.BigInteger()))


def downgrade() -> None:
    for name in reversed(LIMITS):
        op.drop_column("api_keys", name)
