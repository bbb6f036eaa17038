"""A month of a million usage records, added up as the usage endpoints do it, on SQLite and on PostgreSQL.

The table has twice as many records of another tenant and of other months beside them. Its rows come from the database
itself, and PostgreSQL is vacuumed afterwards, as autovacuum would.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, event, text

from stores.migration import migrate
from stores.sql import is_sqlite, make_engine, reading, writing
from stores.usage import UsageQuery, UsageReports
from tests.support.postgres import PostgresServer

#: Records of the month, and beside them.
RECORDS, OTHERS = 1_000_000, 2_000_000
#: The month: 30 days from a midnight on.
START_MS = 1_750_032_000_000
DAY_MS = 24 * 3600 * 1000
MONTH_MS = 30 * DAY_MS
#: PostgreSQL's own defaults, where the tests' server has less.
CONFIG = {"shared_buffers": "128MB", "max_wal_size": "1GB"}

_TOKENS = ("requests", "input_tokens", "output_tokens", "cached_tokens")
_MONEY = ("requests", "cost_nano", "unpriced")
_ALL = UsageQuery(start_ms=START_MS, end_ms=START_MS + MONTH_MS, sums=_TOKENS, tenants=["bench"])
#: What is asked, as the endpoints ask it.
QUESTIONS = {
    "tokens by day": msgspec.structs.replace(_ALL, width_ms=DAY_MS),
    "tokens by day and model": msgspec.structs.replace(_ALL, width_ms=DAY_MS, group_by=["model"]),
    "costs by model and key": msgspec.structs.replace(_ALL, group_by=["model", "api_key_id"], sums=_MONEY),
    "costs by end user": msgspec.structs.replace(_ALL, group_by=["external_user_id"], sums=_MONEY),
}

# n counts from 0: the month first, then three months for the others. No two columns follow each other.
_FILL = f"""
INSERT INTO usage (completion_id, tenant, key_id, end_user, model, provider, resolved_model, prompt_tokens,
    completion_tokens, reasoning_tokens, cached_tokens, estimated, cost_nano, saved_nano, cache, status, attempts,
    queue_ms, first_chunk_ms, duration_ms, created_ms)
SELECT 'chatcmpl-' || n, CASE WHEN n < {RECORDS} OR n % 2 = 0 THEN 'bench' ELSE 'another' END,
    'key_' || (n * 7 % 20), CASE WHEN n % 3 > 0 THEN 'user-' || (n * 13 % 500) END,
    CASE n % 5 WHEN 0 THEN 'gpt-4o-mini' WHEN 1 THEN 'auto' WHEN 2 THEN 'claude-sonnet-4-5' WHEN 3 THEN 'smollm2'
        ELSE 'llama3:8b' END,
    'openai', 'gpt-4o-mini', n % 1000, n % 500, 0, n % 100, FALSE, CASE WHEN n % 11 > 0 THEN n * 17 % 1000000 END, 0,
    'bypass', 'completed', 1, 5, 50, 1000,
    CASE WHEN n < {RECORDS} THEN {START_MS} + CAST(n AS BIGINT) * {MONTH_MS // 1000} / {RECORDS // 1000}
        ELSE {START_MS} - 1 - CAST(n - {RECORDS} AS BIGINT) * {3 * MONTH_MS // 1000} / {OTHERS // 1000} END
FROM (NUMBERS) AS numbers
"""
_NUMBERS = {
    "sqlite": f"WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {RECORDS + OTHERS - 1}) "
    "SELECT n FROM s",
    "postgresql": f"SELECT CAST(i AS BIGINT) AS n FROM generate_series(0, {RECORDS + OTHERS - 1}) AS s(i)",
}


class Answer(msgspec.Struct, frozen=True):
    """Milliseconds of each round, and what the database says that it does."""

    times: list[float]
    plan: str


def measure(rounds: int) -> Iterator[tuple[str, dict[str, Answer]]]:
    """By database, by question."""
    for name, opened in (("SQLite", _sqlite), ("PostgreSQL", _postgresql)):
        with opened() as engine:
            _fill(engine)
            yield name, {question: _ask(engine, query, rounds) for question, query in QUESTIONS.items()}


@contextmanager
def _sqlite() -> Generator[Engine]:
    with tempfile.TemporaryDirectory(prefix="tr-bench-") as folder:
        engine = make_engine(f"sqlite:///{Path(folder) / 'books.db'}")
        yield engine
        engine.dispose()


@contextmanager
def _postgresql() -> Generator[Engine]:
    with ExitStack() as exit:
        server = exit.enter_context(PostgresServer(config=CONFIG))
        engine = make_engine(server.create_database(), statement_seconds=600)
        exit.callback(engine.dispose)
        yield engine


def _fill(engine: Engine) -> None:
    migrate(engine)
    with writing(engine) as connection:
        connection.execute(text(_FILL.replace("NUMBERS", _NUMBERS[engine.dialect.name])))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE" if is_sqlite(engine) else "VACUUM (ANALYZE) usage"))


def _ask(engine: Engine, query: UsageQuery, rounds: int) -> Answer:
    reports = UsageReports(engine)
    reports.read(query)
    times: list[float] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        found = reports.read(query)
        times.append((time.perf_counter() - begin) * 1000)
        assert sum(row.sums["requests"] or 0 for row in found) == RECORDS
    return Answer(times, _plan(engine, query))


def _plan(engine: Engine, query: UsageQuery) -> str:
    """In one line."""
    asked: list[tuple[str, Any]] = []

    def remember(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", remember)
    UsageReports(engine).read(query)
    event.remove(engine, "before_cursor_execute", remember)
    ((statement, parameters),) = asked
    how = "EXPLAIN QUERY PLAN" if is_sqlite(engine) else "EXPLAIN (COSTS OFF)"
    with reading(engine) as connection:
        lines = [str(row[-1]) for row in connection.exec_driver_sql(f"{how} {statement}", parameters)]
    named = (line.strip().removeprefix("->").strip() for line in lines)
    return "; ".join(line for line in named if not line.startswith(("Sort Key", "Group Key", "Index Cond")))
