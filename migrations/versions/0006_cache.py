"""Results that may answer equal requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cache",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("generation_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("resolved_model", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("hits", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["results.generation_id"],
            name=op.f("fk_cache_generation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant", "fingerprint", name=op.f("pk_cache")),
    )
    op.create_index(op.f("ix_cache_tenant_created_ms"), "cache", ["tenant", "created_ms"])
    op.create_index(op.f("ix_cache_generation_id"), "cache", ["generation_id"])
    op.create_index(op.f("ix_cache_expires_ms"), "cache", ["expires_ms"])


def downgrade() -> None:
    op.drop_table("cache")
