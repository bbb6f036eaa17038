"""From a batch's input file to its rows in SQL: every line is checked before anything is sent.

The file is read line by line and rows are written in short transactions, so that neither memory nor another writer
feels how large it is. One bad line, and the batch fails with what is wrong in all of them; no row of it stays.

A row costs some 40 µs, of which 5 are pydantic's. So there is no faster second reading of what a request may be, which
could differ from the first.
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

from producers.batchlines import InputRow, LineError, read_lines, read_row
from schemas.batches import JOB_LEASE_MS, MAX_ERRORS, SLICE_ROWS
from schemas.codec import dumps
from schemas.errors import ModelNotFound, TailraceError
from schemas.fingerprint import fingerprint
from schemas.ids import new_completion_id
from schemas.providers import Resolved
from schemas.settings import Settings
from stores.batches import Batches, BatchRow, Lost, Row, SliceRange
from stores.storage import Storage

log = logging.getLogger("tailrace.batches")

#: Rows, and bytes of their requests, of one transaction.
CHUNK_ROWS, CHUNK_BYTES = 500, 2 * 1024 * 1024
#: Models that are remembered with what they mean.
MODELS = 1000
#: How often the batch's lease is renewed, in seconds.
RENEW_SECONDS = 3.0

#: What a model name means. Raises ModelNotFound.
Resolve = Callable[[str], Resolved]
#: Redis's time, in milliseconds. Raises Unavailable.
Clock = Callable[[], int]


class Asked(msgspec.Struct, frozen=True):
    """A row as it would be asked."""

    row: InputRow
    params: dict[str, Any]
    resolved: Resolved
    fingerprint: str


class Asking:
    """What a tenant's rows ask for."""

    def __init__(self, tenant: str, resolve: Resolve) -> None:
        self._tenant = tenant
        self._resolve = resolve
        self._models: dict[str, Resolved | str] = {}

    def ask(self, row: InputRow) -> Asked | LineError:
        model = row.request.model
        resolved = self._models.get(model)
        if resolved is None:
            if len(self._models) >= MODELS:
                self._models.clear()
            try:
                resolved = self._resolve(model)
            except ModelNotFound as error:
                resolved = error.message
            self._models[model] = resolved
        if isinstance(resolved, str):
            return LineError(ModelNotFound.code, resolved, "body.model", row.line)
        params = row.request.params()
        digest = fingerprint(
            tenant=self._tenant,
            provider=resolved.provider,
            model=resolved.model,
            params=params,
            sample=row.headers.sample,
        )
        return Asked(row, params, resolved, digest)


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
        errors, ids, slices = _Errors(), _CustomIds(), _Slices()
        with contextlib.closing(ids):
            try:
                with (
                    self._storage.read(batch.input_file_id) as file,
                    ThreadPoolExecutor(1, f"insert-{batch.id}") as writer,
                ):
                    written: Future[None] | None = None
                    for chunk in self._chunks(batch, file, errors, slices):
                        if lost.is_set():
                            raise Lost(batch.id)
                        if self._stopping():
                            raise _Stopped
                        ids.add(chunk)
                        if written is not None:
                            written.result()
                        if not errors.count:
                            written = writer.submit(self._batches.insert_rows, batch.id, token, chunk)
                    if written is not None:
                        written.result()
            except FileNotFoundError:
                errors.add(LineError("file_not_found", "The input file is gone.", "input_file_id"))
            errors.add_all(*ids.duplicates())
        if not errors.count and not slices.total:
            errors.add(LineError("empty_file", "The input file has no rows.", "input_file_id"))
        if errors.count:
            self._batches.failed(batch.id, token, errors=errors.told(), now_ms=self._clock())
            return "failed"
        self._batches.in_progress(
            batch.id, token, slices=slices.ranges(), model=slices.model, now_ms=self._clock()
        )
        return "in_progress"

    def _chunks(
        self, batch: BatchRow, file: BinaryIO, errors: _Errors, slices: _Slices
    ) -> Generator[list[Row]]:
        """The rows that can be asked; an empty list now and then where there are none."""
        asking = Asking(batch.tenant, self._resolve)
        most, most_rows = self._settings.max_body_bytes, self._settings.max_batch_rows
        chunk: list[Row] = []
        lines, size = 0, 0
        for line in read_lines(file, most):
            if slices.total == most_rows:
                message = f"The file has more than {most_rows:,} rows. Make several batches of it."
                errors.add(LineError("too_many_rows", message, None, line.number))
                break
            row = read_row(line, most)
            asked = asking.ask(row) if isinstance(row, InputRow) else row
            if isinstance(asked, Asked):
                chunk.append(_row(asked, slices.add(asked), batch.end_user))
                size += len(chunk[-1].body)
            else:
                errors.add_all(asked if isinstance(asked, list) else [asked])
            lines += 1
            if lines >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield chunk
                chunk, lines, size = [], 0, 0
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


def _row(asked: Asked, n: int, end_user: str | None) -> Row:
    row, headers = asked.row, asked.row.headers
    return Row(
        n,
        row.line,
        row.custom_id,
        new_completion_id(),
        asked.fingerprint,
        headers.end_user or end_user,
        headers.sample,
        headers.cache_control,
        dumps(asked.params),
    )


class _Slices:
    """Where rows are cut, and what all of them have in common."""

    def __init__(self) -> None:
        self.total = 0
        self._providers: list[str] = []
        self._here: set[str] = set()
        self._models: set[str] = set()

    def add(self, asked: Asked) -> int:
        """The row's number."""
        if self.total % SLICE_ROWS == 0:
            self._cut()
        self._here.add(asked.resolved.provider)
        if len(self._models) < 2:
            self._models.add(asked.row.request.model)
        self.total += 1
        return self.total - 1

    def _cut(self) -> None:
        if self._here:
            self._providers.append(",".join(sorted(self._here)))
            self._here.clear()

    @property
    def model(self) -> str | None:
        return next(iter(self._models)) if len(self._models) == 1 else None

    def ranges(self) -> list[SliceRange]:
        self._cut()
        return [
            SliceRange(n * SLICE_ROWS, min((n + 1) * SLICE_ROWS, self.total), provider)
            for n, provider in enumerate(self._providers)
        ]


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

    def add(self, error: LineError) -> None:
        self.add_all([error])

    def add_all(self, errors: list[LineError], count: int | None = None) -> None:
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
