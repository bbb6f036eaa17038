"""The end of a batch: what became of its rows goes into its files, in the order of the input."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from consumers.batch_output import Kind, pages
from schemas.batches import JOB_LEASE_MS, BatchStatus, Stopped
from schemas.errors import Unavailable
from schemas.files import Purpose
from schemas.ids import new_file_id
from stores.batch_ends import PAGE, BatchEnds
from stores.batches import BatchRow
from stores.books import Books
from stores.files import FileRow, Files
from stores.storage import Storage, open_storage

if TYPE_CHECKING:
    from workers.runtime import Runtime

log = logging.getLogger("tailrace.batches")

#: Between the times when whoever finalizes says that it is at it, in seconds.
RENEW_SECONDS = 3.0

_STATUSES = {
    None: BatchStatus.COMPLETED,
    Stopped.EXPIRED.value: BatchStatus.EXPIRED,
    Stopped.CANCELLED.value: BatchStatus.CANCELLED,
    Stopped.ERRORS.value: BatchStatus.FAILED,
}


class _Stored(msgspec.Struct, frozen=True):
    store: bool | None = None


_stored_decoder = msgspec.json.Decoder(_Stored)


class Lost(Exception):
    """The batch is another's by now, or is to be."""


def finalize(runtime: Runtime, batch_id: str, token: str) -> str:
    """What became of it: its status, or 'lost' where another one does it."""
    engine = runtime.engine
    work = Finalizing(
        BatchEnds(engine),
        Files(engine),
        runtime.books(),
        open_storage(runtime.settings),
        clock=runtime.now_ms,
        stopping=lambda: runtime.stopping,
    )
    return work.run(batch_id, token)


class Finalizing:
    """In a thread. ``clock`` is Redis's, in milliseconds; where ``stopping`` says so the work is left to another."""

    def __init__(
        self,
        ends: BatchEnds,
        files: Files,
        books: Books,
        storage: Storage,
        *,
        clock: Callable[[], int],
        stopping: Callable[[], bool],
    ) -> None:
        self._ends = ends
        self._files = files
        self._books = books
        self._storage = storage
        self._clock = clock
        self._stopping = stopping
        self._renew_at = 0.0

    def run(self, id: str, token: str) -> str:
        batch = self._ends.batch(id, token)
        if batch is None:
            return "lost"
        status = _STATUSES[batch.stopped]
        try:
            unstored = True
            if batch.output_file_id is None and batch.error_file_id is None:
                unstored = self._write(batch, token)
            if unstored:
                self._drop_unstored(batch, token)
            if not self._ends.end(id, token, status, self._clock()):
                raise Lost
        except Lost:
            with suppress(SQLAlchemyError):  # else it is dealt again a little later
                self._ends.renew(id, token, None)
            return "lost"
        except (OSError, SQLAlchemyError, Unavailable) as error:
            log.warning("%s: its files can't be written now: %s", id, error)
            return "unavailable"
        return status.value

    def _write(self, batch: BatchRow, token: str) -> bool:
        """Whether some rows may have asked that nothing be kept."""
        made: dict[Kind, FileRow] = {}
        lines: dict[Kind, int] = {"output": 0, "error": 0}
        sizes: dict[Kind, int] = {"output": 0, "error": 0}
        unstored = False
        with ExitStack() as stack:
            out: dict[Kind, BinaryIO] = {}
            for page in pages(self._ends, batch):
                self._go_on(batch, token)
                unstored = unstored or page.unstored
                for line in page.lines:
                    if line.kind not in out:
                        row = made[line.kind] = self._file(batch, line.kind)
                        out[line.kind] = stack.enter_context(self._storage.write(row.id))
                    out[line.kind].write(line.text)
                    lines[line.kind] += 1
                    sizes[line.kind] += len(line.text)
            self._go_on(batch, token)
            rows = [msgspec.structs.replace(row, bytes=sizes[kind]) for kind, row in made.items()]
            for row in rows:
                self._files.announce(row)
        values: dict[str, Any] = {f"{kind}_file_id": row.id for kind, row in made.items()}
        values |= {"completed": lines["output"], "failed": lines["error"]}
        if not self._ends.written(batch, token, rows, values):
            raise Lost
        return unstored

    def _file(self, batch: BatchRow, kind: Kind) -> FileRow:
        now_ms, seconds = self._clock(), batch.output_seconds
        return FileRow(
            id=new_file_id(),
            tenant=batch.tenant,
            key_id=batch.key_id,
            end_user=batch.end_user,
            purpose=Purpose.BATCH_OUTPUT.value,
            filename=f"{batch.id}_{kind}.jsonl",
            bytes=0,
            created_ms=now_ms,
            expires_ms=None if seconds is None else now_ms + seconds * 1000,
        )

    def _drop_unstored(self, batch: BatchRow, token: str) -> None:
        """The text of rows that asked for it to be kept no longer than this."""
        for first in range(0, batch.total, PAGE):
            self._go_on(batch, token)
            ids = [
                id
                for id, body in self._ends.unstored(batch.id, first)
                if _stored_decoder.decode(body).store is False
            ]
            if ids:
                self._books.keep_no_text(ids)

    def _go_on(self, batch: BatchRow, token: str) -> None:
        """Raises Lost."""
        if self._stopping():
            raise Lost
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + RENEW_SECONDS
            if not self._ends.renew(batch.id, token, self._clock() + JOB_LEASE_MS):
                raise Lost
