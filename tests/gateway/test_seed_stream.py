"""POST /api/v1/llm/chat/completions/stream: the seed's framing, from acceptance to its last frame."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.support.api import CHAT, SEED, Api, asking, error_of, ordered
from tests.support.stack import SETTINGS


def test_frames_have_event_id_and_data_and_end_with_done(api: Api) -> None:
    """Each chunk is a ``message`` with its index as id; the end is ``done`` with the next id and null."""
    whole = api.seed()
    *chunks, done = whole.frames
    assert [frame.id for frame in chunks] == list(range(len(chunks)))
    for frame in chunks:
        assert sorted(name for name, _ in frame.lines) == ["data", "event", "id"]
        assert frame.event == "message"
        assert frame.data["id"] == whole.id
        assert frame.data["object"] == "chat.completion.chunk"
    assert sorted(done.lines) == [("data", "null"), ("event", "done"), ("id", str(len(chunks)))]
    assert whole.text == ordered()


def test_the_headers_name_the_completion_and_keep_proxies_from_holding_back(api: Api) -> None:
    """An event stream that nobody stores, buffers or compresses."""
    headers = api.seed(headers={"Accept-Encoding": "gzip, br", "X-Request-Id": "mine-1"}).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-completion-id"].startswith("chatcmpl-")
    assert headers["x-cache"] == "bypass"
    assert headers["x-request-id"] == "mine-1"
    assert "content-encoding" not in headers


def test_a_request_id_that_is_no_token_is_replaced(api: Api) -> None:
    """What comes back in x-request-id is never what could split a header or fill a log."""
    for given in ("has space", "[ü]", "x" * 300):
        headers = api.seed(headers={"X-Request-Id": given.encode()}).headers
        assert headers["x-request-id"].startswith("req_")


def test_headers_and_a_comment_come_before_the_first_chunk(api: Api) -> None:
    """On acceptance there is 200 and a comment, whatever the provider is still at; comments follow every period."""
    started = time.monotonic()
    with api.events(asking(api.tenant, fake={"first_delay_ms": 3000})) as stream:
        first = next(stream.frames)
        assert first.is_comment
        assert time.monotonic() - started < 2.9
        kinds = ["comment" if frame.is_comment else frame.event for frame in stream.frames]
    assert kinds.index("message") >= int(3.0 / float(SETTINGS["KEEPALIVE_SECONDS"])) // 2


def test_comments_come_between_slow_chunks_too(api: Api) -> None:
    """A pause in the answer is filled with comments, and they never cut a frame."""
    with api.events(asking(fake={"chunks": 2, "interval_ms": 800})) as stream:
        kinds = ["comment" if frame.is_comment else frame.event for frame in stream.frames]
    assert "comment" in kinds[kinds.index("message") : kinds.index("done")]


@pytest.mark.parametrize("stream", [True, False, None])
def test_the_stream_parameter_is_ignored(api: Api, stream: bool | None) -> None:
    """This endpoint streams whatever ``stream`` says."""
    assert api.seed(stream=stream).last.event == "done"


def test_the_other_prefix_serves_the_same(api: Api) -> None:
    """/v1/chat/completions/stream is the same endpoint."""
    whole = api.whole(asking(), url=f"{CHAT}/stream")
    assert whole.last.event == "done"
    assert [frame.id for frame in whole.frames] == list(range(len(whole.frames)))


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_provider_that_refuses_is_an_error_event_after_200(api: Api, status: int) -> None:
    """What fails after acceptance is never an HTTP error here: clients of this contract would ask again."""
    whole = api.seed(fake={"status": status, "error": {"message": "as ordered", "code": "some_code"}})
    assert len(whole.frames) == 1
    code, _, message = whole.error.partition(": ")
    assert code == ("provider_auth" if status == 401 else "some_code")
    assert "as ordered" in message
    assert whole.last.id == 0


def test_an_answer_that_breaks_off_ends_with_error_and_not_with_done(api: Api) -> None:
    """Chunks that came are there, then the error with the next id."""
    whole = api.seed(fake={"chunks": 5, "error_event_after": 3, "error": {"message": "out of tokens"}})
    assert [frame.event for frame in whole.frames] == ["message"] * 4 + ["error"]
    assert whole.error == "ordered: out of tokens"
    assert whole.last.id == 4


def test_error_text_is_one_json_string_whatever_is_in_it(api: Api) -> None:
    """Line feeds, quotes and characters beyond ASCII can't break the frame."""
    message = 'Zeile\n\ndata: "fälschung"\r\n水\u2028'
    whole = api.seed(fake={"status": 400, "error": {"message": message, "code": "weird"}})
    assert whole.error == f"weird: {message} (provider status 400)"


def test_what_fails_before_acceptance_is_an_http_error(api: Api) -> None:
    """There nothing was accepted, and the client is told by status."""
    answer = api.post(SEED, json=asking(model="no-such-model"))
    assert answer.status_code == 404
    assert error_of(answer)["param"] == "model"
    assert "x-completion-id" not in answer.headers
    assert httpx.post(str(api.base_url.join(SEED)), json=asking()).status_code == 401
