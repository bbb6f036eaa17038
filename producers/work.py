"""What a worker needs of a request."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from schemas.records import VERSION


class Work(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker needs of a request; kept in Redis until the generation ends."""

    params: dict[str, Any]
    targets: list[tuple[str, str]]
    end_user: str | None = None
    choices: int = 1
    v: int = VERSION


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Work)


def decode_work(data: bytes) -> Work:
    return _decoder.decode(data)


def encode_work(work: Work) -> bytes:
    try:
        return _encoder.encode(work)
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError):
        return json.dumps(msgspec.to_builtins(work), separators=(",", ":")).encode()
