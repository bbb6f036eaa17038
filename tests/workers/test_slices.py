"""Batches over worker processes: their rows dealt in slices, sent once each, and waited for."""

from __future__ import annotations

import json
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


def test_files_have_each_row_once_in_the_order_of_the_input(each_stack: Stack) -> None:
    """What was answered as GET tells it; what the provider refused with its status; a file for lines there are."""
    stack = each_stack
    refusal = {"status": 400, "error": {"message": "bad row", "type": "invalid", "code": "no_good"}}
    bodies = [asking(f"in order {n}", fake=refusal if n % 5 == 3 else {"chunks": 4}) for n in range(230)]
    bodies[7] = asking("kept no longer", store=False, fake={"chunks": 3})
    with stack.api() as api:
        batch = Watched(stack, put_batch(stack.engine, bodies, tenant=api.tenant, slice_rows=40))
        row = batch.over()
        assert (row.status, row.total, row.completed, row.failed) == ("completed", 230, 184, 46)
        assert row.prompt_tokens == 1840
        output, errors = batch.lines("output"), batch.lines("error")
        assert [line["custom_id"] for line in output] == [f"row-{n}" for n in range(230) if n % 5 != 3]
        assert [line["custom_id"] for line in errors] == [f"row-{n}" for n in range(230) if n % 5 == 3]
        assert {line["response"]["status_code"] for line in errors} == {400}
        assert errors[0]["response"]["body"]["error"]["message"] == "bad row"
        assert errors[0]["error"] is None
        ids = batch.completion_ids
        assert output[1]["response"]["body"] == api.get(ids[1]).json()
        assert output[1]["response"]["body"]["choices"][0]["message"]["content"] == " tok0 tok1 tok2 tok3"
        kept_no_longer = next(line for line in output if line["custom_id"] == "row-7")
        assert kept_no_longer["response"]["body"]["choices"][0]["message"]["content"] == " tok0 tok1 tok2"
        assert api.get(ids[7]).status_code == 404
        assert {len(line["fingerprint"]) for line in output + errors} == {64}
        results = api.client.get(f"/v1/batches/{batch.id}/results")
        assert [json.loads(line)["custom_id"] for line in results.text.splitlines()] == [
            f"row-{n}" for n in range(230)
        ]
        failures = api.client.get(f"/v1/batches/{batch.id}/failures").json()
        assert failures["failed"] == 46
        (group,) = failures["data"]
        assert (group["code"], group["status"], group["count"]) == ("no_good", 400, 46)
        assert group["example"]["custom_id"] == "row-3"


def test_no_more_rows_at_once_than_the_batch_may_have(stack: Stack) -> None:
    stack.backend.reset()
    bodies = [asking(f"few {n}", fake={"chunks": 4, "interval_ms": 10}) for n in range(120)]
    batch = put_batch(stack.engine, bodies, tenant=stack.tenant(), max_concurrency=7, slice_rows=30)
    Watched(stack, batch).dealt_out()
    assert 2 <= most_at_once(stack.backend.completions) <= 7
    assert len(stack.backend.completions) == 120
