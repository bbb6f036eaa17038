"""Ledger records to enter into the books, and all that the books hold."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Engine, delete, select

from schemas.records import Accepted, Ended, StoredLog, Usage
from schemas.states import State
from schemas.tables import metadata
from stores.sql import reading, writing

T0 = 1_700_000_000_000
LOG = StoredLog(head=b'{"top": {}}', items=b'"Hello"\n" there"\n"\\u0000"', base=0, next=3)


def accepted(id: str, generation: str | None = None, **fields: Any) -> Accepted:
    record = Accepted(
        id=id,
        generation=generation or id,
        tenant="acme",
        key_id="key_1",
        model="fast",
        provider="local",
        resolved_model="smollm2",
        queue="interactive",
        created_ms=T0,
        fingerprint="f" * 64,
        cache="bypass" if generation is None else "join",
    )
    return msgspec.structs.replace(record, **fields)


def ended(generation: str, state: State = State.COMPLETED, **fields: Any) -> Ended:
    record = Ended(
        generation=generation,
        state=state,
        attempt=1,
        base=0,
        next=3,
        created_ms=T0,
        leased_ms=T0 + 5,
        first_chunk_ms=T0 + 40,
        ended_ms=T0 + 100,
        provider="local",
        model="smollm2",
        usage=Usage(prompt_tokens=7, completion_tokens=3, reasoning_tokens=1, cached_tokens=2),
        finish_reasons=["stop"],
    )
    return msgspec.structs.replace(record, **fields)


def contents(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    with reading(engine) as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in metadata.sorted_tables
        }


def empty(engine: Engine) -> None:
    with writing(engine) as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))
