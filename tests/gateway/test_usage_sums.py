"""In usage and costs nothing is counted twice or left out, for any question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.buckets import WIDTHS
from tests.support.api import Api
from tests.support.properties import examples
from tests.support.stack import Stack
from tests.support.usage import (
    COMPLETIONS,
    COSTS,
    DAY,
    ORGANIZATION_COSTS,
    SUMMARY,
    T0,
    Record,
    get,
    pages,
    recorded,
)

#: Beside boundaries of minutes, hours and days, and in between.
near = st.builds(
    lambda boundary, beside: T0 + boundary + beside,
    st.sampled_from([0, 60, 120, 3600, 7200, DAY, 2 * DAY, 3 * DAY, 30 * DAY]),
    st.sampled_from([-61, -2, -1, 0, 1, 2, 30, 59, 1800]),
)
text = st.sampled_from(["a", "b", "ü 水", "A"])
records = st.lists(
    st.builds(
        Record,
        second=near,
        milli=st.sampled_from([0, 1, 500, 999]),
        mine=st.booleans(),
        model=text,
        end_user=st.none() | text,
        batch_id=st.none() | st.sampled_from(["batch_1", "batch_2"]),
        prompt=st.integers(0, 10**12),
        completion=st.integers(0, 1000),
        cached=st.integers(0, 1000),
        cost=st.none() | st.integers(0, 10**15),
        cache=st.sampled_from(["bypass", "miss", "hit", "join"]),
        saved=st.none() | st.integers(0, 10**6),
    ),
    max_size=30,
)


def subset(*names: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), unique=True)


def known(numbers: Sequence[int | None]) -> int | None:
    """Their sum without what nobody knows, which is all there is where nobody knows any."""
    some = [number for number in numbers if number is not None]
    return sum(some) if some or not numbers else None


def grouped(
    found: Sequence[Record], by: Sequence[str], api: Api, other: str
) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in found:
        groups.setdefault(tuple(record.group(api, other)[name] for name in by), []).append(record)
    return groups


@examples(60)
@given(
    records=records,
    start=near,
    buckets=st.integers(1, 12),
    cut=st.sampled_from([0, 0, 1, 7, -1]),
    width=st.sampled_from([*WIDTHS]),
    limit=st.integers(1, 5),
    by=subset("model", "user_id", "api_key_id", "external_user_id", "org_id", "batch"),
    batch=st.none() | st.booleans(),
    models=st.none() | st.lists(text, min_size=1, max_size=2),
    brackets=st.booleans(),
    admin=st.booleans(),
)
def test_the_sum_over_all_buckets_is_the_sum_over_the_records(
    each_stack: Stack,
    each_api: Api,
    records: list[Record],
    start: int,
    buckets: int,
    cut: int,
    width: str,
    limit: int,
    by: list[str],
    batch: bool | None,
    models: list[str] | None,
    brackets: bool,
    admin: bool,
) -> None:
    """For any grouping, page size, width and boundary. Buckets follow each other without gap, at whole minutes, hours
    and days, and a key sees its tenant's alone."""
    seconds = WIDTHS[width].seconds
    end = max(start + 1, start + buckets * seconds + cut)
    api = each_api
    params: dict[str, Any] = {"start_time": start, "end_time": end, "bucket_width": width, "limit": limit}
    params["group_by[]" if brackets else "group_by"] = by
    if batch is not None:
        params["batch"] = str(batch).lower()
    if models is not None:
        params["models[]" if brackets else "models"] = models
    found: dict[tuple[Any, ...], Counter[str]] = {}
    boundaries: list[int] = []
    with recorded(each_stack, api, records) as other, each_stack.api(admin=True) as everybody:
        if admin:
            params["org_ids"] = [api.tenant, other]
        for page in pages(everybody if admin else api, COMPLETIONS, **params):
            assert 0 < len(page["data"]) <= limit
            for bucket in page["data"]:
                assert bucket["start_time"] == (boundaries[-1] if boundaries else start)
                boundaries.append(bucket["end_time"])
                for result in bucket["results"]:
                    key = tuple(result[name] for name in by)
                    sums = found.setdefault(key, Counter())
                    sums.update({name: n for name, n in result.items() if name.endswith(("_tokens", "s"))})
                keys = [tuple(result[name] for name in by) for result in bucket["results"]]
                assert len(keys) == len(set(keys)), "one result of each group"
    assert boundaries[-1] == end
    assert all(boundary % seconds == 0 for boundary in boundaries[:-1])
    mine = [
        r
        for r in records
        if (r.mine or admin)
        and start <= r.second < end
        and batch in (None, r.batch_id is not None)
        and (models is None or r.model in models)
    ]
    assert found == {
        key: Counter(
            input_tokens=sum(r.prompt for r in group),
            output_tokens=sum(r.completion for r in group),
            input_cached_tokens=sum(r.cached for r in group),
            num_model_requests=len(group),
        )
        for key, group in grouped(mine, by, api, other).items()
    }


@examples(40)
@given(
    records=records,
    start=near,
    length=st.sampled_from([1, 59, 3600, DAY, DAY + 1, 40 * DAY]),
    by=subset("model", "api_key_id", "team_id", "external_user_id", "org_id"),
    limit=st.integers(1, 180),
)
def test_costs_are_the_sum_of_what_is_known(
    each_stack: Stack,
    each_api: Api,
    records: list[Record],
    start: int,
    length: int,
    by: list[str],
    limit: int,
) -> None:
    """To the nano unit, in all three reports; what nobody knows is null where it stands alone, and counted."""
    api, end = each_api, start + length
    times = {"start_time": start, "end_time": end}
    lines = ["line_item" if name == "model" else name for name in by if name != "team_id"]
    with recorded(each_stack, api, records) as other:
        whole = get(api, COSTS, **times, group_by=by)
        daily = [*pages(api, ORGANIZATION_COSTS, **times, group_by=lines, limit=limit)]
        summary = get(api, SUMMARY, **times, group_by=[name for name in by if name != "team_id"])
        by_day = get(api, SUMMARY, **times, group_by="day")
    mine = [r for r in records if r.mine and start <= r.second < end]
    assert {
        tuple(row[name] for name in by): (row["cost_nano"], row["unpriced_requests"]) for row in whole["data"]
    } == {
        key: (told(known([r.cost for r in group])), sum(r.cost is None for r in group))
        for key, group in grouped(mine, by, api, other).items()
    }
    assert whole["total_cost_nano"] == told(known([r.cost for r in mine]))
    assert whole["unpriced_requests"] == sum(r.cost is None for r in mine)
    assert whole["group_by"] == by
    results = [result for page in daily for bucket in page["data"] for result in bucket["results"]]
    values = [r["amount"]["value"] for r in results if r["amount"]["value"] is not None]
    assert sum(values) == pytest.approx(sum(r.cost or 0 for r in mine) / 10**9)
    assert sum(r["unpriced_requests"] for r in results) == whole["unpriced_requests"]
    for name, value in {
        "num_model_requests": len(mine),
        "input_tokens": sum(r.prompt for r in mine),
        "cache_hits": sum(r.cache == "hit" for r in mine),
        "cache_joins": sum(r.cache == "join" for r in mine),
        "cost_nano": sum(r.cost or 0 for r in mine),
        "saved_nano": sum(r.saved or 0 for r in mine),
    }.items():
        assert sum(int(row[name] or 0) for row in summary["data"]) == value
        assert sum(int(row[name] or 0) for row in by_day["data"]) == value
    assert {row["day"] for row in by_day["data"]} == {r.second - r.second % DAY for r in mine}


def told(nano: int | None) -> str | None:
    return None if nano is None else str(nano)
