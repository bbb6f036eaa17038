"""POST …/{id}/cancel: a queued one never starts; of a running one, what was said is kept."""

from __future__ import annotations

import pytest

from tests.support.api import CHAT, Api, asking, named, ordered
from tests.support.stack import Stack
from tests.support.valkey import wait_until


def cancel(api: Api, completion_id: str) -> dict[str, object]:
    answer = api.post(f"{CHAT}/{completion_id}/cancel")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_queued_one_never_starts(each_stack: Stack, each_api: Api) -> None:
    """The provider is not called, whenever its message comes; the books say cancelled."""
    api, stack = each_api, each_stack
    with stack.paused("interactive0"):
        completion_id = api.background(api.tenant)
        body = cancel(api, completion_id)
        assert (body["status"], body["choices"]) == ("cancelled", [])
        after = api.background("next in line")
    stack.settled(after, completion_id)
    assert not api.provider_requests(api.tenant)
    (row,) = stack.settled(completion_id)
    assert row.status == "cancelled"
    assert row.usage is not None
    assert (row.usage.attempts, row.usage.tokens.completion_tokens) == (0, 0)
    stack.forget(completion_id)
    assert api.stored(completion_id)["status"] == "cancelled"


def test_a_running_one_stops_at_the_provider(each_stack: Stack, each_api: Api) -> None:
    """The provider's connection closes; the text so far, and its usage, are kept."""
    api, stack = each_api, each_stack
    with api.events(asking(api.tenant, fake={"chunks": 1000, "interval_ms": 20})) as stream:
        stream.next(5)
        body = cancel(api, stream.id)
        assert body["status"] == "cancelled"
        frames = stream.rest()
    assert frames[-1].event == "error"
    assert frames[-1].data.startswith("cancelled: ")
    (received,) = api.provider_requests(api.tenant)
    api.backend.wait_until(lambda: received.ended is not None)
    assert received.ended == "closed"
    (row,) = stack.settled(stream.id)
    assert row.status == "cancelled"
    assert row.usage is not None
    assert row.usage.tokens.estimated
    assert row.usage.tokens.completion_tokens > 0
    for _ in ("Redis", "the books"):
        stored = api.stored(stream.id)
        assert stored["status"] == "cancelled"
        text = stored["choices"][0]["message"]["content"]
        assert text.startswith(ordered(4))
        assert ordered(1000).startswith(text)
        assert api.follow(stream.id).text == text
        stack.forget(stream.id)


@pytest.mark.parametrize(
    "order", [{"headers_delay_ms": 20_000}, {"first_delay_ms": 20_000}, {"stall_after": 2}]
)
def test_one_that_waits_for_its_provider_stops_too(api: Api, stack: Stack, order: dict[str, float]) -> None:
    """Before the headers, before the first chunk, and between chunks: no chunk is needed to notice."""
    completion_id = api.background(api.tenant, fake=order)
    api.backend.wait_until(lambda: bool(api.provider_requests(api.tenant)))
    assert cancel(api, completion_id)["status"] == "cancelled"
    (received,) = api.provider_requests(api.tenant)
    api.backend.wait_until(lambda: received.ended == "closed")
    assert stack.settled(completion_id)[0].status == "cancelled"


def test_a_plain_answer_that_is_cancelled_is_a_conflict(api: Api) -> None:
    """Whoever waits for the whole is told by status."""
    import threading

    answers = []
    waiter = threading.Thread(
        target=lambda: answers.append(api.plain(api.tenant, fake={"chunks": 1000, "interval_ms": 20}))
    )
    waiter.start()
    api.backend.wait_until(lambda: bool(api.provider_requests(api.tenant)))
    with Api(str(api.base_url), api.api_key, tenant=api.tenant, backend=api.backend) as other:
        wait_until(lambda: bool(other.get(CHAT).json()["data"]), what="completion in the list")
        (item,) = other.get(CHAT).json()["data"]
        cancel(other, item["id"])
    waiter.join(20)
    (answer,) = answers
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "cancelled"
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_finished_one_stays_as_it_is(api: Api, stack: Stack, forgotten: bool) -> None:
    """Cancelling late changes nothing; cancelling twice neither."""
    completion_id = api.seed().id
    if forgotten:
        stack.forget(completion_id)
    body = cancel(api, completion_id)
    assert body["status"] == "completed"
    assert api.stored(completion_id)["status"] == "completed"
    with api.events(asking(fake={"chunks": 500, "interval_ms": 20})) as stream:
        stream.next(1)
        first = cancel(api, stream.id)
        again = cancel(api, stream.id)
        assert again["status"] == first["status"] == "cancelled"
        assert again["choices"] == first["choices"]


def test_only_its_owner_can_cancel(api: Api, stack: Stack) -> None:
    """Another tenant and another end user don't find it."""
    with api.events(asking(fake={"chunks": 60, "interval_ms": 20}), headers=named("ann")) as stream:
        stream.next(1)
        with stack.api() as other:
            assert other.post(f"{CHAT}/{stream.id}/cancel").status_code == 404
        answer = api.post(f"{CHAT}/{stream.id}/cancel", headers={"X-On-Behalf-Of": "bob"})
        assert answer.status_code == 404
        assert api.stored(stream.id)["status"] == "in_progress"
        answer = api.post(f"{CHAT}/{stream.id}/cancel", headers={"X-On-Behalf-Of": "ann"})
        assert answer.json()["status"] == "cancelled"


def test_many_cancels_at_once_leave_nobody_running(api: Api, stack: Stack) -> None:
    """Some queued, some running, some at their end: each ends once."""
    ids = [api.background(fake={"chunks": 30, "interval_ms": 10}) for _ in range(30)]
    for completion_id in reversed(ids):
        cancel(api, completion_id)
    rows = stack.settled(*ids)
    assert {row.status.value for row in rows} <= {"cancelled", "completed"}
    assert rows[-1].status == "cancelled"
