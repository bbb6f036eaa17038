"""Usage and costs over HTTP: the shapes, who sees what, and that nothing is counted twice or left out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert

from schemas.buckets import WIDTHS
from schemas.tables import usage
from stores.sql import writing
from tests.support.api import Api, asking, error_of, named
from tests.support.properties import examples
from tests.support.stack import PRICES, Stack

COMPLETIONS = "/v1/organization/usage/completions"
ORGANIZATION_COSTS = "/v1/organization/costs"
COSTS = "/api/v1/llm/usage/costs"
SUMMARY = "/v1/usage/summary"
#: A midnight, long before any completion of a test.
T0 = 1_500_076_800
DAY = 86400


class Record(msgspec.Struct, frozen=True):
    """What a report sees of a usage record."""

    second: int
    milli: int = 0
    mine: bool = True
    model: str = "m"
    end_user: str | None = None
    batch_id: str | None = None
    prompt: int = 1
    completion: int = 1
    cached: int = 0
    cost: int | None = 0
    cache: str = "bypass"
    saved: int | None = 0

    def group(self, api: Api, other: str) -> dict[str, Any]:
        return {
            "model": self.model,
            "line_item": self.model,
            "user_id": None,
            "team_id": None,
            "project_id": None,
            "api_key_id": api.key_id if self.mine else "key_other",
            "external_user_id": self.end_user,
            "org_id": api.tenant if self.mine else other,
            "batch": self.batch_id is not None,
        }


@contextmanager
def recorded(stack: Stack, api: Api, records: Sequence[Record]) -> Iterator[str]:
    """The records are in the books, those that are not ``mine`` of another tenant, whose name it is."""
    other = f"{api.tenant}-other"
    rows = [
        {
            "completion_id": f"{api.tenant}-{number}",
            "tenant": api.tenant if r.mine else other,
            "key_id": api.key_id if r.mine else "key_other",
            "end_user": r.end_user,
            "model": r.model,
            "provider": "p",
            "resolved_model": r.model,
            "prompt_tokens": r.prompt,
            "completion_tokens": r.completion,
            "reasoning_tokens": 0,
            "cached_tokens": r.cached,
            "estimated": False,
            "cost_nano": r.cost,
            "saved_nano": r.saved,
            "cache": r.cache,
            "batch_id": r.batch_id,
            "status": "completed",
            "attempts": 1,
            "duration_ms": 1,
            "created_ms": r.second * 1000 + r.milli,
        }
        for number, r in enumerate(records)
    ]
    try:
        with writing(stack.engine) as connection:
            if rows:
                connection.execute(insert(usage), rows)
        yield other
    finally:
        with writing(stack.engine) as connection:
            connection.execute(delete(usage).where(usage.c.completion_id.startswith(f"{api.tenant}-")))


def get(api: Api, url: str, **params: Any) -> dict[str, Any]:
    answer = api.get(url, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def pages(api: Api, url: str, **params: Any) -> Iterator[dict[str, Any]]:
    page = get(api, url, **params)
    while True:
        assert page["object"] == "page"
        assert page["has_more"] == (page["next_page"] is not None)
        yield page
        if not page["has_more"]:
            return
        page = get(api, url, **params, page=page["next_page"])


def refused(api: Api, url: str, status: int = 400, **params: Any) -> str | None:
    answer = api.get(url, params=params)
    assert answer.status_code == status, answer.text
    return error_of(answer)["param"]


# ------------------------------------------------------------------------------------------------ the sums

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


# ---------------------------------------------------------------------------------------------- the shapes


def now_and_then(stack: Stack, api: Api, model: str, **more: Any) -> tuple[int, int]:
    """A completion of that model in the books, and times around it."""
    start = int(time.time()) - 5
    stack.settled(api.seed(model=model, headers=named("ann"), **more).id)
    return start, int(time.time()) + 60


USED = {
    "prompt_tokens": 30,
    "completion_tokens": 20,
    "total_tokens": 50,
    "prompt_tokens_details": {"cached_tokens": 10},
}


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1/llm"])
@pytest.mark.parametrize("path", ["/usage/completions", "/organization/usage/completions"])
def test_the_shape_of_usage(each_stack: Stack, each_api: Api, prefix: str, path: str) -> None:
    """OpenAI's, with nothing beside it; what is not grouped by is null."""
    start, end = now_and_then(each_stack, each_api, "priced:fake", fake={"usage": USED})
    page = get(
        each_api, prefix + path, start_time=start, end_time=end, group_by=["model", "external_user_id"]
    )
    assert set(page) == {"object", "data", "has_more", "next_page"}
    results = [result for bucket in page["data"] for result in bucket["results"]]
    assert all(set(bucket) == {"object", "start_time", "end_time", "results"} for bucket in page["data"])
    assert results == [
        {
            "object": "organization.usage.completions.result",
            "input_tokens": 30,
            "output_tokens": 20,
            "input_cached_tokens": 10,
            "num_model_requests": 1,
            "model": "priced:fake",
            "user_id": None,
            "api_key_id": None,
            "external_user_id": "ann",
            "org_id": None,
            "batch": None,
            "project_id": None,
        }
    ]


def test_the_shape_of_costs(each_stack: Stack, each_api: Api) -> None:
    """Cached input at its own price; nano units are strings."""
    start, end = now_and_then(each_stack, each_api, "priced:fake", fake={"usage": USED})
    price = PRICES["fake"]
    dollars = (20 * price["input"] + 10 * price["cached_input"] + 20 * price["output"]) / 1e6
    found = get(each_api, COSTS, start_time=start, end_time=end, group_by=["model", "api_key_id"])
    assert found == {
        "object": "usage.costs",
        "currency": "usd",
        "start_time": start,
        "end_time": end,
        "group_by": ["model", "api_key_id"],
        "data": [
            {
                "model": "priced:fake",
                "api_key_id": each_api.key_id,
                "team_id": None,
                "external_user_id": None,
                "org_id": None,
                "cost": pytest.approx(dollars),
                "cost_nano": str(round(dollars * 1e9)),
                "unpriced_requests": 0,
            }
        ],
        "total_cost": pytest.approx(dollars),
        "total_cost_nano": str(round(dollars * 1e9)),
        "unpriced_requests": 0,
    }
    page = get(each_api, ORGANIZATION_COSTS, start_time=start, end_time=end, group_by="line_item")
    (result,) = [result for bucket in page["data"] for result in bucket["results"]]
    assert result["object"] == "organization.costs.result"
    assert result["amount"] == {"value": pytest.approx(dollars), "currency": "usd"}
    assert (result["line_item"], result["project_id"]) == ("priced:fake", None)


def test_a_cost_that_nobody_knows_is_null(stack: Stack, api: Api) -> None:
    """And a request that was never answered cost nothing."""
    start, end = now_and_then(stack, api, "fake")
    now_and_then(stack, api, "fake", fake={"status": 400})
    found = get(api, COSTS, start_time=start, end_time=end, group_by="api_key_id")
    assert (found["data"][0]["unpriced_requests"], found["total_cost_nano"]) == (1, "0")
    page = get(api, SUMMARY, start_time=start, end_time=end)
    assert page["data"][0]["num_model_requests"] == 2
    with recorded(stack, api, [Record(T0, cost=None)]):
        found = get(api, COSTS, start_time=T0, end_time=T0 + 1)
    (row,) = found["data"]
    assert (row["cost"], row["cost_nano"], found["total_cost"], found["total_cost_nano"]) == (None,) * 4


def test_empty_buckets_are_there(stack: Stack, api: Api) -> None:
    """With nothing in them; as many as OpenAI has where no limit is sent, and no more than it allows."""
    for width, (default, most) in {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}.items():
        times = {"start_time": T0, "end_time": T0 + 200 * 86400, "bucket_width": width}
        page = get(api, COMPLETIONS, **times)
        assert [bucket["results"] for bucket in page["data"]] == [[]] * default
        assert page["has_more"]
        assert len(get(api, COMPLETIONS, **times, limit=most)["data"]) == most
        assert refused(api, COMPLETIONS, **times, limit=most + 1) == "limit"
    page = get(api, ORGANIZATION_COSTS, start_time=T0, end_time=T0 + 200 * DAY, limit=180)
    assert (len(page["data"]), page["has_more"]) == (180, True)


def test_without_an_end_it_goes_up_to_now(stack: Stack, api: Api) -> None:
    """To the end of the bucket that is now."""
    start, _ = now_and_then(stack, api, "fake")
    for width, seconds in (("1m", 60), ("1d", DAY)):
        page = get(api, COMPLETIONS, start_time=start, bucket_width=width)
        assert page["data"][-1]["end_time"] % seconds == 0
        assert page["data"][-1]["end_time"] > time.time() - 30
        assert sum(r["num_model_requests"] for b in page["data"] for r in b["results"]) == 1
    assert get(api, COSTS, start_time=start)["unpriced_requests"] == 1
    assert get(api, COMPLETIONS, start_time=start + 10 * DAY)["data"] == []


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"start_time": None}, "start_time"),
        ({"start_time": "yesterday"}, "start_time"),
        ({"start_time": -1}, "start_time"),
        ({"start_time": [T0, T0]}, "start_time"),
        ({"end_time": T0}, "end_time"),
        ({"end_time": 1.5}, "end_time"),
        ({"bucket_width": "1w"}, "bucket_width"),
        ({"limit": 0}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"page": "page_"}, "page"),
        ({"page": "next"}, "page"),
        ({"page": "page_MTIzNA"}, "page"),
        ({"page": "page_ü"}, "page"),
        ({"group_by": "colour"}, "group_by"),
        ({"group_by[]": ["model", "colour"]}, "group_by"),
        ({"batch": "maybe"}, "batch"),
        ({"all_orgs": "1"}, "all_orgs"),
        ({"colour": "red"}, "colour"),
        ({"limit[]": 5}, "limit[]"),
    ],
    ids=str,
)
def test_what_can_not_be_is_400_and_named(api: Api, params: Mapping[str, Any], param: str) -> None:
    given: dict[str, Any] = {"start_time": T0, "end_time": T0 + DAY, **params}
    assert refused(api, COMPLETIONS, **{k: v for k, v in given.items() if v is not None}) == param


def test_times_and_texts_beyond_all_sense(each_api: Api) -> None:
    """Are empty, not errors of the database."""
    page = get(each_api, COMPLETIONS, start_time=0, end_time=10**30, limit=1)
    assert page["has_more"]
    assert refused(each_api, COMPLETIONS, start_time=10**30, end_time=10**31) == "end_time"
    for value in ("\x00", "x" * 5000, "'; DROP TABLE usage", "%", ""):
        page = get(
            each_api,
            COMPLETIONS,
            start_time=T0,
            end_time=T0 + 1,
            models=value,
            external_user_ids=value,
            api_key_ids=value,
        )
        assert page["data"][0]["results"] == []


# ------------------------------------------------------------------------------------------------ who sees what


def test_a_key_sees_its_tenant_and_an_admin_key_everybody(each_stack: Stack, each_api: Api) -> None:
    """Another tenant's, or everybody's, is 403 for a key that is no admin's."""
    times = {"start_time": T0, "end_time": T0 + 1, "group_by": "org_id"}

    def orgs(api: Api, **params: Any) -> dict[str, int]:
        page = get(api, COMPLETIONS, **times, **params)
        return {r["org_id"]: r["num_model_requests"] for b in page["data"] for r in b["results"]}

    api = each_api
    with (
        recorded(each_stack, api, [Record(T0), Record(T0), Record(T0, mine=False)]) as other,
        each_stack.api(admin=True) as admin,
    ):
        mine, both = {api.tenant: 2}, {api.tenant: 2, other: 1}
        assert orgs(api) == orgs(api, all_orgs="false") == orgs(api, org_ids=[api.tenant]) == mine
        assert orgs(admin).items() >= both.items()
        assert orgs(admin, all_orgs="true").items() >= both.items()
        assert orgs(admin, all_orgs="false") == {}
        assert orgs(admin, **{"org_ids[]": [other, "nobody"]}) == {other: 1}
        for url in (COMPLETIONS, ORGANIZATION_COSTS, COSTS, SUMMARY):
            shown = {name: value for name, value in times.items() if name != "group_by"}
            assert refused(api, url, 403, **shown, all_orgs="true") == "all_orgs"
            assert refused(api, url, 403, **shown, org_ids=[api.tenant, other]) == "org_ids"


def test_filters_are_lists_in_both_spellings(each_stack: Stack, each_api: Api) -> None:
    """Of one filter any value counts, of several each must."""
    records = [Record(T0, model=m, end_user=u) for m in ("a", "b", "c") for u in ("ann", "bob", None)]

    def count(**params: Any) -> int:
        page = get(each_api, COMPLETIONS, start_time=T0, end_time=T0 + 1, **params)
        return sum(r["num_model_requests"] for b in page["data"] for r in b["results"])

    with recorded(each_stack, each_api, records):
        assert count() == 9
        assert count(models=["a", "b"]) == count(**{"models[]": ["a", "b"]}) == 6
        assert count(models=["a", "b"], external_user_ids="ann") == 2
        assert count(api_key_ids=each_api.key_id) == 9
        assert count(api_key_ids="key_nobody") == 0
        assert count(user_ids="ann") == 0, "keys have no owner"
        query = f"{COMPLETIONS}?start_time={T0}&end_time={T0 + 1}&models=a&models[]=c"
        (bucket,) = each_api.get(query).json()["data"]
        assert bucket["results"][0]["num_model_requests"] == 6


def test_on_behalf_of_a_user_it_is_that_users_alone(stack: Stack, api: Api) -> None:
    records = [Record(T0, end_user="ann"), Record(T0, end_user="bob"), Record(T0)]
    with recorded(stack, api, records):
        for users, requests in ((None, 1), ("ann", 1), ("bob", None)):
            params = {"start_time": T0, "end_time": T0 + 1}
            params |= {} if users is None else {"external_user_ids": users}
            answer = api.get(COMPLETIONS, params=params, headers={"X-On-Behalf-Of": "ann"}).json()
            results = answer["data"][0]["results"]
            assert [r["num_model_requests"] for r in results] == ([] if requests is None else [requests])


def test_without_a_key_nothing_is_told(stack: Stack, api: Api) -> None:
    """Also not what is wrong with the parameters."""
    for url in (COMPLETIONS, ORGANIZATION_COSTS, COSTS, SUMMARY):
        answer = api.get(url, headers={"Authorization": "Bearer nonsense"})
        assert answer.status_code == 401
        assert api.post(url, json=asking()).status_code == 405


def test_the_longest_names_can_be_recorded(each_stack: Stack, each_api: Api) -> None:
    """They are in an index, whose entries PostgreSQL limits; they compress badly."""
    api = each_api
    letters = [chr(0x20000 + (n * 7919) % 40000) for n in range(512)]
    model, user = "fake:" + "".join(letters[:251]), "".join(letters[256:])
    start = int(time.time()) - 5
    each_stack.settled(api.seed(model=model.replace("fake:", "silent:")[:256], headers=named(user)).id)
    page = get(api, COMPLETIONS, start_time=start, external_user_ids=user, group_by="model")
    assert [r["num_model_requests"] for b in page["data"] for r in b["results"]] == [1]
