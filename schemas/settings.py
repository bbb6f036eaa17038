"""Settings, read from the environment with the prefix ``TAILRACE_``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One process's settings. Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="TAILRACE_", extra="ignore", env_ignore_empty=True)

    redis_url: str = "redis://127.0.0.1:6379/0"
    #: Celery's broker; the Redis one where it is not set. Required apart on a Redis Cluster.
    broker_url: str | None = None
    database_url: str = "sqlite:///tailrace.db"
    #: Path of providers.toml.
    providers: Path = Path("providers.toml")
    home: Path = Path("~/.tailrace")
    #: Number of partitions; 1 where it is not set, 64 on a Redis Cluster.
    partitions: int | None = Field(default=None, ge=1, le=1024)
    cors_origins: str = ""

    lease_seconds: float = Field(default=8.0, gt=0)
    renew_seconds: float = Field(default=2.0, gt=0)
    #: A generation that loses so many workers ends as failed.
    max_crashes: int = Field(default=3, ge=1)
    #: What the limits per minute, of providers and of keys, take for a minute.
    limit_window_seconds: float = Field(default=60.0, gt=0)
    #: How long a settled chunk log stays in Redis.
    log_ttl_interactive: float = Field(default=3600.0, gt=0)
    log_ttl_bulk: float = Field(default=5.0, gt=0)
    #: Records that may wait for SQL before nothing new is accepted.
    ledger_limit: int = Field(default=200_000, gt=0)
    #: How long completions are kept after they were accepted, in days; for ever where it is not set.
    retention_days: float | None = Field(default=None, gt=0)
    #: How long a result answers equal requests; and how much of results one tenant may have, the oldest going first.
    cache_seconds: float = Field(default=7 * 24 * 3600.0, gt=0)
    cache_bytes: int = Field(default=1024 * 1024 * 1024, ge=0)
    #: How long a cached result has a copy in Redis after it was made or asked for in SQL; and the largest such copy.
    cache_hot_seconds: float = Field(default=600.0, gt=0)
    cache_hot_bytes: int = Field(default=64 * 1024, ge=0)
    #: Where files are: a folder, which gateways and workers share, or ``s3://bucket/prefix``; ``files`` in the home
    #: folder where it is not set. Then the largest file, and the most rows of a batch.
    files: str | None = None
    max_file_bytes: int = Field(default=16 * 1024**3, gt=0)
    max_batch_rows: int = Field(default=5_000_000, gt=0)
    max_body_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    #: SSE comments while nothing else is sent.
    keepalive_seconds: float = Field(default=5.0, gt=0)
    #: How long the OpenAI endpoint holds its headers back for a first chunk or a failure.
    header_hold_seconds: float = Field(default=2.0, ge=0)
    #: How long a gateway trusts what it knows of an API key; a revoked key works no longer than this.
    key_cache_seconds: float = Field(default=2.0, ge=0)
    #: How much longer it trusts a key that was in use, while the database is away.
    key_grace_seconds: float = Field(default=900.0, ge=0)

    @property
    def effective_broker_url(self) -> str:
        return self.broker_url or self.redis_url

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().resolve()
