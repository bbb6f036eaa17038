"""The files in SQL: whose they are, what they are for, and how long they are there. All of it blocks.

Every object of the storage has a row, so that none is left that nobody knows of: whoever stores a file announces it
just before its bytes are there, and publishes it after; what goes is hidden first, then its bytes go, then its row.
A hidden row is one whose ``expires_ms`` is over, and house-keeping removes those with their bytes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import ColumnElement, Engine, delete, exists, insert, or_, select, update

from schemas.errors import Conflict
from schemas.tables import batches, files
from stores.sql import among, reading, writing
from stores.storage import Storage

#: Files of one transaction.
BATCH = 500
#: How long a file that is hidden stays, for those who still read it and the one who is about to publish it, in
#: milliseconds.
GRACE_MS = 3600 * 1000

#: How many files are looked for, to know whether a storage is theirs.
NEWEST = 10

_f, _b = files.c, batches.c


class FileRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``files``."""

    id: str
    tenant: str
    key_id: str
    end_user: str | None = None
    purpose: str
    filename: str
    bytes: int
    created_ms: int
    expires_ms: int | None = None


class Files:
    """``clock`` gives milliseconds since the epoch.

    Where an ``end_user`` is given, only that user's files are there, else all of the tenant's.
    """

    def __init__(
        self, engine: Engine, *, clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._engine = engine
        self._clock = clock

    def add(self, row: FileRow) -> None:
        """The row of a file whose bytes are in the storage."""
        with writing(self._engine) as connection:
            connection.execute(insert(files).values(msgspec.structs.asdict(row)))

    def announce(self, row: FileRow) -> None:
        """Its row, hidden: the bytes are about to be there."""
        self.add(msgspec.structs.replace(row, expires_ms=self._clock()))

    def publish(self, row: FileRow) -> bool:
        """Show what was announced; False where that is so long ago that it is gone."""
        change = update(files).where(_f.id == row.id).values(expires_ms=row.expires_ms)
        with writing(self._engine) as connection:
            return connection.execute(change).rowcount > 0

    def get(self, tenant: str, id: str, *, end_user: str | None = None) -> FileRow | None:
        statement = select(files).where(_f.id == id, *self._there(tenant, end_user))
        with reading(self._engine) as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return None if row is None else FileRow(**row)

    def list(
        self,
        tenant: str,
        *,
        end_user: str | None = None,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: str = "desc",
    ) -> list[FileRow]:
        """By time of creation, ``order`` ``asc`` or ``desc``; ``after`` is the id before the first, maybe gone."""
        statement = select(files).where(*self._there(tenant, end_user))
        if purpose is not None:
            statement = statement.where(_f.purpose == purpose)
        # Ids begin with their time.
        if after is not None:
            statement = statement.where(_f.id < after if order == "desc" else _f.id > after)
        statement = statement.order_by(_f.id.desc() if order == "desc" else _f.id).limit(limit)
        with reading(self._engine) as connection:
            return [FileRow(**row) for row in connection.execute(statement).mappings()]

    def delete(self, tenant: str, id: str, *, end_user: str | None = None) -> bool:
        """Hide it; False where there is none. Then ``remove`` it. Raises Conflict while an open batch reads it."""
        mine = (_f.id == id, *self._there(tenant, end_user))
        with writing(self._engine) as connection:
            if connection.execute(
                update(files).where(*mine, ~_IN_USE).values(expires_ms=self._clock())
            ).rowcount:
                return True
            if connection.execute(select(_f.id).where(*mine)).first() is None:
                return False
        raise Conflict(
            f"'{id}' is the input of a batch that has not ended. Wait for its end, or cancel it.",
            code="file_in_use",
        )

    def remove(self, ids: Sequence[str], storage: Storage) -> int:
        """Their bytes, then their rows; how many there were. Raises OSError where the storage fails."""
        for id in ids:
            storage.delete(id)
        with writing(self._engine) as connection:
            return connection.execute(delete(files).where(among(_f.id)), {"ids": [*ids]}).rowcount

    def clean(self, storage: Storage, before_ms: int | None = None) -> int:
        """Remove what expired, what was never published, and what was made before a time, but for what an open batch
        has; and what is left of writes that were cut off. How many there were. Raises OSError."""
        cleaned = storage.sweep() + self._remove_all(
            storage, _f.expires_ms < self._clock() - GRACE_MS, ~_IN_USE
        )
        if before_ms is not None:
            cleaned += self._remove_all(storage, _f.created_ms < before_ms, ~_IN_USE)
        return cleaned

    def remove_tenant(self, tenant: str, storage: Storage) -> int:
        """All that a tenant has. Raises OSError."""
        return self._remove_all(storage, _f.tenant == tenant)

    def are_elsewhere(self, storage: Storage, tenant: str | None = None) -> bool:
        """Whether there are files, and the storage has none of the newest: then it is another one than theirs."""
        statement = select(_f.id).where(_f.expires_ms.is_(None)).order_by(_f.id.desc()).limit(NEWEST)
        if tenant is not None:
            statement = statement.where(_f.tenant == tenant)
        with reading(self._engine) as connection:
            ids = [*connection.scalars(statement)]
        for id in ids:
            with contextlib.suppress(FileNotFoundError):
                storage.size(id)
                return False
        return bool(ids)

    def _remove_all(self, storage: Storage, *which: ColumnElement[bool]) -> int:
        removed = 0
        statement = select(_f.id).where(*which).limit(BATCH)
        while True:
            with reading(self._engine) as connection:
                ids = [*connection.scalars(statement)]
            if not ids:
                return removed
            removed += self.remove(ids, storage)

    def _there(self, tenant: str, end_user: str | None) -> list[ColumnElement[bool]]:
        found = [_f.tenant == tenant, or_(_f.expires_ms.is_(None), _f.expires_ms > self._clock())]
        return found if end_user is None else [*found, _f.end_user == end_user]


_IN_USE = exists().where(
    _b.ended_ms.is_(None),
    or_(_b.input_file_id == _f.id, _b.output_file_id == _f.id, _b.error_file_id == _f.id),
)
