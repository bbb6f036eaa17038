"""A provider that fails is asked again, later, and what waits for that holds nobody up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from schemas.keys import Keys
from tests.support.api import Api, Whole, error_of, ordered
from tests.support.backend import Received
from tests.support.stack import AGAIN, Stack
from tests.support.valkey import wait_until

MODEL = "again:fake"
FINE = {"chunks": 6}
BUSY = {"message": "busy", "type": "server_error"}
FAILURES: dict[str, dict[str, Any]] = {
    "408": {"status": 408},
    "409": {"status": 409},
    "429": {"status": 429},
    "500": {"status": 500},
    "503": {"status": 503},
    "dropped": {"drop": True},
    "truncated": {"cut_at_byte": 0},
    "truncated in its first chunk, with a proper end": {"cut_at_byte": 40, "cut": "end"},
    "error event": {"raw": 'data: {"error": {"message": "busy", "type": "server_error", "code": 503}}\n\n'},
}


def asked(api: Api) -> list[Received]:
    return [r for r in api.backend.completions if r.body["messages"][0]["content"] == api.tenant]


def answered(api: Api, *orders: dict[str, Any], **more: Any) -> Whole:
    return api.seed(api.tenant, model=MODEL, fake=list(orders), **more)


class TestBeforeTheFirstChunk:
    @pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
    def test_a_failure_that_passes_is_not_seen(self, api: Api, failure: dict[str, Any]) -> None:
        whole = answered(api, failure, FINE)
        assert (whole.text, whole.last.event) == (ordered(6), "done")
        assert len(asked(api)) == 2

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
    def test_others_are_final(self, api: Api, status: int) -> None:
        answer = api.plain(api.tenant, model=MODEL, fake=[{"status": status}, FINE])
        assert answer.status_code in (status, 502)
        assert len(asked(api)) == 1

    def test_tries_have_a_cap(self, api: Api, stack: Stack) -> None:
        """And the last failure is the answer: a 429 stays one. Each try is in the books."""
        failure = {"status": 429, "error": {"message": "slow down", "type": "rate_limit_error"}}
        answer = api.plain(api.tenant, model=MODEL, fake=failure)
        assert answer.status_code == 429
        assert error_of(answer)["message"] == "slow down"
        assert len(asked(api)) == AGAIN["tries"]
        completion_id = answer.headers["x-completion-id"]
        stack.settled(completion_id)
        states = [state for _, state in stack.attempts(completion_id)]
        assert states == ["failed"] * len(asked(api))

    @pytest.mark.parametrize("as_date", [False, True])
    def test_retry_after(self, api: Api, as_date: bool) -> None:
        """In seconds or as a date: nobody asks before."""
        until = datetime.now(UTC) + timedelta(seconds=3)
        value = format_datetime(until, usegmt=True) if as_date else "2"
        whole = answered(api, {"status": 503, "headers": {"retry-after": value}}, FINE)
        assert whole.last.event == "done"
        first, second = asked(api)
        if as_date:
            assert second.at >= until.replace(microsecond=0).timestamp()
        else:
            assert second.at - first.at >= 2

    def test_not_beyond_the_time_for_all_tries(self, api: Api) -> None:
        order = {"status": 429, "headers": {"retry-after": "60"}}
        answer = api.plain(api.tenant, model=MODEL, fake=[order, FINE])
        assert answer.status_code == 429
        assert len(asked(api)) == 1

    def test_not_beyond_the_deadline(self, api: Api) -> None:
        order = {"status": 503, "headers": {"retry-after": "10"}}
        answer = api.plain(api.tenant, model=MODEL, timeout=5, fake=[order, FINE])
        assert answer.status_code == 502
        assert len(asked(api)) == 1


class TestAfterTheFirstChunk:
    def test_a_deterministic_answer_goes_on(self, api: Api) -> None:
        """Truncated, then stalled, then whole: the reader sees one stream."""
        truncated = {"chunks": 20, "cut_at_byte": 1500}
        broken = {"chunks": 20, "error_event_after": 15, "error": BUSY}
        whole = answered(api, truncated, broken, {"chunks": 20}, temperature=0)
        assert whole.last.event == "done"
        assert whole.text == ordered(20)
        assert list(whole.chunks) == list(range(len(whole.chunks)))
        assert len(asked(api)) == 3

    def test_a_sampled_one_starts_again(self, api: Api) -> None:
        whole = answered(api, {"chunks": 20, "cut_at_byte": 1500}, {"pieces": ["other"]}, temperature=1)
        assert whole.error.startswith("restarted: ")
        again = api.follow(whole.id)
        assert again.text == "other"


@pytest.fixture(scope="module")
def narrow() -> Iterator[Stack]:
    """A stack whose only interactive worker has a single slot."""
    with Stack(concurrency=1) as stack:
        yield stack


class TestParked:
    def test_what_waits_holds_no_slot(self, narrow: Stack) -> None:
        with narrow.api() as api:
            order = [{"status": 503, "headers": {"retry-after": "4"}}, FINE]
            parked = api.background(model=MODEL, fake=order)
            wait_until(lambda: narrow.state(parked)["state"] == "parked", what="parked")
            assert api.seed().text == ordered()
            assert narrow.state(parked)["state"] == "parked"
            assert api.get(f"/v1/chat/completions/{parked}").json()["status"] == "queued"
            assert api.follow(parked).text == ordered(6)

    def test_parked_work_can_be_cancelled(self, narrow: Stack) -> None:
        with narrow.api() as api:
            order = [{"status": 503, "headers": {"retry-after": "15"}}, FINE]
            parked = api.background(api.tenant, model=MODEL, fake=order)
            wait_until(lambda: narrow.state(parked)["state"] == "parked", what="parked")
            assert api.post(f"/v1/chat/completions/{parked}/cancel").status_code == 200
            (row,) = narrow.settled(parked)
            assert row.status == "cancelled"
            assert narrow.redis.zcard(Keys(0).parked) == 0
            assert len(asked(api)) == 1

    def test_a_deadline_passes_in_the_queue(self, narrow: Stack) -> None:
        """It ends without being sent, though no slot is free for it."""
        with narrow.api() as api:
            busy = api.background(fake={"chunks": 400, "interval_ms": 20})
            wait_until(lambda: narrow.state(busy)["state"] == "leased", what="busy worker")
            began = time.monotonic()
            waiting = api.seed(api.tenant, timeout=1.5)
            assert waiting.error.startswith("deadline_exceeded: ")
            assert time.monotonic() - began >= 1.5
            assert narrow.state(busy)["state"] == "leased"
            assert not asked(api)
            (row,) = narrow.settled(waiting.id)
            assert (row.status, row.usage and row.usage.attempts) == ("failed", 0)
            api.post(f"/v1/chat/completions/{busy}/cancel")
            narrow.settled(busy)
            assert narrow.redis.zcard(Keys(0).deadlines) == 0
