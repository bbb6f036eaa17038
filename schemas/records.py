"""What crosses from Redis to SQL: the ledger's records, and a chunk log at rest.

A record is one entry of a partition's ledger stream, its field ``r`` the JSON of one of these, tagged by ``t``.
Times are Redis server times in integer milliseconds since the epoch.
"""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from schemas.errors import Failure

#: The version of records, messages and state hashes. A process that meets a higher one leaves it alone.
VERSION = 1


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one attempt. ``estimated`` where the provider sent none."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Accepted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t", tag="accepted"):
    """A completion was accepted and points to ``generation``. The accept script puts in ``created_ms``."""

    id: str
    generation: str
    tenant: str
    key_id: str
    model: str  # as asked
    provider: str
    resolved_model: str
    queue: str
    created_ms: int = 0
    fingerprint: str
    end_user: str | None = None  # X-On-Behalf-Of
    store: bool = True
    metadata: dict[str, str] | None = None
    cache: str = "bypass"
    choices: int = 1
    deadline_ms: int | None = None
    batch_id: str | None = None
    counted: bool = False  # its tokens count for a limit of its key
    v: int = VERSION


class Attempted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt that did not end its generation. ``state``: lost (its worker was), released (its worker was stopped)
    or failed (its provider did). The script that ends it puts in the times."""

    number: int
    provider: str
    model: str
    state: str
    usage: Usage = Usage()
    started_ms: int | None = None
    ended_ms: int = 0


class Ended(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t", tag="ended"):
    """A generation ended. ``next`` is the index after its last chunk, ``base`` the first one of the final attempt.

    The script that ends it puts in ``attempt``, ``base``, ``next`` and the times.
    """

    generation: str
    state: str
    attempt: int = 0
    base: int = 0
    next: int = 0
    ended_ms: int = 0
    provider: str
    model: str
    created_ms: int = 0
    leased_ms: int | None = None  # first claim
    started_ms: int | None = None  # claim of the final attempt
    first_chunk_ms: int | None = None
    usage: Usage = Usage()
    failure: Failure | None = None
    finish_reasons: list[str] = []
    past: list[Attempted] = []  # the attempts before the final one
    v: int = VERSION


class Departed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t", tag="departed"):
    """A completion ended before its generation, which goes on for others. ``tail`` is the index after its last chunk.

    A script writes it.
    """

    accepted: Accepted
    state: str
    tail: int
    ended_ms: int
    v: int = VERSION

    @property
    def generation(self) -> str:
        return self.accepted.generation


Record = Accepted | Ended | Departed

_SURROGATE = re.compile("[\ud800-\udfff]")
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def encode(value: msgspec.Struct) -> bytes:
    """JSON that every reader takes: half a surrogate pair, as a provider's words may hold one, becomes U+FFFD."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_whole_characters(msgspec.to_builtins(value)))


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {name: _whole_characters(part) for name, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_whole_characters(part) for part in cast("list[Any]", value)]
    return value


def encode_record(record: Record) -> bytes:
    return encode(record)


def open_record(record: Accepted | Ended | Attempted) -> bytes:
    """The record as a JSON object that is left open, for a script to put in its fields and close it."""
    return encode(record)[:-1]


def decode_record(data: bytes | str) -> Record:
    """Raises msgspec.DecodeError (or its child ValidationError) for what is not a record."""
    return _decoder.decode(data)


class _Versioned(msgspec.Struct, frozen=True):
    v: int = 0


_version_decoder = msgspec.json.Decoder(_Versioned)


def is_newer(data: bytes | str) -> bool:
    """Whether a later version of Tailrace wrote this record, which this one may be unable to decode."""
    try:
        return _version_decoder.decode(data).v > VERSION
    except msgspec.DecodeError:
        return False


class StoredLog(msgspec.Struct, frozen=True):
    """A finished chunk log, as SQL keeps it: the items of the chunks ``base`` and up, one a line."""

    head: bytes
    items: bytes
    base: int
    next: int
