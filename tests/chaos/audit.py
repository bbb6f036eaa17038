"""What the books have of every completion of a run, and what Redis still has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from consumers.follow import renderer_for
from consumers.lookup import from_books
from schemas.codec import split_items
from schemas.tables import attempts, completions, results, usage
from stores.rows import SELECT_COMPLETIONS, CompletionRow, read_completion, read_log
from tests.chaos.checks import Stored

#: Completions that are read at once.
PAGE = 500


def unfinished(engine: Engine, tenant: str) -> list[str]:
    """Completions that the books know, and no end of them."""
    with engine.connect() as connection:
        query = select(completions.c.id).where(
            completions.c.tenant == tenant, completions.c.ended_ms.is_(None)
        )
        return list(connection.scalars(query))


def known(engine: Engine, tenant: str) -> int:
    """How many completions the books know."""
    with engine.connect() as connection:
        query = select(func.count()).select_from(completions).where(completions.c.tenant == tenant)
        return int(connection.scalar(query) or 0)


def read_books(engine: Engine, tenant: str) -> Iterator[Stored]:
    """Every completion of the tenant, oldest first, with its text as readers see it."""
    after = ""
    with engine.connect() as connection:
        while True:
            query = SELECT_COMPLETIONS.where(completions.c.tenant == tenant, completions.c.id > after)
            rows = connection.execute(query.order_by(completions.c.id).limit(PAGE)).mappings().all()
            if not rows:
                return
            page = [read_completion(row) for row in rows]
            yield from _page(connection, page)
            after = page[-1].id


def _page(connection: Connection, page: Sequence[CompletionRow]) -> Iterator[Stored]:
    ids = [row.id for row in page]
    generations = [row.generation_id for row in page]
    records: dict[str, list[str]] = defaultdict(list)
    for id, status in connection.execute(
        select(usage.c.completion_id, usage.c.status).where(usage.c.completion_id.in_(ids))
    ):
        records[id].append(status)
    numbers: dict[str, list[int]] = defaultdict(list)
    for id, number in connection.execute(
        select(attempts.c.generation_id, attempts.c.number).where(attempts.c.generation_id.in_(generations))
    ):
        numbers[id].append(number)
    r = results.c
    columns = (r.generation_id, r.head, r["items"], r.compressed, r.base, r.next)
    logs: dict[str, Any] = {
        id: read_log(*log)
        for id, *log in connection.execute(select(*columns).where(r.generation_id.in_(generations)))
    }
    for row in page:
        number = (row.metadata or {}).get("chaos")
        stored = Stored(
            id=row.id,
            number=None if number is None else int(number),
            status=row.status.value,
            ended=row.ended_ms is not None,
            usage=records[row.id],
            attempts=numbers[row.generation_id],
        )
        generation = row.generation
        if generation is not None:
            seen = from_books(row)
            stored.base, stored.next, stored.attempt = seen.base, seen.next, seen.attempt
            stored.code = seen.failure.code if seen.failure is not None else None
            stored.abandoned = seen.own is not None and seen.own.tail < generation.base
            log = logs.get(row.generation_id)
            if log is not None:
                renderer = renderer_for(seen, flat_logprobs=True)
                renderer.set_head(log.head)
                items = split_items(log.items) if log.items else []
                stored.chunks = [renderer.render(item) for item in items[: seen.next - seen.base]]
            elif row.store and generation.next == generation.base:
                stored.chunks = []  # a log without chunks has no text to keep
        yield stored
