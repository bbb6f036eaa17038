"""Batches put into SQL as their validation leaves them, and what becomes of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import uuid_utils
from sqlalchemy import Engine, func, select

from schemas.batches import SLICE_ROWS
from schemas.fingerprint import fingerprint
from schemas.ids import new_completion_id
from schemas.settings import Settings
from schemas.tables import batch_rows, batch_slices, batches, completions, usage
from stores.sql import insert_new, writing
from stores.storage import open_storage
from tests.support.stack import Stack
from tests.support.valkey import wait_until

DAY_MS = 24 * 3600 * 1000


def put_batch(
    engine: Engine,
    bodies: Sequence[Mapping[str, Any]],
    *,
    tenant: str,
    key_id: str = "key_test",
    provider: str = "fake",
    max_concurrency: int = 100,
    max_error_rate: float = 0.5,
    window_ms: int = DAY_MS,
    slice_rows: int = SLICE_ROWS,
    cache_control: str | None = None,
    sample: int | None = None,
) -> str:
    """A batch in progress; row ``n`` has the custom id ``row-<n>`` and asks ``bodies[n]``. Its id."""
    id = f"batch_{uuid_utils.uuid7().hex}"
    now = time.time_ns() // 1_000_000
    counts = (
        "completed",
        "failed",
        "prompt_tokens",
        "completion_tokens",
        "reasoning_tokens",
        "cached_tokens",
    )
    zeros = dict.fromkeys(counts, 0)
    batch = {
        "id": id,
        "tenant": tenant,
        "key_id": key_id,
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-input",
        "status": "in_progress",
        "completion_window": "24h",
        "max_concurrency": max_concurrency,
        "max_error_rate": max_error_rate,
        "total": len(bodies),
        "created_ms": now,
        "expires_ms": now + window_ms,
        "in_progress_ms": now,
        **zeros,
    }
    rows = [
        {
            "batch_id": id,
            "n": n,
            "line": n + 1,
            "custom_id": f"row-{n}",
            "completion_id": new_completion_id(),
            "fingerprint": fingerprint(
                tenant=tenant,
                provider=provider,
                model=str(body["model"]).rpartition(":")[2],
                params=dict(body),
                sample=sample,
            ),
            "end_user": None,
            "sample": sample,
            "cache_control": cache_control,
            "body": json.dumps(body).encode(),
        }
        for n, body in enumerate(bodies)
    ]
    slices = [
        {
            "batch_id": id,
            "first": first,
            "beyond": min(first + slice_rows, len(bodies)),
            "provider": provider,
            "state": "ready",
            "concurrency": 0,
            **zeros,
        }
        for first in range(0, len(bodies), slice_rows)
    ]
    with writing(engine) as connection:
        insert_new(connection, batches, [batch])
        insert_new(connection, batch_rows, rows)
        insert_new(connection, batch_slices, slices)
    return id


class Watched:
    """A batch of a stack as SQL has it."""

    def __init__(self, stack: Stack, id: str) -> None:
        self.stack = stack
        self.id = id

    @property
    def row(self) -> Any:
        with self.stack.engine.connect() as connection:
            return connection.execute(select(batches).where(batches.c.id == self.id)).one()

    @property
    def slices(self) -> list[Any]:
        statement = select(batch_slices).where(batch_slices.c.batch_id == self.id)
        with self.stack.engine.connect() as connection:
            return list(connection.execute(statement.order_by(batch_slices.c.first)))

    @property
    def completion_ids(self) -> list[str]:
        statement = select(batch_rows.c.completion_id).where(batch_rows.c.batch_id == self.id)
        with self.stack.engine.connect() as connection:
            return list(connection.scalars(statement.order_by(batch_rows.c.n)))

    def completions(self) -> dict[str, int]:
        """How many of its completions have which status."""
        statement = (
            select(completions.c.status, func.count())
            .where(completions.c.batch_id == self.id)
            .group_by(completions.c.status)
        )
        with self.stack.engine.connect() as connection:
            return {status: count for status, count in connection.execute(statement)}  # noqa: C416

    def outcomes(self) -> dict[str, int]:
        """How many of its usage records say what of the cache."""
        statement = (
            select(usage.c.cache, func.count()).where(usage.c.batch_id == self.id).group_by(usage.c.cache)
        )
        with self.stack.engine.connect() as connection:
            return {cache: count for cache, count in connection.execute(statement)}  # noqa: C416

    def dealt_out(self, seconds: float = 120.0) -> Any:
        """Wait until its files can be written; the batch."""
        wait_until(lambda: self.row.finalizing_ms is not None, seconds, f"end of all rows of {self.id}")
        return self.row

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The lines of its output file or its error file; none where there is no file."""
        file_id = self.row._mapping[f"{kind}_file_id"]
        if file_id is None:
            return []
        with open_storage(Settings(home=self.stack.folder / "home")).read(file_id) as file:
            return [json.loads(line) for line in file]

    def over(self, seconds: float = 120.0) -> Any:
        """Wait for its end; the batch."""
        wait_until(lambda: self.row.ended_ms is not None, seconds, f"end of {self.id}")
        return self.row
