"""The database: an engine from a URL, transactions, and inserting many rows.

SQLite takes one writer at a time, and a transaction that begins with a read and then writes can fail at once whatever
the busy timeout says. So every transaction here begins with ``BEGIN IMMEDIATE``, but for those of ``reading()``,
which hold no writer up.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    JSON,
    URL,
    Boolean,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Insert,
    LargeBinary,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    cast,
    column,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects.postgresql import insert as _postgresql_insert
from sqlalchemy.dialects.sqlite import insert as _sqlite_insert
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    OperationalError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from schemas.errors import ConfigurationError
from stores import postgresql

#: How long a SQLite writer waits for another one, seconds.
BUSY_SECONDS = 10
#: The longest statement that PostgreSQL runs for us, seconds.
STATEMENT_SECONDS = 30
#: Connections of one process: kept open, and opened beyond those under load.
POOL_SIZE, POOL_OVERFLOW = 5, 15
#: How long a thread waits for one of them, seconds.
POOL_SECONDS = 5

#: The most that one statement carries to PostgreSQL, which takes up to a gigabyte.
DOCUMENT_BYTES = 32 * 1024 * 1024

#: PostgreSQL advisory locks, in two-key form: our namespace, then what the lock guards.
LOCK_SPACE = 0x7461696C
LOCK_MIGRATION, LOCK_BOOKS = 1, 2

#: Classes of SQLSTATE, and single ones, that say nothing of the data: connection, read-only standby, deadlock,
#: resources, operator, a schema or rights that aren't as they should be.
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_AWAY_CLASSES = frozenset({"08", "25", "28", "3D", "3F", "40", "53", "55", "57", "58"})
_AWAY_STATES = frozenset({"42501", "42703", "42704", "42883", "42P01"})
#: The class of limits that a value goes beyond, such as the size of an index row: psycopg calls them operational.
_LIMITS = "54"
#: The most of a reason that is kept, in characters.
REASON_LENGTH = 500

_READING = "tailrace_reading"
_encode_json = msgspec.json.Encoder().encode


def make_engine(url: str, *, connect: bool = True, statement_seconds: float = STATEMENT_SECONDS) -> Engine:
    """An engine for ``sqlite:///PATH``, ``postgresql://…`` or ``postgres://…``.

    With ``connect`` it also opens the database, and raises ConfigurationError of one line where that fails.
    On PostgreSQL nothing waits much longer than ``statement_seconds`` for an answer.
    """
    parsed = _parse(url)
    options: dict[str, Any] = {
        "pool_size": POOL_SIZE,
        "max_overflow": POOL_OVERFLOW,
        "pool_timeout": POOL_SECONDS,
        "json_serializer": _dump_json,
        "json_deserializer": msgspec.json.decode,
        "hide_parameters": True,  # errors reach logs, parameters are users' words
    }
    if is_sqlite(parsed):
        engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, **options)
        event.listen(engine, "connect", _open_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        arguments = postgresql.arguments(parsed, statement_seconds)
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=arguments, **options)
        postgresql.make_patient(engine, statement_seconds)
    if connect:
        _try(engine)
    return engine


def is_sqlite(what: URL | Engine | Connection) -> bool:
    if isinstance(what, URL):
        return what.get_backend_name() == "sqlite"
    return what.dialect.name == "sqlite"


@contextmanager
def writing(engine: Engine) -> Generator[Connection]:
    """A transaction, committed at the end of the block."""
    with engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine) -> Generator[Connection]:
    """A transaction for SELECTs alone. On SQLite it sees one state of the database and stops no writer."""
    with engine.connect() as connection:
        yield connection.execution_options(**{_READING: True})


def refusal(error: Exception) -> str | None:
    """Why what was to be written can't be, without its words; None where the fault is the database's: it is away, busy,
    full, read-only, or lacks our tables, and the same may be written later."""
    if isinstance(error, OSError | MemoryError | PoolTimeout | DisconnectionError):
        return None
    if isinstance(error, DBAPIError):
        state: str = getattr(error.orig, "sqlstate", None) or ""
        away = isinstance(error, OperationalError | InterfaceError) and not state.startswith(_LIMITS)
        if away or error.connection_invalidated or state[:2] in _AWAY_CLASSES or state in _AWAY_STATES:
            return None
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    # PostgreSQL's whole message has a line of detail with the row in it.
    primary: str | None = getattr(getattr(cause, "diag", None), "message_primary", None)
    return f"{type(cause).__name__}: {primary or cause}"[:REASON_LENGTH]


def _dump_json(value: object) -> str:
    return _encode_json(value).decode()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "The database URL can't be read: write sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME."
        ) from None
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ConfigurationError(
            f"The database URL begins with {parsed.drivername}://, which is not supported: "
            "use sqlite:/// or postgresql://."
        )
    path = parsed.database or ""
    if path in ("", ":memory:") or "mode=memory" in path or parsed.query.get("mode") == "memory":
        raise ConfigurationError(
            "A SQLite database in memory can't be shared between processes: name a file, sqlite:///PATH."
        )
    if not path.startswith("file:"):
        file = Path(path)
        if not file.absolute().parent.is_dir():
            raise ConfigurationError(
                f"The folder {file.absolute().parent} of the SQLite database does not exist: create it first."
            )
        if file.is_dir():
            raise ConfigurationError(f"The SQLite database {path} is a folder: name a file.")
    return parsed.set(drivername="sqlite+pysqlite")


def _open_sqlite(connection: DBAPIConnection, _record: object) -> None:
    # No implicit BEGIN by the driver: the "begin" event below emits the one that we want.
    connection.isolation_level = None
    cursor = connection.cursor()
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    # In KiB, negative. With its own 2 MiB, looking for fingerprints among 100,000 results reads the file each time.
    cursor.execute("PRAGMA cache_size = -8192")
    cursor.close()


def _use_wal(cursor: DBAPICursor) -> None:
    """Changing the mode needs the file for itself, and SQLite doesn't wait for that as it does for a write."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone() == ("wal",):
            return
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            mode = cursor.fetchone()
            if mode != ("wal",):
                raise sqlite3.OperationalError(
                    f"write-ahead logging is not available here (journal mode {mode})"
                )
            return
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _try(engine: Engine) -> None:
    """Open the database; a file must be one that can be written."""
    try:
        with engine.connect() as connection:
            if is_sqlite(engine):
                # A lock can be had on a read-only file too, a table can't. It's rolled back.
                connection.exec_driver_sql("CREATE TABLE tailrace_may_write (x INTEGER)")
            else:
                connection.exec_driver_sql("SELECT 1")
            connection.rollback()
    except DBAPIError as error:
        engine.dispose()
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            return
        reason = " ".join(str(error.orig).split())
        raise ConfigurationError(f"The database {place(engine.url)} can't be opened: {reason}") from None


def place(url: URL) -> str:
    """Where a database is, without its user and password."""
    if is_sqlite(url):
        return str(url.database)
    host = url.host or url.query.get("host") or "localhost"
    return f"{url.database or ''} at {host}:{url.port or url.query.get('port') or 5432}"


def among(column: ColumnElement[str]) -> ColumnElement[bool]:
    """The column's value is in the parameter ``ids``, a list of any length."""
    return _Among(column)


class _Ids(TypeDecorator[list[str]]):
    """Any number of ids in one parameter: an array on PostgreSQL, a JSON array on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(Text()) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: list[str] | None, dialect: Dialect) -> Any:
        return value if dialect.name == "postgresql" or value is None else _dump_json(value)


class _Among(FunctionElement[bool]):
    type = Boolean()
    inherit_cache = True

    def __init__(self, column: ColumnElement[str]) -> None:
        super().__init__(column, bindparam("ids", type_=_Ids()))

    def self_group(self, against: object = None) -> ColumnElement[bool]:
        # Else SQLite is sent "… = 1", and uses no index.
        return self


@compiles(_Among, "postgresql")
def _among_array(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, ids = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({column} = ANY({ids}))"


@compiles(_Among, "sqlite")
def _among_json(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, ids = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({column} IN (SELECT value FROM json_each({ids})))"


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert those rows whose primary key is not there yet. All rows have the same keys.

    Raises StatementError, which all of SQLAlchemy's errors of the database are, for what can't be inserted.

    SQLAlchemy's own bulk insert spends 8 µs a row on parameters and psycopg's arrays twice that. So PostgreSQL is sent
    the rows as JSON documents, and SQLite plain tuples.
    """
    if not rows:
        return
    try:
        if is_sqlite(connection):
            _insert_tuples(connection, table, rows)
        else:
            for document in _documents(rows):
                connection.execute(_insert_json(table, tuple(rows[0])), {"rows": document})
    except (OverflowError, UnicodeError) as error:
        message = f"A row of {table.name} has a value that the database can't hold: {error}"
        raise StatementError(message, None, None, error) from error


def _insert_tuples(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    names = tuple(rows[0])
    for name in names:
        if isinstance(table.c[name].type, JSON):
            rows = [{**row, name: None if row[name] is None else _dump_json(row[name])} for row in rows]
    statement, values = _insert_positional(connection.dialect, table, names)
    connection.exec_driver_sql(statement, [values(row) for row in rows])


@cache
def _insert_positional(
    dialect: Dialect, table: Table, names: tuple[str, ...]
) -> tuple[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]]:
    insert = _sqlite_insert(table).on_conflict_do_nothing()
    compiled = insert.compile(dialect=dialect, column_keys=names)
    assert isinstance(compiled, SQLCompiler)
    assert compiled.positiontup
    return str(compiled), itemgetter(*compiled.positiontup)


@cache
def _insert_json(table: Table, names: tuple[str, ...]) -> Insert:
    columns = [table.c[name] for name in names]
    types = [Text() if isinstance(c.type, LargeBinary) else c.type for c in columns]
    rows = func.json_to_recordset(cast(bindparam("rows", type_=Text()), JSON))
    fields = rows.table_valued(*map(column, names, types), name="r").render_derived(with_types=True)
    values = [
        func.decode(fields.c[c.name], "base64") if isinstance(c.type, LargeBinary) else fields.c[c.name]
        for c in columns
    ]
    return _postgresql_insert(table).from_select(names, select(*values)).on_conflict_do_nothing()


def _documents(rows: Sequence[Mapping[str, Any]]) -> Generator[str]:
    """JSON arrays of the rows, bytes in base64, none much larger than DOCUMENT_BYTES."""
    part: list[bytes] = []
    size = 0
    for row in map(_encode_json, rows):
        if part and size + len(row) > DOCUMENT_BYTES:
            yield f"[{b','.join(part).decode()}]"
            part, size = [], 0
        part.append(row)
        size += len(row)
    yield f"[{b','.join(part).decode()}]"


def lock(connection: Connection, what: int, *, shared: bool = False) -> None:
    """An advisory lock until the end of the transaction. SQLite's writers have the database for themselves anyway."""
    if not is_sqlite(connection):
        suffix = "_shared" if shared else ""
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock{suffix}({LOCK_SPACE}, {what})")
