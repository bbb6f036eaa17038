"""Usage records of a test's own, and the reports on them over HTTP."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from sqlalchemy import delete, insert

from schemas.tables import usage
from stores.sql import writing
from tests.support.api import Api, error_of
from tests.support.stack import Stack

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
def recorded(stack: Stack, api: Api, records: Sequence[Record]) -> Generator[str]:
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
