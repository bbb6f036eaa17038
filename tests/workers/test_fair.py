"""Deficit round-robin: who deals the next slice."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from schemas.batches import SLICE_ROWS
from workers.bulk.fair import RoundRobin

SLICES = st.lists(st.integers(1, SLICE_ROWS), max_size=12)


@given(st.dictionaries(st.sampled_from("abcdef"), SLICES), st.integers(0, 40))
def test_places_are_used_as_long_as_anybody_waits(waiting: dict[str, list[int]], places: int) -> None:
    chosen = RoundRobin().choose(waiting, places)
    assert len(chosen) == min(places, sum(map(len, waiting.values())))
    assert all(count <= len(waiting[tenant]) for tenant, count in Counter(chosen).items())


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, SLICE_ROWS), min_size=2),
    st.lists(st.integers(1, 5), min_size=1, max_size=30),
)
def test_no_tenant_is_more_than_two_quanta_ahead(sizes: dict[str, int], looks: list[int]) -> None:
    """However large their slices are, and whenever a few places come free."""
    turns, rows = RoundRobin(), Counter(dict.fromkeys(sizes, 0))
    for places in looks:
        for tenant in turns.choose({tenant: [size] * places for tenant, size in sizes.items()}, places):
            rows[tenant] += sizes[tenant]
    assert max(rows.values()) - min(rows.values()) <= 2 * SLICE_ROWS


def test_who_had_nothing_to_deal_saved_nothing_up() -> None:
    turns = RoundRobin()
    for _ in range(10):
        assert turns.choose({"a": [10], "b": []}, 1) == ["a"]
    assert turns.choose({"a": [100] * 10, "b": [100] * 10}, 4).count("b") == 2
