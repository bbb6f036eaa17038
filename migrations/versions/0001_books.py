"""API keys, completions, generations with their results and attempts, usage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    postgresql = op.get_context().dialect.name == "postgresql"

    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )

    op.create_table(
        "completions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("generation_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("end_user", sa.Text()),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("resolved_model", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("store", sa.Boolean(), nullable=False),
        sa.Column("metadata", _json),
        sa.Column("cache", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("deadline_ms", sa.BigInteger()),
        sa.Column("ended_ms", sa.BigInteger()),
        sa.Column("deleted_ms", sa.BigInteger()),
        sa.Column("tail", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_completions"),
    )
    if postgresql:
        # Each row is updated once, when it is settled. With room beside it no index has to follow: 25 µs less.
        op.execute("ALTER TABLE completions SET (fillfactor = 50)")
    op.create_index("ix_completions_tenant_created_ms_id", "completions", ["tenant", "created_ms", "id"])
    op.create_index(
        "ix_completions_tenant_end_user_created_ms_id",
        "completions",
        ["tenant", "end_user", "created_ms", "id"],
    )
    op.create_index("ix_completions_generation_id", "completions", ["generation_id"])

    op.create_table(
        "generations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("base", sa.BigInteger(), nullable=False),
        sa.Column("next", sa.BigInteger(), nullable=False),
        sa.Column("failure", _json),
        sa.Column("finish_reasons", _json, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("leased_ms", sa.BigInteger()),
        sa.Column("first_chunk_ms", sa.BigInteger()),
        sa.Column("ended_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_generations"),
    )

    op.create_table(
        "results",
        sa.Column("generation_id", sa.Text(), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=False),
        sa.Column("items", sa.LargeBinary(), nullable=False),
        sa.Column("compressed", sa.Boolean(), nullable=False),
        sa.Column("base", sa.BigInteger(), nullable=False),
        sa.Column("next", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("generation_id", name="pk_results"),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generations.id"], name="fk_results_generation_id", ondelete="CASCADE"
        ),
    )
    if postgresql:
        # The items are compressed before they come here; PostgreSQL need not try again.
        op.execute("ALTER TABLE results ALTER COLUMN items SET STORAGE EXTERNAL")

    op.create_table(
        "attempts",
        sa.Column("generation_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger()),
        sa.Column("started_ms", sa.BigInteger()),
        sa.Column("ended_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("generation_id", "number", name="pk_attempts"),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generations.id"], name="fk_attempts_generation_id", ondelete="CASCADE"
        ),
    )

    op.create_table(
        "usage",
        sa.Column("completion_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("end_user", sa.Text()),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("resolved_model", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger()),
        sa.Column("cache", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("queue_ms", sa.BigInteger()),
        sa.Column("first_chunk_ms", sa.BigInteger()),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("completion_id", name="pk_usage"),
    )
    op.create_index("ix_usage_tenant_created_ms", "usage", ["tenant", "created_ms"])


def downgrade() -> None:
    for table in ("usage", "attempts", "results", "generations", "completions", "api_keys"):
        op.drop_table(table)
