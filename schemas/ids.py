"""Ids of completions, files and batches, and the partition that an id belongs to."""

from __future__ import annotations

import re
import zlib

import uuid_utils

_COMPLETION_ID = re.compile(r"chatcmpl-[0-9a-f]{32}")
_FILE_ID = re.compile(r"file-[0-9a-f]{32}")
_BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")


def new_completion_id() -> str:
    """``chatcmpl-`` and the hex digits of a UUIDv7, so that ids sort by the time they were made."""
    return f"chatcmpl-{uuid_utils.uuid7().hex}"


def is_completion_id(text: str) -> bool:
    return _COMPLETION_ID.fullmatch(text) is not None


def new_file_id() -> str:
    """``file-`` and the hex digits of a UUIDv7."""
    return f"file-{uuid_utils.uuid7().hex}"


def is_file_id(text: str) -> bool:
    return _FILE_ID.fullmatch(text) is not None


def new_batch_id() -> str:
    """``batch_`` and the hex digits of a UUIDv7."""
    return f"batch_{uuid_utils.uuid7().hex}"


def is_batch_id(text: str) -> bool:
    return _BATCH_ID.fullmatch(text) is not None


def partition_of(id: str, partitions: int) -> int:
    """CRC32(id) mod ``partitions``: the number in the hash tag ``{p<n>}`` of the keys of this id."""
    return zlib.crc32(id.encode()) % partitions
