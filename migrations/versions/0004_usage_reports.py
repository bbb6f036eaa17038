"""Usage: what hits and joins saved, batches, and an index that reports read alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("completions", sa.Column("batch_id", sa.Text()))
    op.add_column("usage", sa.Column("saved_nano", sa.BigInteger()))
    op.add_column("usage", sa.Column("batch_id", sa.Text()))
    op.drop_index("ix_usage_tenant_created_ms", "usage")
    op.create_index(
        "ix_usage_report",
        "usage",
        [
            "tenant",
            "created_ms",
            "model",
            "key_id",
            "end_user",
            "batch_id",
            "cache",
            "prompt_tokens",
            "completion_tokens",
            "cached_tokens",
            "cost_nano",
            "saved_nano",
        ],
    )


def downgrade() -> None:
    op.drop_index("ix_usage_report", "usage")
    op.create_index("ix_usage_tenant_created_ms", "usage", ["tenant", "created_ms"])
    op.drop_column("usage", "batch_id")
    op.drop_column("usage", "saved_nano")
    op.drop_column("completions", "batch_id")
