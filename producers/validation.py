"""From a batch's input file to its rows in SQL: every line is checked before anything is sent.

The file is read line by line and rows are written in short transactions, so that neither memory nor another writer
feels how large it is. One bad line, and the batch fails with what is wrong in all of them; no row of it stays.

A row costs some 25 µs to check, of which 5 are pydantic's, and 15 to write. So there is no faster second reading of
what a request may be, which could differ from the first.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from producers.batchlines import Line, LineError, read_lines
from producers.checking import Checked, Cut, Resolve, Task, checked, checked_apart
from schemas.batches import JOB_LEASE_MS, MAX_ERRORS, Row
from schemas.errors import TailraceError
from schemas.settings import Settings
from stores.batches import Batches, BatchRow, Lost
from stores.storage import Storage

log = logging.getLogger("tailrace.batches")

#: Rows, and bytes of their requests, of one transaction.
CHUNK_ROWS, CHUNK_BYTES = 500, 2 * 1024 * 1024
#: A file of this many bytes is checked by a process of its own, which takes half a second to start.
APART_BYTES = 4 * 1024 * 1024
#: How often the batch's lease is renewed, in seconds.
RENEW_SECONDS = 3.0

#: Redis's time, in milliseconds. Raises Unavailable.
Clock = Callable[[], int]


class _Stopped(Exception):
    """This process is to end."""


class Validation:
    """Of one batch, by one worker, in a thread. ``stopping``: the process is to end, and another one starts again."""

    def __init__(
        self,
        batches: Batches,
        storage: Storage,
        settings: Settings,
        *,
        resolve: Resolve,
        clock: Clock,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._batches = batches
        self._storage = storage
        self._settings = settings
        self._resolve = resolve
        self._clock = clock
        self._stopping = stopping

    def run(self, id: str, token: str) -> str:
        """What became of it: 'in_progress' or 'failed'; 'stopped' or 'put off' where another job starts again; 'lost'
        where somebody else has it, or it was cancelled."""
        try:
            with self._renewing(id, token) as lost:
                batch = self._batches.begin_validation(id, token)
                return self._validate(batch, token, lost)
        except Lost:
            self._batches.drop_unused_rows(id)
            return "lost"
        except _Stopped:
            with contextlib.suppress(Lost):
                self._batches.renew_validation(id, token, self._clock())
            return "stopped"
        except (TailraceError, SQLAlchemyError, sqlite3.Error, OSError) as error:
            log.warning("%s could not be validated now, and is once its lease is over: %s", id, error)
            return "put off"

    def _validate(self, batch: BatchRow, token: str, lost: threading.Event) -> str:
        errors, ids = _Errors(), _CustomIds()
        cut = Cut(0, None, [])
        with contextlib.closing(ids), ThreadPoolExecutor(1, f"insert-{batch.id}") as writer:
            written: Future[None] | None = None
            try:
                for found in self._checked(batch, errors):
                    if lost.is_set():
                        raise Lost(batch.id)
                    if self._stopping():
                        raise _Stopped
                    if isinstance(found, Cut):
                        cut = found
                        continue
                    errors.add(found.errors)
                    ids.add(found.rows)
                    if written is not None:
                        written.result()
                    if not errors.count:
                        written = writer.submit(self._batches.insert_rows, batch.id, token, found.rows)
            except FileNotFoundError:
                errors.add([LineError("file_not_found", "The input file is gone.", "input_file_id")])
            if written is not None:
                written.result()
            errors.add(*ids.duplicates())
        if not errors.count and not cut.total:
            errors.add([LineError("empty_file", "The input file has no rows.", "input_file_id")])
        if errors.count:
            self._batches.failed(batch.id, token, errors=errors.told(), now_ms=self._clock())
            return "failed"
        self._batches.in_progress(batch.id, token, slices=cut.slices, model=cut.model, now_ms=self._clock())
        return "in_progress"

    def _checked(self, batch: BatchRow, errors: _Errors) -> Generator[Checked | Cut]:
        task = Task(batch.tenant, batch.end_user, self._settings.max_body_bytes)
        apart = self._storage.size(batch.input_file_id) >= APART_BYTES
        with self._storage.read(batch.input_file_id) as file:
            too_many: list[LineError] = []
            chunks = self._chunks(file, too_many)
            # To be closed before the file: whoever reads it may do so in a thread.
            with contextlib.closing(
                (checked_apart if apart else checked)(chunks, task, self._resolve)
            ) as found:
                yield from found
            errors.add(too_many)

    def _chunks(self, file: BinaryIO, too_many: list[LineError]) -> Generator[list[Line]]:
        most_rows = self._settings.max_batch_rows
        chunk: list[Line] = []
        size = 0
        for rows, line in enumerate(read_lines(file, self._settings.max_body_bytes)):
            if rows == most_rows:
                message = f"The file has more than {most_rows:,} rows. Make several batches of it."
                too_many.append(LineError("too_many_rows", message, None, line.number))
                break
            chunk.append(line)
            size += len(line.data or b"")
            if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
        yield chunk

    @contextlib.contextmanager
    def _renewing(self, id: str, token: str) -> Generator[threading.Event]:
        """Renews the batch's lease; the event is set once it is lost."""
        lost, over = threading.Event(), threading.Event()

        def renew() -> None:
            while not over.wait(RENEW_SECONDS):
                try:
                    self._batches.renew_validation(id, token, self._clock() + JOB_LEASE_MS)
                except Lost:
                    lost.set()
                    return
                except (TailraceError, SQLAlchemyError) as error:
                    log.warning("the lease of %s could not be renewed: %s", id, error)

        thread = threading.Thread(target=renew, name=f"renew-{id}", daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            over.set()
            thread.join()


class _CustomIds:
    """The custom_ids of a file, in a temporary database: on disk, once they are many."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE ids (id TEXT, line INTEGER)")

    def add(self, rows: Iterable[Row]) -> None:
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO ids VALUES (?, ?)", ((r.custom_id, r.line) for r in rows))
        self._database.execute("COMMIT")

    def duplicates(self) -> tuple[list[LineError], int]:
        """The first of them, and how many there are."""
        grouped = (
            "SELECT id, min(line) AS first, count(*) - 1 AS more FROM ids GROUP BY id HAVING count(*) > 1"
        )
        (count,) = self._database.execute(f"SELECT coalesce(sum(more), 0) FROM ({grouped})").fetchone()
        if not count:
            return [], 0
        found = self._database.execute(
            f"SELECT ids.id, line, first FROM ids JOIN ({grouped}) AS g ON g.id = ids.id WHERE line > first "
            "ORDER BY line LIMIT ?",
            (MAX_ERRORS,),
        )
        errors = [
            LineError(
                "duplicate_custom_id",
                f"The custom_id {id[:80]!r} is that of line {first}, too.",
                "custom_id",
                line,
            )
            for id, line, first in found
        ]
        return errors, count

    def close(self) -> None:
        self._database.close()


class _Errors:
    """What is wrong with a file: as much of it as is told, and how much there is."""

    def __init__(self) -> None:
        self._errors: list[LineError] = []
        self.count = 0

    def add(self, errors: list[LineError], count: int | None = None) -> None:
        self.count += len(errors) if count is None else count
        self._errors += errors
        if len(self._errors) > 2 * MAX_ERRORS:
            self._cut()

    def _cut(self) -> None:
        self._errors.sort(key=lambda error: error.line or 0)
        del self._errors[MAX_ERRORS:]

    def told(self) -> list[dict[str, Any]]:
        self._cut()
        told = [msgspec.structs.asdict(error) for error in self._errors]
        if self.count > len(told):
            more = f"There are {self.count - len(told):,} more errors."
            told.append(msgspec.structs.asdict(LineError("more_errors", more)))
        return told
