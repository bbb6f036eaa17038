"""POST /v1/chat/completions: OpenAI's contract, streamed and not, and when a stream begins."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.support.api import CHAT, SEED, Api, asking, error_of, named, ordered, text_of
from tests.support.stack import Stack

#: The provider's status, and what becomes of it.
REFUSALS = [
    (400, 400, "some_code"),
    (404, 404, "some_code"),
    (413, 413, "some_code"),
    (422, 422, "some_code"),
    (429, 429, "some_code"),
    (401, 502, "provider_auth"),
    (403, 502, "provider_auth"),
    (500, 502, "some_code"),
    (503, 502, "some_code"),
]
FAULT = {"message": "as ordered", "type": "some_type", "param": "top_k", "code": "some_code"}


def test_a_stream_has_only_data_lines_and_ends_with_done(api: Api) -> None:
    """No id, event or retry: the SDK breaks on them. Without being asked for, usage stays out."""
    whole = api.openai()
    assert all(name == "data" for frame in whole.frames for name, _ in frame.lines)
    *chunks, done = whole.data
    assert done == "[DONE]"
    assert text_of(chunks) == ordered()
    assert all(chunk["choices"] for chunk in chunks)
    assert not any("usage" in chunk for chunk in chunks)


def test_the_usage_chunk_comes_last_when_asked_for(api: Api) -> None:
    """One chunk with usage and no choices, before [DONE]."""
    *chunks, usage, done = api.openai(stream_options={"include_usage": True}).data
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 10
    assert all(chunk["choices"] for chunk in chunks)


@pytest.mark.parametrize("asked", [True, False])
def test_usage_that_a_provider_puts_beside_the_finish_reason_costs_no_chunk(api: Api, asked: bool) -> None:
    """The chunk with the finish reason is never taken for a usage chunk."""
    options = {"include_usage": asked}
    *chunks, _ = api.openai(fake={"usage_in_finish": True}, stream_options=options).data
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_plain_answer_is_a_whole_chat_completion(api: Api) -> None:
    """Content, finish reason and usage as if the provider had not streamed; the headers name the completion."""
    answer = api.plain()
    body = answer.json()
    assert answer.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["id"] == answer.headers["x-completion-id"]
    assert body["model"] == "fake"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": ordered(), "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 20
    assert answer.headers["x-cache"] == "bypass"


def test_the_provider_is_always_asked_to_stream_with_usage(api: Api) -> None:
    """Whatever the client asks for, chunks and usage go through the log."""
    api.plain(api.tenant)
    api.openai(api.tenant)
    for received in api.provider_requests(api.tenant):
        assert received.body["stream"] is True
        assert received.body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("given", "status", "code"), REFUSALS)
def test_a_failure_before_the_first_chunk_keeps_its_status(
    api: Api, given: int, status: int, code: str, stream: bool
) -> None:
    """The provider's own mistake stays what it is, ours to mend is 502; no client is invited to ask again."""
    answer = api.plain(stream=stream, fake={"status": given, "error": FAULT})
    assert answer.status_code == status
    error = error_of(answer)
    assert error["code"] == code
    assert "as ordered" in error["message"]
    if code == "some_code":
        assert (error["type"], error["param"]) == ("some_type", "top_k")
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-completion-id"].startswith("chatcmpl-")


def test_a_provider_that_answers_with_no_json_keeps_status_and_text(api: Api) -> None:
    """A proxy's page in front of a provider is no reason to hide what it says."""
    answer = api.plain(fake={"status": 400, "error": "<h1>Bad gateway page</h1>"})
    assert answer.status_code == 400
    assert "Bad gateway page" in error_of(answer)["message"]


def test_headers_wait_for_the_first_chunk(api: Api) -> None:
    """A failure just before it can still be told by status."""
    answer = api.plain(stream=True, fake={"headers_delay_ms": 600, "status": 422, "error": FAULT})
    assert answer.status_code == 422


@pytest.mark.parametrize("then", ["answer", "failure"])
def test_headers_wait_no_longer_than_two_seconds(api: Api, then: str) -> None:
    """After that it is 200, and a failure is an error in the stream without [DONE]."""
    fake: dict[str, Any] = {"headers_delay_ms": 4500}
    if then == "failure":
        fake |= {"status": 400, "error": FAULT}
    started = time.monotonic()
    with api.events(asking(stream=True, fake=fake), url=CHAT) as stream:
        waited = time.monotonic() - started
        assert 1.9 < waited < 4.4
        frames = stream.rest()
    if then == "answer":
        assert frames[-1].data == "[DONE]"
    else:
        assert [frame.data for frame in frames] == [{"error": FAULT}]


def test_a_failure_in_the_stream_is_an_error_without_done(api: Api) -> None:
    """A stopped stream can be told from a finished one."""
    data = api.openai(fake={"error_event_after": 3, "error": FAULT}).data
    assert "[DONE]" not in data
    assert data[-1] == {"error": FAULT}
    assert text_of(data) == ordered(3)


def test_a_plain_answer_that_breaks_off_is_an_error(api: Api) -> None:
    """Half an answer is never passed off as one; what there was can be read by id."""
    answer = api.plain(fake={"cut_at_byte": 900})
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "provider_truncated"
    stored = api.get(f"{CHAT}/{answer.headers['x-completion-id']}").json()
    assert stored["status"] == "failed"
    assert ordered().startswith(stored["choices"][0]["message"]["content"])
    assert stored["error"]["code"] == "provider_truncated"


def test_respond_async_answers_at_once(api: Api, stack: Stack) -> None:
    """202 with the completion and its status; the Location header leads to the answer."""
    answer = api.plain(headers={"Prefer": "respond-async"}, fake={"first_delay_ms": 300})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    body = answer.json()
    assert body["id"] == answer.headers["x-completion-id"]
    assert body["object"] == "chat.completion"
    assert body["status"] in ("queued", "in_progress")
    assert body["choices"] == []
    stack.settled(body["id"])
    stored = api.get(answer.headers["location"]).json()
    assert stored["status"] == "completed"
    assert stored["choices"][0]["message"]["content"] == ordered()


def test_respond_async_holds_for_streams_too(api: Api) -> None:
    """The preference is about when to answer, and a stream can be followed by its own URL."""
    answer = api.plain(stream=True, headers={"Prefer": "wait=1, respond-async"})
    assert answer.status_code == 202
    assert api.follow(answer.json()["id"]).text == ordered()


@pytest.mark.parametrize("stream", [True, False])
def test_only_if_cached_is_a_miss(api: Api, stream: bool) -> None:
    """There is no cache yet: 504 and no work."""
    answer = api.plain(api.tenant, stream=stream, headers={"Cache-Control": "only-if-cached"})
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "cache_miss"
    assert not api.provider_requests(api.tenant)


def test_both_prefixes_serve_it(api: Api) -> None:
    """Everything under /v1 is under /api/v1/llm too."""
    answer = api.post("/api/v1/llm/chat/completions", json=asking())
    assert answer.json()["choices"][0]["message"]["content"] == ordered()
    stored = api.get(f"/api/v1/llm/chat/completions/{answer.json()['id']}")
    assert stored.json()["status"] == "completed"


def test_parameters_reach_the_provider_as_they_should(api: Api) -> None:
    """Ours stay, unknown ones go through, nulls are omitted, and the user is X-On-Behalf-Of."""
    api.plain(
        api.tenant,
        headers=named("zoë"),
        temperature=None,
        store=True,
        metadata={"a": "b"},
        timeout=30,
        user="somebody else",
        parallel_tool_calls=True,
        max_completion_tokens=7,
        top_k=3,
        extra_body={"nested": [1, {"null": None}]},
        seed=2**53 - 1,
    )
    (received,) = api.provider_requests(api.tenant)
    sent = received.body
    assert sent["user"] == "zoë"
    assert sent["max_tokens"] == 7
    assert sent["top_k"] == 3
    assert sent["extra_body"] == {"nested": [1, {"null": None}]}
    assert sent["seed"] == 2**53 - 1
    for ours in (
        "temperature",
        "store",
        "metadata",
        "timeout",
        "parallel_tool_calls",
        "max_completion_tokens",
    ):
        assert ours not in sent
    assert "authorization" not in received.headers


def test_a_provider_gets_its_own_key_and_never_the_clients(api: Api, stack: Stack) -> None:
    """The key of the configuration goes upstream; an API key of ours goes nowhere."""
    api.plain(api.tenant, model="keyed:fake")
    (received,) = api.provider_requests(api.tenant)
    assert received.headers["authorization"] == f"Bearer {stack.environment['FAKE_API_KEY']}"
    assert api.api_key not in str(received.headers)


def test_the_token_limit_goes_under_the_name_that_the_provider_takes(api: Api) -> None:
    """``max_tokens_field`` of the configuration decides."""
    api.plain(api.tenant, model="newer:fake", max_tokens=9)
    (received,) = api.provider_requests(api.tenant)
    assert received.body["max_completion_tokens"] == 9
    assert "max_tokens" not in received.body


@pytest.mark.parametrize("url", [SEED, CHAT])
def test_a_reader_that_leaves_does_not_stop_the_work(api: Api, stack: Stack, url: str) -> None:
    """By default an accepted completion is finished, whoever reads it."""
    with api.events(asking(stream=True, fake={"chunks": 30, "interval_ms": 10}), url=url) as stream:
        stream.next(3)
        completion_id = stream.id
    (row,) = stack.settled(completion_id)
    assert row.status == "completed"
    assert api.follow(completion_id).text == ordered(30)


def test_many_clients_at_once_each_get_their_own_answer(api: Api) -> None:
    """Streams of one gateway don't mix."""

    async def one(client: httpx.AsyncClient, number: int) -> tuple[int, str]:
        pieces = [f" {number}-{i}" for i in range(20)]
        answer = await client.post(CHAT, json=asking(fake={"pieces": pieces, "interval_ms": 5}))
        return number, answer.json()["choices"][0]["message"]["content"]

    async def run() -> list[tuple[int, str]]:
        async with httpx.AsyncClient(base_url=api.base_url, headers=api.headers, timeout=30) as client:
            return await asyncio.gather(*(one(client, n) for n in range(50)))

    for number, content in asyncio.run(run()):
        assert content == "".join(f" {number}-{i}" for i in range(20))
