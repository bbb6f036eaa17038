"""Batches of two tenants behind one limit of a provider."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.api import asking
from tests.support.batches import Watched, put_batch
from tests.support.calls import most_at_once
from tests.support.stack import Stack

pytestmark = pytest.mark.once

#: Calls at once that the provider takes.
LIMIT = 5


@pytest.fixture(params=["sqlite", "postgresql"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    providers = {"narrow": {"max_concurrency": LIMIT, "bulk_share": 1.0}}
    with Stack(database_url=url, interactive=0, providers=providers) as stack:
        yield stack


def put(stack: Stack, name: str, rows: int) -> Watched:
    fake = {"chunks": 2, "interval_ms": 5}
    bodies = [asking(f"{name} {n}", model="narrow:fake", fake=fake) for n in range(rows)]
    return Watched(
        stack, put_batch(stack.engine, bodies, tenant=stack.tenant(), provider="narrow", slice_rows=50)
    )


def test_tenants_share_a_providers_limit(stack: Stack) -> None:
    """Rows of the one who came later, with less, go out by turns with those of the other, and the limit holds."""
    large = put(stack, "large", 600)
    stack.backend.wait_for(30)
    small = put(stack, "small", 200)
    assert small.over().completed == 200
    calls = stack.backend.completions
    asked = [call.prompt.split()[0] for call in calls]
    first = asked.index("small")
    last = len(asked) - 1 - asked[::-1].index("small")
    others = asked[first : last + 1].count("large")
    assert 100 <= others <= 300, others
    assert large.over().completed == 600
    assert most_at_once(stack.backend.completions) <= LIMIT
