"""Usage and costs over HTTP: the shapes, and who sees what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.api import Api, asking, named
from tests.support.stack import PRICES, Stack
from tests.support.usage import (
    COMPLETIONS,
    COSTS,
    DAY,
    ORGANIZATION_COSTS,
    SUMMARY,
    T0,
    Record,
    get,
    recorded,
    refused,
)

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
        assert refused(api, COMPLETIONS, limit=most + 1, bucket_width=width, start_time=T0) == "limit"
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
            assert refused(api, url, 403, start_time=T0, all_orgs="true") == "all_orgs"
            assert refused(api, url, 403, start_time=T0, org_ids=[api.tenant, other]) == "org_ids"


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
