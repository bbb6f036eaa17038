"""Ids of completions and their partitions."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import (
    is_batch_id,
    is_completion_id,
    is_file_id,
    new_batch_id,
    new_completion_id,
    new_file_id,
    partition_of,
)


def test_new_ids_are_ids_differ_and_sort_by_age() -> None:
    """Ids made one after the other are all different and already in order."""
    ids = [new_completion_id() for _ in range(1000)]
    assert all(is_completion_id(id) for id in ids)
    assert len(set(ids)) == len(ids)
    assert sorted(ids) == ids


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chatcmpl-",
        "chatcmpl-" + "0" * 31,
        "chatcmpl-" + "0" * 33,
        "chatcmpl-" + "A" * 32,
        "chatcmpl-" + "g" * 32,
        "chatcmpl-" + "0" * 32 + "\n",
        " chatcmpl-" + "0" * 32,
        "chatcmpl-" + "٠" * 32,
        "chatcmpl-{p1}" + "0" * 28,
    ],
)
def test_only_the_exact_shape_is_an_id(text: str) -> None:
    """What ends up in a Redis key has the exact shape of an id: no newline, no brace, no foreign digit."""
    assert not is_completion_id(text)


@pytest.mark.parametrize(
    ("new", "right", "begin"), [(new_file_id, is_file_id, "file-"), (new_batch_id, is_batch_id, "batch_")]
)
def test_ids_of_files_and_batches(new: Callable[[], str], right: Callable[[str], bool], begin: str) -> None:
    """They sort by age, and nothing else has their shape."""
    ids = [new() for _ in range(1000)]
    assert sorted({*ids}) == ids
    assert all(right(id) and id.startswith(begin) for id in ids)
    for text in (
        begin,
        begin + "0" * 31,
        begin + "A" * 32,
        ids[0] + "\n",
        new_completion_id(),
        f"../{ids[0]}",
    ):
        assert not right(text)


@given(st.text(), st.integers(1, 1024))
def test_a_partition_is_the_checksum_within_range(id: str, partitions: int) -> None:
    """Any other program finds the partition of an id as CRC32 of its UTF-8 bytes, modulo P."""
    assert partition_of(id, partitions) == zlib.crc32(id.encode("utf-8")) % partitions
    assert partition_of(id, 1) == 0


def test_ids_spread_over_all_partitions() -> None:
    """No partition of 64 gets more than three times its share of 6,400 ids, and none stays empty."""
    counts = Counter(partition_of(new_completion_id(), 64) for _ in range(6400))
    assert len(counts) == 64
    assert max(counts.values()) < 300
