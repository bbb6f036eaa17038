"""Key names: where a key lives, and that no two things share one."""

from __future__ import annotations

import inspect

from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from schemas.keys import PARTITIONS_KEY, Keys, scoped_digest


def names(keys: Keys) -> list[str]:
    """Every key and channel of a partition, with arguments where some are taken."""
    found: list[str] = []
    for name, member in inspect.getmembers(Keys):
        if isinstance(member, property) and name != "prefix":
            found.append(getattr(keys, name))
        elif inspect.isfunction(member) and not name.startswith("_"):
            arguments = ["x"] * (len(inspect.signature(member).parameters) - 1)
            found.append(getattr(keys, name)(*arguments))
    return found


@given(st.integers(0, 4095))
def test_keys_of_a_partition_share_a_slot(partition: int) -> None:
    """A script can take any keys and channels of one partition, and all of them have different names."""
    found = names(Keys(partition))
    assert {key_slot(name.encode()) for name in found} == {key_slot(f"{{p{partition}}}".encode())}
    assert len(set(found)) == len(found) > 10
    assert all(name.startswith(f"tailrace:{{p{partition}}}:") for name in found)


def test_the_number_of_partitions_is_in_partition_0() -> None:
    """Where it is found doesn't depend on what it says."""
    assert PARTITIONS_KEY.startswith(Keys(0).prefix)
    assert PARTITIONS_KEY not in names(Keys(0))


parts = st.lists(st.none() | st.text(st.characters(exclude_categories=()), max_size=4), max_size=4)


@given(parts, parts)
def test_digests_tell_tuples_apart(one: list[str | None], other: list[str | None]) -> None:
    """Different tuples never share a name, however their parts are cut, and a missing part is not an empty one."""
    assert (scoped_digest(*one) == scoped_digest(*other)) is (one == other)
    assert scoped_digest(None) != scoped_digest("") != scoped_digest()
    assert scoped_digest("a", "b") != scoped_digest("ab", "") != scoped_digest("ab")
