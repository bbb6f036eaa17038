"""Batches over worker processes: their rows dealt in slices, sent once each, and waited for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from stores.slices import Slice
from tests.support.api import asking
from tests.support.batches import Watched, put_batch
from tests.support.calls import most_at_once
from tests.support.stack import Stack
from tests.support.valkey import wait_until
from workers.bulk.run import SliceRun


def sent(stack: Stack, prefix: str) -> Counter[str]:
    """What a test's own rows asked the provider, how often."""
    asked = [call.prompt for call in stack.backend.completions]
    return Counter(content for content in asked if content.startswith(prefix))


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
    assert sent(stack, "all ") == {f"all {n}": 1 for n in range(250)}


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
        assert output[1]["response"]["body"] == api.stored(ids[1])
        assert output[1]["response"]["body"]["choices"][0]["message"]["content"] == " tok0 tok1 tok2 tok3"
        kept_no_longer = next(line for line in output if line["custom_id"] == "row-7")
        assert kept_no_longer["response"]["body"]["choices"][0]["message"]["content"] == " tok0 tok1 tok2"
        stack.forget(ids[7])
        assert api.get(f"/v1/chat/completions/{ids[7]}").status_code == 404
        assert {len(line["fingerprint"]) for line in output + errors} == {64}
        results = api.get(f"/v1/batches/{batch.id}/results")
        assert [json.loads(line)["custom_id"] for line in results.text.splitlines()] == [
            f"row-{n}" for n in range(230)
        ]
        failures = api.get(f"/v1/batches/{batch.id}/failures").json()
        assert failures["failed"] == 46
        (group,) = failures["data"]
        assert (group["code"], group["status"], group["count"]) == ("no_good", 400, 46)
        assert group["example"]["custom_id"] == "row-3"


async def test_a_slice_whose_rows_are_not_read_yet_needs_all_of_its_part() -> None:
    """Else what it says of itself meanwhile would be dealt to others."""

    async def nobody(_: SliceRun) -> None: ...

    tools: Any = None
    slice = Slice("batch_1", 0, 30, "mine", 7, "acme", "key_1", False)
    assert SliceRun(tools, slice, again=False, on_idle=nobody).concurrency == 7


def test_no_more_rows_at_once_than_the_batch_may_have(stack: Stack) -> None:
    stack.backend.reset()
    bodies = [asking(f"few {n}", fake={"chunks": 4, "interval_ms": 10}) for n in range(120)]
    batch = put_batch(stack.engine, bodies, tenant=stack.tenant(), max_concurrency=7, slice_rows=30)
    Watched(stack, batch).dealt_out()
    calls = [c for c in stack.backend.completions if c.prompt.startswith("few ")]
    assert 2 <= most_at_once(calls) <= 7
    assert sent(stack, "few ").total() == 120


def test_what_is_cached_is_answered_and_equal_rows_share_one_call(each_stack: Stack) -> None:
    stack = each_stack
    stack.backend.reset()
    with stack.api() as api:
        bodies = [asking(f"shared {n % 40}", temperature=0, fake={"chunks": 3}) for n in range(120)]
        batch = Watched(stack, put_batch(stack.engine, bodies, tenant=api.tenant))
        assert batch.over().completed == 120
        assert sent(stack, "shared ").total() == 40
        outcomes = batch.outcomes()
        assert outcomes["miss"] == 40
        assert outcomes.get("join", 0) + outcomes.get("hit", 0) == 80
        again = Watched(stack, put_batch(stack.engine, bodies, tenant=api.tenant, slice_rows=3))
        row = again.over()
        assert (row.completed, row.failed, row.prompt_tokens) == (120, 0, 1200)
        assert again.outcomes() == {"hit": 120}
        assert sent(stack, "shared ").total() == 40
        first, second = (
            [line["response"]["body"]["choices"] for line in which.lines("output")]
            for which in (batch, again)
        )
        assert first == second
        only = Watched(
            stack,
            put_batch(
                stack.engine,
                [asking("never asked")],
                tenant=api.tenant,
                cache_control="only-if-cached",
            ),
        )
        assert only.over().failed == 1
        assert only.lines("error")[0]["response"]["status_code"] == 504


def test_an_interactive_request_joins_the_generation_of_a_row(stack: Stack) -> None:
    stack.backend.reset()
    with stack.api() as api:
        body = asking("joined by somebody", temperature=0, fake={"chunks": 40, "interval_ms": 50})
        batch = Watched(stack, put_batch(stack.engine, [body], tenant=api.tenant))
        stack.backend.wait_for(1)
        answer = api.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-cache"] == "join"
        assert batch.over().completed == 1
        assert sent(stack, "joined ").total() == 1


def test_a_cancelled_batch_ends_what_is_under_way_and_sends_nothing_more(each_stack: Stack) -> None:
    stack = each_stack
    stack.backend.reset()
    with stack.api() as api:
        bodies = [
            asking(f"cancelled {n}", fake={"chunks": 2} if n < 5 else {"chunks": 4000, "interval_ms": 50})
            for n in range(250)
        ]
        batch = Watched(stack, put_batch(stack.engine, bodies, tenant=api.tenant, max_concurrency=20))
        stack.backend.wait_for(20)
        wait_until(lambda: batch.completions().get("completed", 0) == 5, what="answers of five rows")
        assert api.post(f"/v1/batches/{batch.id}/cancel").json()["status"] == "cancelling"
        row = batch.over()
        assert (row.status, row.completed, row.failed) == ("cancelled", 5, 245)
        calls = sent(stack, "cancelled ")
        assert max(calls.values()) == 1
        assert len(calls) <= 60
        errors = batch.lines("error")
        assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
        assert [line["response"] for line in errors] == [None] * 245
        assert len(batch.lines("output")) == 5
        assert sum(batch.completions().values()) >= len(calls)
        (group,) = api.get(f"/v1/batches/{batch.id}/failures").json()["data"]
        assert (group["code"], group["count"]) == ("batch_cancelled", 245)


def test_an_expired_batch_keeps_what_was_answered(stack: Stack) -> None:
    stack.backend.reset()
    bodies = [
        asking(f"expires {n}", fake={"chunks": 2} if n < 5 else {"chunks": 4000, "interval_ms": 50})
        for n in range(150)
    ]
    batch = put_batch(stack.engine, bodies, tenant=stack.tenant(), max_concurrency=10, window_ms=6000)
    watched = Watched(stack, batch)
    row = watched.over()
    assert (row.status, row.completed, row.failed) == ("expired", 5, 145)
    assert {line["error"]["code"] for line in watched.lines("error")} == {"batch_expired"}


def test_a_batch_of_which_too_many_rows_fail_is_stopped(stack: Stack) -> None:
    stack.backend.reset()
    refusal = {"status": 400, "error": {"message": "no", "type": "invalid", "code": "no_good"}}
    bodies = [asking(f"errors {n}", fake={"headers_delay_ms": 20, **refusal}) for n in range(3000)]
    batch = put_batch(stack.engine, bodies, tenant=stack.tenant(), max_concurrency=4, slice_rows=50)
    watched = Watched(stack, batch)
    row = watched.over()
    assert (row.status, row.completed, row.failed) == ("failed", 0, 3000)
    assert row.errors[0]["code"] == "too_many_errors"
    calls = sent(stack, "errors ").total()
    assert 100 <= calls < 3000
    codes = Counter(
        (line["error"] or line["response"]["body"]["error"])["code"] for line in watched.lines("error")
    )
    assert 0 <= calls - codes["no_good"] <= 4, "rows that were under way"
    assert codes["no_good"] + codes["batch_stopped"] == 3000


def test_a_row_past_its_own_timeout_is_told_apart(stack: Stack) -> None:
    bodies = [asking("in time"), asking("too late", timeout=1, fake={"chunks": 4000, "interval_ms": 50})]
    batch = Watched(stack, put_batch(stack.engine, bodies, tenant=stack.tenant()))
    row = batch.over()
    assert (row.status, row.completed, row.failed) == ("completed", 1, 1)
    (line,) = batch.lines("error")
    assert (line["custom_id"], line["error"]["code"]) == ("row-1", "request_timeout")


def test_tenants_that_share_a_provider_have_equal_shares_of_it(stack: Stack) -> None:
    """Whatever the size of their batches: who comes later, with less, waits for nobody's last row."""
    stack.backend.reset()
    fake = {"chunks": 2, "interval_ms": 15}
    large = put_batch(
        stack.engine, [asking(f"large {n}", fake=fake) for n in range(1500)], tenant=stack.tenant(),
        max_concurrency=12, slice_rows=20,
    )  # fmt: skip
    stack.backend.wait_for(100)
    small = put_batch(
        stack.engine, [asking(f"small {n}", fake=fake) for n in range(200)], tenant=stack.tenant(),
        max_concurrency=12, slice_rows=20,
    )  # fmt: skip
    Watched(stack, small).dealt_out()
    asked = [call.prompt for call in stack.backend.completions]
    first = next(n for n, content in enumerate(asked) if content.startswith("small"))
    last = max(n for n, content in enumerate(asked) if content.startswith("small"))
    others = sum(content.startswith("large") for content in asked[first : last + 1])
    assert 60 <= others <= 600
    Watched(stack, large).over()
