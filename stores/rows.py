"""Rows of the books: ledger records as what is inserted, and what is selected as values."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import RowMapping, select

from schemas.errors import Failure
from schemas.prices import Prices
from schemas.records import Accepted, Attempted, Ended, StoredLog, Usage
from schemas.states import State
from schemas.tables import completions, generations, usage

#: zlib's level for chunk logs. Of 1 KB level 6 makes 5% fewer bytes in 40% more time; of long logs it takes longer.
COMPRESSION = 1

_c, _g, _u = completions.c, generations.c, usage.c
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class GenerationRow(msgspec.Struct, frozen=True):
    """A generation that has ended. ``next`` is the index after its last chunk, ``base`` its final attempt's first."""

    id: str
    provider: str
    model: str
    state: State
    attempt: int
    base: int
    next: int
    failure: Failure | None
    finish_reasons: list[str]
    created_ms: int
    leased_ms: int | None
    first_chunk_ms: int | None
    ended_ms: int


class UsageRow(msgspec.Struct, frozen=True):
    """What a settled completion used. ``cost_nano`` None: nobody knows. ``saved_nano``: what a hit or a join would have
    cost without the others."""

    tokens: Usage
    cost_nano: int | None
    saved_nano: int | None
    attempts: int
    queue_ms: int | None
    first_chunk_ms: int | None
    duration_ms: int


class CompletionRow(msgspec.Struct, frozen=True):
    """A completion, with its generation and its usage record once it is settled."""

    id: str
    generation_id: str
    tenant: str
    key_id: str
    end_user: str | None
    model: str  # as asked
    provider: str
    resolved_model: str
    queue: str
    fingerprint: str
    status: State
    store: bool
    metadata: dict[str, str] | None
    cache: str
    created_ms: int
    deadline_ms: int | None
    ended_ms: int | None
    tail: int | None
    generation: GenerationRow | None
    usage: UsageRow | None


def storable(text: str) -> str:
    """The text with U+FFFD for what PostgreSQL's text or UTF-8 can't hold: U+0000 and lone surrogates."""
    return text if text.isascii() and "\x00" not in text else _UNSTORABLE.sub("\ufffd", text)


def storable_pairs(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if metadata is None else {storable(name): storable(value) for name, value in metadata.items()}


# Records as rows


def completion_row(record: Accepted) -> dict[str, Any]:
    paid = record.id == record.generation
    return {
        "id": record.id,
        "generation_id": record.generation,
        "tenant": record.tenant,
        "key_id": record.key_id,
        "end_user": None if record.end_user is None else storable(record.end_user),
        "model": storable(record.model),
        "provider": record.provider,
        "resolved_model": storable(record.resolved_model),
        "queue": record.queue,
        "fingerprint": record.fingerprint,
        "status": State.QUEUED.value,
        "store": record.store,
        "metadata": storable_pairs(record.metadata),
        "cache": record.cache if paid or record.cache == "hit" else "join",
        "created_ms": record.created_ms,
        "deadline_ms": record.deadline_ms,
        "batch_id": record.batch_id,
    }


def generation_row(record: Ended) -> dict[str, Any]:
    failure = record.failure
    return {
        "id": record.generation,
        "provider": record.provider,
        "model": storable(record.model),
        "state": record.state,
        "attempt": record.attempt,
        "base": record.base,
        "next": record.next,
        "failure": None if failure is None else _storable_failure(failure),
        "finish_reasons": [storable(reason) for reason in record.finish_reasons],
        "created_ms": record.created_ms,
        "leased_ms": record.leased_ms,
        "first_chunk_ms": record.first_chunk_ms,
        "ended_ms": record.ended_ms,
    }


def _storable_failure(failure: Failure) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(failure)
    return {name: storable(value) if isinstance(value, str) else value for name, value in fields.items()}


def attempt_rows(record: Ended, prices: Prices) -> list[dict[str, Any]]:
    """Of a generation that never started there are none; one that ended while it waited has past attempts alone."""
    tried = {past.number: past for past in record.past}
    if record.attempt > 0:
        tried.setdefault(record.attempt, Attempted(
            number=record.attempt, provider=record.provider, model=record.model, state=record.state,
            usage=record.usage, started_ms=record.started_ms, ended_ms=record.ended_ms,
        ))  # fmt: skip
    return [_attempt_row(record.generation, attempt, prices) for _, attempt in sorted(tried.items())]


def _attempt_row(generation_id: str, attempt: Attempted, prices: Prices) -> dict[str, Any]:
    tokens = attempt.usage
    return {
        "generation_id": generation_id,
        "number": attempt.number,
        "provider": attempt.provider,
        "model": storable(attempt.model),
        "state": attempt.state,
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "reasoning_tokens": tokens.reasoning_tokens,
        "cached_tokens": tokens.cached_tokens,
        "estimated": tokens.estimated,
        "cost_nano": prices.cost_nano(attempt.provider, attempt.model, tokens, attempt.ended_ms),
        "started_ms": attempt.started_ms,
        "ended_ms": attempt.ended_ms,
    }


def log_row(generation_id: str, log: StoredLog) -> dict[str, Any]:
    small = zlib.compress(log.items, COMPRESSION)
    compressed = len(small) < len(log.items)
    return {
        "generation_id": generation_id,
        "head": log.head,
        "items": small if compressed else log.items,
        "compressed": compressed,
        "base": log.base,
        "next": log.next,
    }


class CacheRow(msgspec.Struct, frozen=True):
    """A result that may answer equal requests, by the record of the completion that it was made for."""

    record: Accepted
    ended_ms: int
    expires_ms: int


def cache_row(row: CacheRow, size: int) -> dict[str, Any]:
    record = row.record
    return {
        "tenant": record.tenant,
        "fingerprint": record.fingerprint,
        "generation_id": record.generation,
        "model": storable(record.model),
        "resolved_model": storable(record.resolved_model),
        "bytes": size,
        "hits": 0,
        "created_ms": row.ended_ms,
        "expires_ms": row.expires_ms,
    }


# Rows as values

#: Completions with what ``read_completion`` wants to know of their generations and their usage.
SELECT_COMPLETIONS = (
    select(completions, *(c.label(f"g_{c.name}") for c in _g), *(c.label(f"u_{c.name}") for c in _u))
    .outerjoin(generations, _g.id == _c.generation_id)
    .outerjoin(usage, _u.completion_id == _c.id)
)


def read_completion(fields: RowMapping) -> CompletionRow:
    """The completion in a row of ``SELECT_COMPLETIONS``."""
    generation = used = None
    if fields["g_id"] is not None:
        names = GenerationRow.__struct_fields__
        generation = msgspec.convert({name: fields[f"g_{name}"] for name in names}, GenerationRow)
    if fields["u_completion_id"] is not None:
        tokens = Usage(**{name: fields[f"u_{name}"] for name in Usage.__struct_fields__})
        rest = {name: fields[f"u_{name}"] for name in UsageRow.__struct_fields__ if name != "tokens"}
        used = UsageRow(tokens=tokens, **rest)
    own: dict[str, Any] = {name: fields[name] for name in CompletionRow.__struct_fields__ if name in _c}
    own["status"] = State(own["status"])
    return CompletionRow(**own, generation=generation, usage=used)


def completion_of(row: Sequence[Any]) -> CompletionRow:
    """As ``read_completion``, by position: for pages of many. What comes after the columns is passed over."""
    generation = used = None
    if row[_GENERATION_AT] is not None:
        values = list(_generation_values(row))
        values[_STATE_AT] = _STATES[values[_STATE_AT]]
        if values[_FAILURE_AT] is not None:
            values[_FAILURE_AT] = msgspec.convert(values[_FAILURE_AT], Failure)
        generation = GenerationRow(*values)
    if row[_USAGE_AT] is not None:
        used = UsageRow(Usage(*_token_values(row)), *_usage_values(row))
    own: list[Any] = [*_own_values(row), generation, used]
    own[_STATUS_AT] = _STATES[own[_STATUS_AT]]
    return CompletionRow(*own)


_STATES = {state.value: state for state in State}
_NAMES = [column.name for column in SELECT_COMPLETIONS.selected_columns]
_GENERATION_AT, _USAGE_AT = _NAMES.index("g_id"), _NAMES.index("u_completion_id")
_STATE_AT = GenerationRow.__struct_fields__.index("state")
_FAILURE_AT = GenerationRow.__struct_fields__.index("failure")
_STATUS_AT = CompletionRow.__struct_fields__.index("status")


def _values(prefix: str, names: Iterable[str]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    return itemgetter(*(_NAMES.index(f"{prefix}{name}") for name in names))


_own_values = _values("", (name for name in CompletionRow.__struct_fields__ if name in _c))
_generation_values = _values("g_", GenerationRow.__struct_fields__)
_token_values = _values("u_", Usage.__struct_fields__)
_usage_values = _values("u_", (name for name in UsageRow.__struct_fields__ if name != "tokens"))


def read_log(head: bytes, items: bytes, compressed: bool, base: int, next: int) -> StoredLog:
    return StoredLog(bytes(head), zlib.decompress(items) if compressed else bytes(items), base, next)
