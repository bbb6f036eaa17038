"""Batches over worker processes: their rows dealt in slices, sent once each, and waited for."""

from __future__ import annotations

from collections import Counter

from tests.support.api import asking
from tests.support.batches import Watched, put_batch
from tests.support.calls import most_at_once
from tests.support.stack import Stack


def test_every_row_is_sent_once_and_has_its_usage(each_stack: Stack) -> None:
    stack = each_stack
    stack.backend.reset()
    tenant = stack.tenant()
    bodies = [asking(f"all {n}", fake={"chunks": 3}) for n in range(250)]
    batch = Watched(stack, put_batch(stack.engine, bodies, tenant=tenant))
    batch.dealt_out()
    assert [s.state for s in batch.slices] == ["done"] * 3
    assert batch.completions() == {"completed": 250}
    assert sum(s.completed for s in batch.slices) == 250
    assert sum(s.prompt_tokens for s in batch.slices) == 2500
    asked = Counter(call.body["messages"][-1]["content"] for call in stack.backend.completions)
    assert asked == {f"all {n}": 1 for n in range(250)}


def test_no_more_rows_at_once_than_the_batch_may_have(stack: Stack) -> None:
    stack.backend.reset()
    bodies = [asking(f"few {n}", fake={"chunks": 4, "interval_ms": 10}) for n in range(120)]
    batch = put_batch(stack.engine, bodies, tenant=stack.tenant(), max_concurrency=7, slice_rows=30)
    Watched(stack, batch).dealt_out()
    assert 2 <= most_at_once(stack.backend.completions) <= 7
    assert len(stack.backend.completions) == 120
