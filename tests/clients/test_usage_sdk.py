"""The ``openai`` SDK's own views of usage and costs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import openai
import pytest
from openai.types.admin.organization.usage_completions_response import (
    DataResultOrganizationUsageCompletionsResult,
)
from openai.types.admin.organization.usage_costs_response import DataResultOrganizationCostsResult

from tests.support.api import Api
from tests.support.stack import Stack

COUNTS = {"prompt_tokens": 3000, "completion_tokens": 200, "prompt_tokens_details": {"cached_tokens": 1000}}


@pytest.fixture
def client(api: Api, stack: Stack) -> Iterator[openai.OpenAI]:
    """Strict: what doesn't have the shape of the SDK's types is an error."""
    with openai.OpenAI(
        api_key=api.api_key,
        admin_api_key=api.api_key,
        base_url=f"{stack.url}/v1",
        max_retries=0,
        timeout=30,
        _strict_response_validation=True,
    ) as client:
        yield client


def test_usage_and_costs_have_the_types_of_the_sdk(client: openai.OpenAI, api: Api, stack: Stack) -> None:
    """By model and key, filtered with the SDK's own way to write a list, page by page."""
    start = int(time.time()) - 5
    stack.settled(*(api.seed(model=m, fake={"usage": COUNTS}).id for m in ("priced:fake", "priced:fake-b")))
    usage = client.admin.organization.usage
    found = usage.completions(
        start_time=start, group_by=["model", "api_key_id", "batch"], models=["priced:fake", "no-such-model"]
    )
    (result,) = [result for bucket in found.data for result in bucket.results]
    assert isinstance(result, DataResultOrganizationUsageCompletionsResult)
    assert (result.input_tokens, result.output_tokens, result.input_cached_tokens) == (3000, 200, 1000)
    assert (result.model, result.api_key_id, result.batch) == ("priced:fake", api.key_id, False)
    assert (found.has_more, found.next_page) == (False, None)

    costs = usage.costs(start_time=start, group_by=["line_item"], bucket_width="1d")
    by_line: dict[str | None, float | None] = {}
    for bucket in costs.data:
        for line in bucket.results:
            assert isinstance(line, DataResultOrganizationCostsResult)
            assert line.amount
            assert line.amount.currency == "usd"
            by_line[line.line_item] = line.amount.value
    assert by_line == {
        "priced:fake": pytest.approx((2000 * 0.5 + 1000 * 0.05 + 200 * 2) / 1e6),
        "priced:fake-b": pytest.approx(3200 * 1 / 1e6),
    }

    buckets = 0
    page = usage.completions(start_time=start - 3600, end_time=start + 3600, bucket_width="1m", limit=50)
    while True:
        buckets += len(page.data)
        if page.next_page is None:
            break
        page = usage.completions(
            start_time=start - 3600, end_time=start + 3600, bucket_width="1m", limit=50, page=page.next_page
        )
    assert buckets in (120, 121)


def test_what_the_sdk_can_ask_and_nobody_can_answer_is_refused(client: openai.OpenAI) -> None:
    """Rather than left out of the filter in silence."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.admin.organization.usage.completions(start_time=1_700_000_000, project_ids=["proj_1"])
    assert caught.value.param == "project_ids[]"
