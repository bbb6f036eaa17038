"""The SQL tables: what is kept once Redis has forgotten.

Times are integer milliseconds since the epoch, money is integer nano-units (10⁹ to the unit), and NULL money is money
nobody knows. Column names are those of the ledger's records (``schemas/records.py``) wherever a column holds one of
their fields.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: A JSON document; Python's None is SQL's NULL.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),  # key_<12 hex>
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False),  # SHA-256 of the whole key, in hex
    Column("admin", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
    Column("on_disconnect", Text),  # continue, cancel; NULL is continue
    # Limits; NULL is none.
    Column("rpm", BigInteger),  # requests per minute
    Column("tpm", BigInteger),  # tokens per minute
    Column("concurrent", BigInteger),  # completions that have not ended
    Column("queued", BigInteger),  # completions that no worker has begun
    Column("queued_bytes", BigInteger),  # of their requests
    Column("budget_nano", BigInteger),  # money in a month, in UTC
)

#: A row for each accepted completion. ``status`` is ``queued`` until the completion is settled, and then that of its
#: generation, or its own where it left early; ``tail`` is the index after its last chunk in that last case.
#: ``generation_id`` is no foreign key: the generation's end may come to the books before or after it.
completions = Table(
    "completions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("generation_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("end_user", Text),
    Column("model", Text, nullable=False),  # as asked
    Column("provider", Text, nullable=False),
    Column("resolved_model", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("store", Boolean, nullable=False),
    Column("metadata", Json),
    Column("cache", Text, nullable=False),  # hit, miss, join, bypass
    Column("created_ms", BigInteger, nullable=False),
    Column("deadline_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("deleted_ms", BigInteger),
    Column("tail", BigInteger),
    Column("batch_id", Text),
    Index(None, "tenant", "created_ms", "id"),
    Index(None, "tenant", "end_user", "created_ms", "id"),
    Index(None, "generation_id"),
    Index(
        "ix_completions_unsettled",
        "id",
        sqlite_where=text("status = 'queued'"),
        postgresql_where=text("status = 'queued'"),
    ),
)

#: A row for each generation that has ended.
generations = Table(
    "generations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),  # number of the final one; 0: it never started
    Column("base", BigInteger, nullable=False),
    Column("next", BigInteger, nullable=False),
    Column("failure", Json),
    Column("finish_reasons", Json, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("leased_ms", BigInteger),
    Column("first_chunk_ms", BigInteger),
    Column("ended_ms", BigInteger, nullable=False),
)

#: Chunk logs at rest, as bytes, because PostgreSQL text refuses U+0000. ``items`` is zlib data where ``compressed``.
results = Table(
    "results",
    metadata,
    Column("generation_id", Text, ForeignKey("generations.id", ondelete="CASCADE"), primary_key=True),
    Column("head", LargeBinary, nullable=False),
    Column("items", LargeBinary, nullable=False),
    Column("compressed", Boolean, nullable=False),
    Column("base", BigInteger, nullable=False),
    Column("next", BigInteger, nullable=False),
)

#: What each try of a worker at a generation used and cost.
attempts = Table(
    "attempts",
    metadata,
    Column("generation_id", Text, ForeignKey("generations.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("cost_nano", BigInteger),
    Column("started_ms", BigInteger),
    Column("ended_ms", BigInteger, nullable=False),
)

#: One record for every settled completion, failed and cancelled ones too. It outlives the completion's text.
#: Durations are milliseconds from ``created_ms``. ``cost_nano`` is that of all attempts, where the completion created
#: its generation; of a hit or a join ``saved_nano`` is what the answer cost the one that did.
#:
#: The index has all that reports group by and sum up, so that they read nothing else.
usage = Table(
    "usage",
    metadata,
    Column("completion_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("end_user", Text),
    Column("model", Text, nullable=False),  # as asked
    Column("provider", Text, nullable=False),
    Column("resolved_model", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("cost_nano", BigInteger),
    Column("cache", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("queue_ms", BigInteger),
    Column("first_chunk_ms", BigInteger),
    Column("duration_ms", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("saved_nano", BigInteger),
    Column("batch_id", Text),
    Index(
        "ix_usage_report",
        *("tenant", "created_ms", "model", "key_id", "end_user", "batch_id", "cache"),
        *("prompt_tokens", "completion_tokens", "cached_tokens", "cost_nano", "saved_nano"),
    ),
)

#: Results that may answer equal requests. ``created_ms`` is the end of the generation, from which a result's age
#: counts; ``bytes`` is what its text takes in ``results``.
cache = Table(
    "cache",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("fingerprint", Text, primary_key=True),
    Column("generation_id", Text, ForeignKey("results.generation_id", ondelete="CASCADE"), nullable=False),
    Column("model", Text, nullable=False),  # as asked
    Column("resolved_model", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("hits", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Index(None, "tenant", "created_ms"),
    Index(None, "generation_id"),
    Index(None, "expires_ms"),
)
