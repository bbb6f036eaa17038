"""Every completion that was accepted is in the books exactly once, however it ended."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select

from schemas.tables import usage
from tests.support.api import CHAT, Api, asking, named
from tests.support.stack import Stack


def record(stack: Stack, completion_id: str) -> dict[str, Any]:
    stack.settled(completion_id)
    with stack.engine.connect() as connection:
        rows = (
            connection.execute(select(usage).where(usage.c.completion_id == completion_id)).mappings().all()
        )
    (row,) = rows
    return dict(row)


def test_a_completed_one_has_the_providers_counts(each_stack: Stack, each_api: Api) -> None:
    """With tenant, key, end user, model asked and resolved, and the times."""
    api = each_api
    counts = {
        "prompt_tokens": 30,
        "completion_tokens": 20,
        "total_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    whole = api.seed(headers=named("ann"), model="auto", fake={"usage": counts})
    row = record(each_stack, whole.id)
    assert {
        name: row[name]
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
    } == {
        "prompt_tokens": 30,
        "completion_tokens": 20,
        "cached_tokens": 7,
        "reasoning_tokens": 5,
    }
    assert not row["estimated"]
    assert (row["tenant"], row["end_user"]) == (api.tenant, "ann")
    assert str(row["key_id"]).removeprefix("key_") in api.api_key
    assert (row["model"], row["provider"], row["resolved_model"]) == ("auto", "fake", "fake")
    assert (row["status"], row["cache"], row["attempts"]) == ("completed", "bypass", 1)
    for name in ("queue_ms", "first_chunk_ms", "duration_ms"):
        assert isinstance(row[name], int)
        assert 0 <= row[name] < 60_000
    assert row["queue_ms"] <= row["first_chunk_ms"] <= row["duration_ms"]


def test_without_usage_it_is_estimated_and_marked(each_stack: Stack, each_api: Api) -> None:
    """From the bytes of the messages and of the answer."""
    row = record(each_stack, each_api.seed("a question", fake={"no_usage": True, "chunks": 40}).id)
    assert row["estimated"]
    assert 40 < row["completion_tokens"] < 160
    assert row["prompt_tokens"] > 0


@pytest.mark.parametrize("order", [{"status": 500}, {"drop": True}, {"status": 400}])
def test_a_failure_before_the_first_chunk_has_used_nothing(
    each_stack: Stack, each_api: Api, order: dict[str, object]
) -> None:
    """Recorded all the same, as failed."""
    row = record(each_stack, each_api.seed(fake=order).id)
    assert (row["status"], row["attempts"]) == ("failed", 1)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (0, 0)
    assert row["first_chunk_ms"] is None


def test_a_failure_in_the_middle_has_used_what_there_was(each_stack: Stack, each_api: Api) -> None:
    """Estimated, for the provider's count never came."""
    row = record(each_stack, each_api.seed(fake={"chunks": 40, "error_event_after": 30}).id)
    assert row["status"] == "failed"
    assert row["estimated"]
    assert row["completion_tokens"] > 0


def test_a_cancelled_one_is_recorded(each_stack: Stack, each_api: Api) -> None:
    """With what was said so far."""
    api = each_api
    with api.events(asking(fake={"chunks": 500, "interval_ms": 10})) as stream:
        stream.next(20)
        api.post(f"{CHAT}/{stream.id}/cancel")
    row = record(each_stack, stream.id)
    assert row["status"] == "cancelled"
    assert row["estimated"]
    assert row["completion_tokens"] > 0


def test_a_retry_under_an_idempotency_key_is_recorded_once(each_stack: Stack, each_api: Api) -> None:
    """It is the same completion."""
    api = each_api
    key = {"Idempotency-Key": "k"}
    ids = {api.seed(headers=key).id for _ in range(3)}
    (completion_id,) = ids
    record(each_stack, completion_id)
    with each_stack.engine.connect() as connection:
        rows = connection.execute(select(usage).where(usage.c.tenant == api.tenant)).all()
    assert len(rows) == 1


def test_what_was_refused_is_not_recorded(stack: Stack, api: Api) -> None:
    """Only what was accepted is in the books."""
    api.plain(model="no-such-model")
    api.plain(temperature=3)
    stack.settled(api.seed().id)
    with stack.engine.connect() as connection:
        rows = connection.execute(select(usage).where(usage.c.tenant == api.tenant)).all()
    assert len(rows) == 1


@pytest.mark.parametrize("count", [2**31, 2**53, 2**63, 2**64, 10**30, -5, 1.5, "12", True, None, {"a": 1}])
def test_no_count_that_a_provider_sends_can_stop_the_books(
    each_stack: Stack, each_api: Api, count: object
) -> None:
    """Impossible counts are cut to what SQL holds; what comes after is settled too."""
    api = each_api
    counts = {
        "prompt_tokens": count,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": count},
        "completion_tokens_details": count,
    }
    odd = api.seed(fake={"usage": counts})
    assert odd.last.event == "done"
    after = api.seed()
    row = record(each_stack, odd.id)
    assert 0 <= row["prompt_tokens"] < 2**63
    assert record(each_stack, after.id)["prompt_tokens"] == 10


@pytest.mark.parametrize("reason", ["x" * 100_000, "\ud800", "\u0000", 7, {"a": 1}, [None]])
def test_no_finish_reason_can_stop_the_books(each_stack: Stack, each_api: Api, reason: object) -> None:
    """Whatever a provider puts there."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": reason}]}
    odd = each_api.seed(fake={"raw": f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"})
    assert record(each_stack, odd.id)["status"] == "completed"


@pytest.mark.parametrize("text", ["\ud800 lone", "nul \u0000 in it", "\u2028", "x" * 60_000])
@pytest.mark.parametrize("how", ["refusal", "event"])
def test_no_error_text_can_stop_the_books(each_stack: Stack, each_api: Api, text: str, how: str) -> None:
    """The reader is told, the end is recorded, the error can be read again."""
    error = {"message": text, "type": text, "param": text, "code": text}
    if how == "refusal":
        fake = {"status": 400, "error": json.dumps({"error": error})}
    else:
        fake = {"raw": f"data: {json.dumps({'error': error})}\n\n"}
    odd = each_api.seed(fake=fake)
    assert odd.last.event == "error"
    assert record(each_stack, odd.id)["status"] == "failed"
    for _ in ("Redis", "the books"):
        assert each_api.stored(odd.id)["status"] == "failed"
        assert each_api.follow(odd.id).last.event == "error"
        assert each_api.plain(
            headers={"x-completion-id": odd.id, "x-last-chunk-index": "-1"}
        ).status_code in (400, 502)
        each_stack.forget(odd.id)
