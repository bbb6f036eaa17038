"""Which requests may be answered by others' work, and which answers may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.caching import WHOLE, cache_policy, whole_choices

directives = st.dictionaries(
    st.sampled_from(["no-cache", "no-store", "only-if-cached", "max-stale"]), st.just(""), max_size=4
) | st.builds(lambda seconds: {"max-age": str(seconds)}, st.integers(0, 10_000))
temperatures = st.none() | st.sampled_from([0, 0.0, -0.0, 0.1, 1, 2])
samples = st.none() | st.integers(0, 5)


@given(directives, temperatures, samples, st.booleans())
def test_what_a_policy_can_be(
    said: dict[str, str], temperature: float | None, sample: int | None, store: bool
) -> None:
    policy = cache_policy(said, temperature=temperature, sample=sample, store=store)
    assert policy.only is ("only-if-cached" in said)
    if not store or "no-store" in said:
        assert (policy.reads, policy.writes, policy.joins) == (False, False, False)
        return
    asked = {"no-cache", "only-if-cached", "max-age"} & said.keys()
    deterministic = temperature == 0 or sample is not None
    if not policy.only:
        assert (policy.reads or policy.writes) is bool(asked or deterministic)
    if "no-cache" in said or said.get("max-age") == "0":
        assert not policy.reads
    if policy.only:
        assert (policy.joins, policy.writes) == (False, False), "it starts and joins no work"
    if "max-age" in said and policy.reads:
        assert policy.max_age == int(said["max-age"])


@pytest.mark.parametrize("reason", ["length", "content_filter", "", "max_tokens", "error"])
def test_one_choice_that_is_not_whole_spoils_the_answer(reason: str) -> None:
    assert whole_choices(["stop", reason]) == 0


@given(st.lists(st.sampled_from(sorted(WHOLE))))
def test_whole_choices_are_counted(reasons: list[str]) -> None:
    assert whole_choices(reasons) == len(reasons)
