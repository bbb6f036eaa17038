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
    Float,
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

#: Files of users and of batches; the bytes are in the storage, under ``id``.
files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),  # file-<32 hex>
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("end_user", Text),
    Column("purpose", Text, nullable=False),  # batch, evals, user_data, batch_output
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),  # from then on it is not there for anybody
    Index(None, "tenant", "created_ms", "id"),
)

#: Batches. ``token`` has a job of the batch itself, validating or finalizing, until ``until_ms``. Why a batch stops
#: before its last row is ``stopped``: cancelled, expired or errors. Counts are final once it is over.
batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),  # batch_<32 hex>
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("end_user", Text),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Text, nullable=False),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("status", Text, nullable=False),
    Column("stopped", Text),
    Column("completion_window", Text, nullable=False),
    Column("metadata", Json),
    Column("model", Text),  # of all rows, where it is the same one
    Column("max_concurrency", Integer, nullable=False),
    Column("max_error_rate", Float, nullable=False),
    Column("retry_of", Text),
    Column("output_seconds", BigInteger),  # how long its files are kept; NULL is for ever
    Column("errors", Json),  # [{code, message, param, line}]
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("in_progress_ms", BigInteger),
    Column("cancelling_ms", BigInteger),
    Column("finalizing_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("token", Text),
    Column("until_ms", BigInteger),
    Index(None, "tenant", "created_ms", "id"),
    Index(
        "ix_batches_open",
        "id",
        sqlite_where=text("ended_ms IS NULL"),
        postgresql_where=text("ended_ms IS NULL"),
    ),
)

#: The rows of a batch, in the order of its file. ``body`` is the request as JSON, without what is said beside it;
#: ``cache_control`` and ``sample`` are of the row's ``headers``.
batch_rows = Table(
    "batch_rows",
    metadata,
    Column("batch_id", Text, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("n", BigInteger, primary_key=True, autoincrement=False),  # from 0
    Column("line", BigInteger, nullable=False),  # from 1
    Column("custom_id", Text, nullable=False),
    Column("completion_id", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("end_user", Text),
    Column("sample", BigInteger),
    Column("cache_control", Text),
    Column("body", LargeBinary, nullable=False),
)

#: Ranges of rows, ``first`` up to but not including ``beyond``. ``provider`` is that of its rows, or several with
#: commas. ``state``: ready; dealt, to ``token`` until ``until_ms``, with ``concurrency`` rows at once; done, and then
#: its counts are final.
batch_slices = Table(
    "batch_slices",
    metadata,
    Column("batch_id", Text, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("beyond", BigInteger, nullable=False),
    Column("provider", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("token", Text),
    Column("until_ms", BigInteger),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger),
    Index(None, "batch_id", "state", "provider", "first"),
)
