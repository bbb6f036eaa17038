"""The monthly budget of a key holds for its batches; its other limits are for requests."""

from __future__ import annotations

from collections import Counter

from tests.support.api import Api, asking
from tests.support.batches import Watched, put_batch
from tests.support.calls import most_at_once
from tests.support.stack import Stack
from tests.support.valkey import wait_until

#: What a row of ten chunks costs, and is estimated to with ``max_tokens`` 10: that of its prompt is a little more.
COST, MARGIN = 25_000, 12_000


def rows(name: str, count: int, **more: object) -> list[dict[str, object]]:
    return [
        asking(f"{name} {n}", model="priced:fake", fake={"chunks": 10, "interval_ms": 5}, **more)
        for n in range(count)
    ]


def sent(stack: Stack, prefix: str) -> Counter[str]:
    asked = [call.prompt for call in stack.backend.completions]
    return Counter(content for content in asked if content.startswith(prefix))


def test_a_batch_stops_when_its_keys_budget_is_spent(each_stack: Stack) -> None:
    """And says why; the key's requests are refused by then, and with a greater budget the others are answered."""
    stack = each_stack
    stack.backend.reset()
    tenant = stack.tenant()
    limits = {"budget_nano": 10 * COST + MARGIN, "rpm": 1, "tpm": 10, "concurrent": 1, "queued": 1}
    row, plaintext = stack.keys.create("spender", tenant, limits=limits)
    with Api(stack.url, plaintext, tenant=tenant, backend=stack.backend) as api:
        bodies = rows("spends", 40, max_tokens=10)
        id = put_batch(stack.engine, bodies, tenant=tenant, key_id=row.id, provider="priced", slice_rows=8)
        batch = Watched(stack, id)
        over = batch.over()
        assert (over.status, over.completed, over.failed) == ("failed", 10, 30)
        assert over.cost_nano == 10 * COST
        assert sent(stack, "spends ").total() == 10
        (error,) = api.get(f"/v1/batches/{id}").json()["errors"]["data"]
        assert error["code"] == "insufficient_quota"
        assert "budget for this month" in error["message"]
        assert {line["error"]["code"] for line in batch.lines("error")} == {"batch_stopped"}
        assert len(batch.lines("output")) == 10

        stack.keys.set_limits(row.id, dict.fromkeys(limits) | {"budget_nano": 100 * COST})
        made = api.post(f"/v1/batches/{id}/retry", json={}).json()
        again = Watched(stack, made["id"])
        over = again.over()
        assert (over.status, over.completed, over.failed) == ("completed", 30, 0), over
        assert len(sent(stack, "spends ")) == 40
        stack.keys.set_limits(row.id, {"budget_nano": 40 * COST})

        def refused() -> bool:  # once the gateway has heard of it
            answer = api.plain("one more", model="priced:fake", max_tokens=10)
            return answer.status_code == 429 and answer.json()["error"]["code"] == "insufficient_quota"

        wait_until(refused, what="refusal of a request: the batches' rows have spent the budget")


def test_rows_wait_while_what_is_under_way_may_leave_room(stack: Stack) -> None:
    """Without ``max_tokens`` a row's estimate is far above its cost: one after the other they are all answered."""
    stack.backend.reset()
    tenant = stack.tenant()
    row, _ = stack.keys.create("careful", tenant, limits={"budget_nano": 60 * COST})
    bodies = rows("waits", 6)
    batch = Watched(stack, put_batch(stack.engine, bodies, tenant=tenant, key_id=row.id, provider="priced"))
    over = batch.over()
    assert (over.status, over.completed, over.failed) == ("completed", 6, 0)
    calls = [call for call in stack.backend.completions if sent(stack, "waits ")]
    assert len(calls) == 6
    assert most_at_once(calls) == 1
