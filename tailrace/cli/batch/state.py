"""What a run remembers beside its output, in ``<output>.tailrace``: the rows of the input, and the batch that has them.

A SQLite file: 5,000,000 rows take disk, not memory, and whatever kills the command between two steps leaves what the
last step wrote. It is there while something is left to do, and has the lock that makes one command at a time work on an
output.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tailrace.batchinput import InvalidRow, Rendered
from tailrace.errors import TailraceError

SUFFIX = ".tailrace"
#: Of the layout below.
VERSION = "1"
#: KiB that SQLite may keep in memory.
CACHE_KIB = 48 * 1024

_LAYOUT = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, line INTEGER NOT NULL, digest BLOB NOT NULL, carried BLOB,
    sent INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS invalid (line INTEGER NOT NULL, text BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS refused (id BLOB NOT NULL, digest BLOB NOT NULL, message TEXT NOT NULL, param TEXT);
CREATE TEMP TABLE known (
    file INTEGER NOT NULL, id BLOB NOT NULL, digest BLOB, at INTEGER NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (file, id)
) WITHOUT ROWID;
CREATE TEMP TABLE tried (id BLOB PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID;
"""


class Found(NamedTuple):
    """A row of the input, and where its line is."""

    file: int | None
    at: int
    size: int
    carried: bytes | None


class Interrupted(Exception):
    """The command is about to end."""


class State:
    """``path`` None: nothing is remembered beyond the command. Raises TailraceError."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        #: Whoever works with it in a thread is to leave off.
        self.stopped = False
        # Asking an empty table takes as long as all else that is done for a row.
        self._is_known = self._is_tried = False
        try:
            self._sql = sqlite3.connect(
                "" if path is None else path, isolation_level=None, timeout=0.5, check_same_thread=False
            )
            self._sql.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._sql.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            self._sql.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, _LAYOUT.split(";")):
                self._sql.execute(statement)
            self.commit()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise TailraceError(f"another command works on {self._output}: wait for it") from None
            raise TailraceError(f"{path} can't be written: {error}") from None
        except sqlite3.DatabaseError as error:
            raise TailraceError(f"{path} is not what a run leaves there: remove it ({error})") from None
        if self.get("version") not in (None, VERSION):
            raise TailraceError(f"{path} is of another version of tailrace: finish there, or remove it")
        self.put(version=VERSION)
        self._is_refused = bool(self._sql.execute("SELECT 1 FROM refused LIMIT 1").fetchone())

    @property
    def _output(self) -> str:
        return str(self.path).removesuffix(SUFFIX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sql.in_transaction:
            self._sql.execute("ROLLBACK")
        self._sql.close()

    def remove(self) -> None:
        """Nothing is left to do: the file goes when the command ends."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def commit(self) -> None:
        """All that was added is remembered; what comes next is one step again."""
        if self._sql.in_transaction:
            self._sql.execute("COMMIT")

    def _begin(self) -> None:
        if self.stopped:
            raise Interrupted
        if not self._sql.in_transaction:
            self._sql.execute("BEGIN IMMEDIATE")

    # ------------------------------------------------------------------------------------------------ the batch

    def get(self, name: str) -> str | None:
        found = self._sql.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def put(self, **facts: str | None) -> None:
        """Remember them, now; None forgets one."""
        self._begin()
        for name, value in facts.items():
            if value is None:
                self._sql.execute("DELETE FROM facts WHERE name = ?", (name,))
            else:
                self._sql.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        self.commit()

    # ------------------------------------------------------------------------------------------------- the rows

    def restart(self) -> None:
        """The input is read anew."""
        self._begin()
        for table in ("rows", "invalid"):
            self._sql.execute(f"DELETE FROM {table}")

    def add(self, n: int, row: Rendered, *, sent: bool) -> bool:
        """False where its custom_id is there already."""
        self._begin()
        values = (n, key(row.custom_id), row.line, row.digest, row.carried, int(sent))
        return self._sql.execute("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?)", values).rowcount > 0

    def add_id(self, custom_id: str, digest: bytes) -> None:
        """A row of which nothing else is known; it comes behind the others, unless it is there."""
        self._begin()
        self._sql.execute(
            "INSERT OR IGNORE INTO rows SELECT coalesce(max(n) + 1, 0), ?, 0, ?, NULL, 1 FROM rows",
            (key(custom_id), digest),
        )

    def has(self, custom_id: str) -> bool:
        return self._sql.execute("SELECT 1 FROM rows WHERE id = ?", (key(custom_id),)).fetchone() is not None

    def line_of(self, custom_id: str) -> int:
        return self._sql.execute("SELECT line FROM rows WHERE id = ?", (key(custom_id),)).fetchone()[0]

    def add_invalid(self, line: int, text: bytes) -> None:
        self._sql.execute("INSERT INTO invalid VALUES (?, ?)", (line, text))

    def invalid(self) -> Iterator[bytes]:
        """Their lines in the error file."""
        for (text,) in self._sql.execute("SELECT text FROM invalid ORDER BY line"):
            yield text

    def row(self, custom_id: str) -> tuple[bytes, bytes | None] | None:
        """What its line says beside the server's: digest, carried columns."""
        found = self._sql.execute("SELECT digest, carried FROM rows WHERE id = ?", (key(custom_id),))
        return found.fetchone()

    def sent_line(self, line: int) -> int | None:
        """The input's line of the row that stands in this line, from 1, of what was sent."""
        sent = "SELECT line FROM rows WHERE sent ORDER BY n LIMIT 1 OFFSET ?"
        found = self._sql.execute(sent, (line - 1,)).fetchone()
        return None if found is None else found[0]

    # --------------------------------------------------------------------------- rows that the server refused

    def refuse(self, line: int, message: str, param: str | None) -> None:
        """The server finds the row in this line of what was sent invalid: it is not sent again."""
        self._begin()
        self._is_refused = True
        self._sql.execute(
            "INSERT INTO refused SELECT id, digest, ?, ? FROM rows WHERE sent ORDER BY n LIMIT 1 OFFSET ?",
            (message, param, line - 1),
        )

    def refused(self, row: Rendered) -> InvalidRow | None:
        if not self._is_refused:
            return None
        found = self._sql.execute(
            "SELECT message, param FROM refused WHERE id = ? AND digest = ?", (key(row.custom_id), row.digest)
        ).fetchone()
        return None if found is None else InvalidRow(row.line, found[0], found[1], row.custom_id)

    # ------------------------------------------------------------------------------------------- lines that are there

    def forget_known(self, file: int) -> None:
        self._begin()
        self._sql.execute("DELETE FROM known WHERE file = ?", (file,))

    def know(self, file: int, custom_id: str, digest: bytes | None, at: int, size: int) -> None:
        """The line for ``custom_id`` is ``size`` bytes at ``at`` in a file that the command knows by its number."""
        self._begin()
        self._is_known = True
        self._sql.execute(
            "INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", (file, key(custom_id), digest, at, size)
        )

    def place(self, file: int, custom_id: str) -> tuple[int, int] | None:
        """Where the line for ``custom_id`` is, and its length."""
        found = self._sql.execute(
            "SELECT at, size FROM known WHERE file = ? AND id = ?", (file, key(custom_id))
        )
        return found.fetchone()

    def knows(self, file: int, row: Rendered) -> bool:
        """Whether there is a line for this very row."""
        if not self._is_known:
            return False
        found = self._sql.execute(
            "SELECT 1 FROM known WHERE file = ? AND id = ? AND digest = ?",
            (file, key(row.custom_id), row.digest),
        )
        return found.fetchone() is not None

    def lines(self, *files: int) -> Iterator[Found]:
        """The rows of the input in its order, each with its line in the first of the files that has one."""
        joins = " ".join(
            f"LEFT JOIN known k{f} ON k{f}.file = {f} AND k{f}.id = r.id AND k{f}.digest = r.digest"
            for f in files
        )
        case = " ".join(f"WHEN k{f}.at IS NOT NULL THEN {f}" for f in files)
        at = ", ".join(f"k{f}.at" for f in files)
        size = ", ".join(f"k{f}.size" for f in files)
        found = f"SELECT CASE {case} END, coalesce({at}, 0), coalesce({size}, 0), r.carried"
        query = f"{found} FROM rows r {joins} ORDER BY r.n"
        for values in self._sql.execute(query):
            if self.stopped:
                raise Interrupted
            yield Found(*values)

    def others(self, file: int) -> Iterator[tuple[int, int]]:
        """Where lines are that belong to no row of the input."""
        yield from self._sql.execute(
            "SELECT at, size FROM known k WHERE file = ? "
            "AND NOT EXISTS (SELECT 1 FROM rows r WHERE r.id = k.id) ORDER BY at",
            (file,),
        )

    # --------------------------------------------------------------------------------------------- rows with an end

    def try_none_again(self, *, file: int | None = None) -> None:
        """The rows that were sent had their try in this command; with ``file``, only those that have a line there."""
        self._begin()
        self._is_tried = True
        has_line = (
            ""
            if file is None
            else f"AND EXISTS (SELECT 1 FROM known k WHERE k.file = {file} AND k.id = rows.id)"
        )
        self._sql.execute(f"INSERT OR IGNORE INTO tried SELECT id, digest FROM rows WHERE sent {has_line}")
        self.commit()

    def tried(self, row: Rendered) -> bool:
        if not self._is_tried:
            return False
        found = self._sql.execute(
            "SELECT 1 FROM tried WHERE id = ? AND digest = ?", (key(row.custom_id), row.digest)
        )
        return found.fetchone() is not None


def key(custom_id: str) -> bytes:
    """16 bytes in place of a custom_id of any length."""
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def beside(output: Path) -> Path:
    """Where the state of a run with this output is."""
    return output.with_name(output.name + SUFFIX)
