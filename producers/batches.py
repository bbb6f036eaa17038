"""Batches: made of an input file, or of the failed rows of another batch. What they send, workers do."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from producers.idempotency import IdempotencyKeys, Reservation
from producers.submit import Caller
from schemas.batches import ENDPOINTS, Row
from schemas.batchrequest import BatchRequest, OutputExpiry, RetryRequest, window_hours
from schemas.codec import dumps
from schemas.errors import Conflict, InvalidRequest, NotFound, TailraceError, Unavailable
from schemas.files import Purpose
from schemas.fingerprint import canonical_json
from schemas.ids import new_batch_id, new_file_id
from stores.batches import Batches, BatchRow
from stores.files import FileRow, Files
from stores.redis import Redis
from stores.storage import Storage

log = logging.getLogger("tailrace.gateway")

HOUR_MS = 3600 * 1000


class BatchMaker:
    def __init__(self, redis: Redis, batches: Batches, files: Files, storage: Storage) -> None:
        self._redis = redis
        self._keys = IdempotencyKeys(redis)
        self._batches = batches
        self._files = files
        self._storage = storage

    async def create(
        self, request: BatchRequest, caller: Caller, idempotency_key: str | None = None
    ) -> BatchRow:
        """Raises NotFound and InvalidRequest for the file, Unprocessable for a reused Idempotency-Key."""

        async def make(id: str) -> BatchRow:
            await self.input_file(caller, request.input_file_id)
            return await self._row(id, caller, request)

        return await self._once(request.model_dump(), caller, idempotency_key, make)

    async def input_file(self, caller: Caller, id: str) -> FileRow:
        """A file that a batch can be made of. Raises NotFound and InvalidRequest."""
        file = await asyncio.to_thread(self._files.get, caller.tenant, id, end_user=caller.end_user)
        if file is None:
            raise NotFound(
                f"There is no file '{id[:80]}'. Upload it with POST /v1/files first.",
                param="input_file_id",
                code="file_not_found",
            )
        if file.purpose != Purpose.BATCH:
            raise InvalidRequest(
                f"The file '{id}' has the purpose '{file.purpose}'. Upload it with the purpose 'batch'.",
                param="input_file_id",
            )
        return file

    async def retry(
        self, batch: BatchRow, request: RetryRequest, caller: Caller, idempotency_key: str | None = None
    ) -> BatchRow:
        """A batch of those rows of an ended one that have no answer. Raises Conflict where there are none."""

        async def make(id: str) -> BatchRow:
            if batch.ended_ms is None:
                raise Conflict(
                    f"The batch has the status '{batch.status}'. Retry it when it has ended.",
                    code="batch_not_ended",
                )
            try:
                file_id = await asyncio.to_thread(self._write_failed, batch, request.codes, caller)
            except OSError as error:
                log.warning("the input of a retry of %s could not be stored: %s", batch.id, error)
                raise Unavailable("The storage of files is not available. Try again.") from None
            again = BatchRequest(
                input_file_id=file_id,
                endpoint=batch.endpoint,
                completion_window=batch.completion_window,
                metadata=batch.metadata,
                output_expires_after=_expiry(batch.output_seconds),
                max_concurrency=batch.max_concurrency,
                max_error_rate=batch.max_error_rate,
            )
            return await self._row(id, caller, again, retry_of=batch.id)

        return await self._once({"retry_of": batch.id, **request.model_dump()}, caller, idempotency_key, make)

    async def _row(
        self, id: str, caller: Caller, request: BatchRequest, retry_of: str | None = None
    ) -> BatchRow:
        now_ms = await self._redis.now_ms(0)
        hours = window_hours(request.completion_window)
        assert hours is not None
        expiry = request.output_expires_after
        return BatchRow(
            id=id,
            tenant=caller.tenant,
            key_id=caller.key_id,
            end_user=caller.end_user,
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            completion_window=request.completion_window,
            metadata=request.metadata,
            max_concurrency=request.max_concurrency,
            max_error_rate=request.max_error_rate,
            retry_of=retry_of,
            output_seconds=None if expiry is None else expiry.seconds,
            created_ms=now_ms,
            expires_ms=now_ms + hours * HOUR_MS,
        )

    async def _once(
        self,
        asked: dict[str, Any],
        caller: Caller,
        key: str | None,
        make: Callable[[str], Awaitable[BatchRow]],
    ) -> BatchRow:
        """The batch that is made, or the one that the same key has made before: its id is the key's, and SQL takes an
        id once."""
        if key is None:
            row = await make(new_batch_id())
            await asyncio.to_thread(self._batches.add, row)
            return row
        digest = hashlib.sha256(canonical_json({"batch": asked})).hexdigest()
        mine = Reservation(new_batch_id(), digest, caller.end_user, tenant=caller.tenant)
        held = await self._keys.reserve(caller.tenant, key, mine)
        there = None if held.fresh else await self._there(caller, held.id)
        if there is not None:
            return there
        try:
            row = await make(held.id)
        except TailraceError:
            await held.give_back()
            raise
        if not await asyncio.to_thread(self._batches.add, row):
            return await self._there(caller, held.id) or row
        await held.confirm()
        return row

    async def _there(self, caller: Caller, id: str) -> BatchRow | None:
        return await asyncio.to_thread(self._batches.get, caller.tenant, id)

    def _write_failed(self, batch: BatchRow, codes: list[str] | None, caller: Caller) -> str:
        """An input file of the rows that failed. Raises Conflict where none did."""
        file_id, size = new_file_id(), 0
        row: FileRow | None = None
        with self._storage.write(file_id) as out:
            for rows in self._batches.failed_rows(batch, codes):
                for failed in rows:
                    size += out.write(_line(failed, batch))
            if not size:
                which = f" with the codes {', '.join(codes)[:200]}" if codes else ""
                raise Conflict(
                    f"The batch has no failed rows{which}: nothing to retry.", code="nothing_to_retry"
                )
            row = FileRow(
                id=file_id,
                tenant=caller.tenant,
                key_id=caller.key_id,
                end_user=caller.end_user,
                purpose=Purpose.BATCH.value,
                filename=f"{batch.id}_retry.jsonl",
                bytes=size,
                created_ms=time.time_ns() // 1_000_000,
            )
            self._files.announce(row)
        if not self._files.publish(row):
            raise Unavailable("The file could not be stored in time. Try again.")
        return file_id


def _expiry(seconds: int | None) -> OutputExpiry | None:
    return None if seconds is None else OutputExpiry(anchor="created_at", seconds=seconds)


def _line(row: Row, batch: BatchRow) -> bytes:
    """The row as a line of an input file."""
    said = {
        "x-sample": None if row.sample is None else str(row.sample),
        "Cache-Control": row.cache_control,
        "X-On-Behalf-Of": row.end_user if row.end_user != batch.end_user else None,
    }
    headers = {name: value for name, value in said.items() if value is not None}
    line: dict[str, Any] = {"custom_id": row.custom_id, "method": "POST", "url": ENDPOINTS[0]}
    if headers:
        line["headers"] = headers
    return dumps({**line, "body": msgspec.Raw(row.body)}) + b"\n"
