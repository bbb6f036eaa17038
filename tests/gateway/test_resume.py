"""Resuming: from any index, by three ways of naming the completion, and never by asking the model again."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.api import CHAT, SEED, Api, asking, encoded, error_of, named, ordered, text_of
from tests.support.stack import Stack

LAST = "x-last-chunk-index"
#: Asking again with these headers, which name the completion in one of three ways.
Again = Callable[..., dict[str, str]]


@pytest.fixture(params=["x-completion-id", "Idempotency-Key", "fingerprint"])
def by(request: pytest.FixtureRequest) -> str:
    """How the completion is named."""
    return request.param


def test_from_every_index_on_come_just_the_chunks_after_it(each_stack: Stack, each_api: Api, by: str) -> None:
    """The same from Redis and from the books, and the provider is asked once."""
    api, stack = each_api, each_stack
    key = {"Idempotency-Key": uuid.uuid4().hex} if by == "Idempotency-Key" else {}
    first = api.seed(api.tenant, headers=key)
    naming = {"x-completion-id": first.id} if by == "x-completion-id" else key
    for place in ("Redis", "the books"):
        for after in range(-1, len(first.chunks)):
            again = api.seed(api.tenant, headers={**naming, LAST: str(after)})
            assert again.id == first.id
            assert again.chunks == {i: c for i, c in first.chunks.items() if i > after}, place
            assert (again.last.event, again.last.id) == ("done", len(first.chunks)), place
        stack.forget(first.id)
    assert len(api.provider_requests(api.tenant)) == 1


def test_a_live_stream_is_taken_up_where_it_was_left(api: Api, by: str) -> None:
    """Cut and resumed many times: no chunk twice, none missing."""
    key = {"Idempotency-Key": uuid.uuid4().hex} if by == "Idempotency-Key" else {}
    body = asking(api.tenant, fake={"chunks": 60, "interval_ms": 15})
    seen: list[Any] = []
    headers = dict(key)
    while True:
        with api.events(body, headers=headers) as stream:
            frames = stream.next(1)
            while frames[-1].event == "message" and len(frames) < 9:
                frames += stream.next(1)
            completion_id = stream.id
        seen += [frame for frame in frames if frame.event == "message"]
        if frames[-1].event == "done":
            break
        headers = {**key, LAST: str(seen[-1].id)}
        if by == "x-completion-id":
            headers["x-completion-id"] = completion_id
    assert [frame.id for frame in seen] == list(range(len(seen)))
    assert text_of(frame.data for frame in seen) == ordered(60)
    assert len(api.provider_requests(api.tenant)) == 1


def test_openais_endpoint_resumes_too(api: Api, by: str) -> None:
    """Its frames carry no index; its resumed streams start after the one that is named."""
    key = {"Idempotency-Key": uuid.uuid4().hex} if by == "Idempotency-Key" else {}
    first = api.openai(api.tenant, headers=key)
    naming = {"x-completion-id": first.id} if by == "x-completion-id" else key
    again = api.openai(api.tenant, headers={**naming, LAST: "4"})
    assert again.data == first.data[5:]
    assert len(api.provider_requests(api.tenant)) == 1


@pytest.mark.parametrize("url", [SEED, CHAT])
def test_last_event_id_stands_in_for_the_header(api: Api, url: str) -> None:
    """As an EventSource sends it; x-last-chunk-index goes first where both are there."""
    first = api.seed(api.tenant)
    body = asking(api.tenant, stream=True)
    name = {"x-completion-id": first.id}

    def contents(headers: dict[str, str]) -> str:
        return api.whole(body, url=url, headers=name | headers).text

    assert contents({"Last-Event-ID": "7"}) == " tok7 tok8 tok9"
    assert contents({"Last-Event-ID": "2", LAST: "9"}) == " tok9"


@pytest.mark.parametrize("after", ["12", "13", "500", str(2**63), "9" * 30])
@pytest.mark.parametrize("forgotten", [False, True])
def test_past_the_end_of_a_finished_log_is_done_at_once(
    api: Api, stack: Stack, after: str, forgotten: bool
) -> None:
    """Nothing is replayed, and the frame's id is that of the end."""
    first = api.seed(api.tenant)
    if forgotten:
        stack.forget(first.id)
    headers = {"x-completion-id": first.id, LAST: after}
    (done,) = api.seed(api.tenant, headers=headers).frames
    assert (done.event, done.id, done.data) == ("done", 13, None)
    assert api.openai(api.tenant, headers=headers).data == ["[DONE]"]


@pytest.mark.parametrize("url", [SEED, CHAT])
def test_past_the_end_of_a_failed_log_is_its_error(api: Api, url: str) -> None:
    """A failure is not turned into an end by coming back."""
    first = api.seed(fake={"error_event_after": 2, "error": {"message": "no more", "code": "gone_wrong"}})
    headers = {"x-completion-id": first.id, LAST: "2"}
    if url == SEED:
        assert api.seed(headers=headers).error == "gone_wrong: no more"
    else:
        answer = api.plain(stream=True, headers=headers)
        assert error_of(answer)["code"] == "gone_wrong"


def test_past_the_tail_of_an_unfinished_log_is_a_conflict(api: Api, by: str) -> None:
    """The client can't have what was never said."""
    key = {"Idempotency-Key": uuid.uuid4().hex} if by == "Idempotency-Key" else {}
    body = asking(api.tenant, fake={"chunks": 200, "interval_ms": 20})
    with api.events(body, headers=key) as stream:
        stream.next(2)
        naming = {"x-completion-id": stream.id} if by == "x-completion-id" else key
        for url in (SEED, CHAT):
            answer = api.post(url, json=body, headers={**naming, LAST: "190"})
            assert answer.status_code == 409
            assert error_of(answer)["code"] == "index_out_of_range"
        assert api.get(f"{CHAT}/{stream.id}/stream?after=190").status_code == 409
        api.post(f"{CHAT}/{stream.id}/cancel")
    assert len(api.provider_requests(api.tenant)) == 1


@pytest.mark.parametrize("url", [SEED, CHAT])
@pytest.mark.parametrize("header", [LAST, "Last-Event-ID"])
@pytest.mark.parametrize("value", ["-2", "abc", "1.0", "1e3", "0x1", "", "٣", "1 2", "--1", "NaN", "3,4"])
def test_what_is_no_index_is_refused(api: Api, url: str, header: str, value: str) -> None:
    """400, and the log is not replayed."""
    first = api.seed()
    headers = {"x-completion-id": first.id, header: value}
    answer = api.post(url, json=asking(), headers=encoded(headers))
    assert answer.status_code == 400
    assert error_of(answer)["param"] == header.lower()


def test_an_index_that_is_sent_twice_is_refused(api: Api) -> None:
    """Two different places are none."""
    first = api.seed()
    answer = api.post(SEED, json=asking(), headers=[("x-completion-id", first.id), (LAST, "3"), (LAST, "7")])
    assert answer.status_code == 400


def test_nothing_to_resume_is_404_and_starts_nothing(api: Api) -> None:
    """However the completion is named."""
    nobody = f"chatcmpl-{uuid.uuid4().hex}"
    for naming in ({}, {"x-completion-id": nobody}, {"x-completion-id": "x"}, {"Idempotency-Key": nobody}):
        for after in ("-1", "0", "5"):
            for url in (SEED, CHAT):
                answer = api.post(url, json=asking(api.tenant), headers={**naming, LAST: after})
                assert answer.status_code == 404, naming
                error_of(answer)
    assert not api.provider_requests(api.tenant)


def test_several_equal_requests_are_ambiguous(api: Api) -> None:
    """409 names the header to send; with it the answer is there."""
    ids = [api.seed(api.tenant, user=str(n)).id for n in range(40)]
    answer = api.post(SEED, json=asking(api.tenant), headers={LAST: "-1"})
    assert answer.status_code == 409
    assert error_of(answer)["param"] == "x-completion-id"
    assert "x-completion-id" in error_of(answer)["message"]
    for completion_id in (ids[0], ids[-1]):
        again = api.seed(api.tenant, headers={LAST: "8", "x-completion-id": completion_id})
        assert again.id == completion_id
    assert len(api.provider_requests(api.tenant)) == len(ids)


def test_the_fingerprint_leaves_out_what_does_not_change_the_answer(api: Api) -> None:
    """stream, stream_options, user, metadata and store may differ; anything else makes another request."""
    first = api.seed(api.tenant, temperature=0.5)
    same = {"stream": True, "stream_options": {"include_usage": True}, "user": "u", "metadata": {"a": "b"}}
    again = api.seed(api.tenant, temperature=0.5, store=False, headers={LAST: "0"}, **same)
    assert again.id == first.id
    for other in ({"temperature": 0.6}, {"temperature": 0.5, "top_k": 1}, {"temperature": 0.5, "seed": 1}):
        answer = api.post(SEED, json=asking(api.tenant, **other), headers={LAST: "0"})
        assert answer.status_code == 404
    answer = api.post(SEED, json=asking(api.tenant, temperature=0.5), headers={LAST: "0", "x-sample": "1"})
    assert answer.status_code == 404


def test_a_deleted_completion_is_not_among_what_can_be_resumed(api: Api, by: str) -> None:
    """Of two equal ones, the one that is left is meant."""
    key = {"Idempotency-Key": uuid.uuid4().hex} if by == "Idempotency-Key" else {}
    first = api.seed(api.tenant, headers=key)
    assert api.delete(f"{CHAT}/{first.id}").status_code == 200
    naming = {"x-completion-id": first.id} if by == "x-completion-id" else key
    answer = api.post(SEED, json=asking(api.tenant), headers={**naming, LAST: "0"})
    assert answer.status_code == 404
    if by == "fingerprint":
        second = api.seed(api.tenant)
        assert api.seed(api.tenant, headers={LAST: "0"}).id == second.id


def test_resuming_with_minus_one_gives_all_of_it(api: Api, by: str) -> None:
    """From the start, and still not by asking the model again."""
    key = {"Idempotency-Key": uuid.uuid4().hex} if by == "Idempotency-Key" else {}
    first = api.seed(api.tenant, headers=key)
    naming = {"x-completion-id": first.id} if by == "x-completion-id" else key
    assert api.seed(api.tenant, headers={**naming, LAST: "-1"}).frames == first.frames
    assert len(api.provider_requests(api.tenant)) == 1


class TestFollowing:
    """GET …/{id}/stream?after=N."""

    def test_the_log_can_be_read_from_any_index(self, each_stack: Stack, each_api: Api) -> None:
        """The same frames as live, from Redis and from the books, on both prefixes."""
        api = each_api
        first = api.seed(n=2)
        for _ in ("Redis", "the books"):
            assert api.follow(first.id).frames == first.frames
            for after in range(-1, len(first.chunks)):
                assert api.follow(first.id, after).frames == first.frames[after + 1 :]
            other = api.whole(url=f"/api/v1/llm/chat/completions/{first.id}/stream?after=3", method="GET")
            assert other.frames == first.frames[4:]
            each_stack.forget(first.id)

    def test_last_event_id_wins_over_after(self, api: Api) -> None:
        """A browser that comes back sends both: the URL that it was given, and where it is."""
        first = api.seed()
        assert api.follow(first.id, 0, headers={"Last-Event-ID": "9"}).frames == first.frames[10:]
        assert api.follow(first.id, 0, headers={LAST: "8"}).frames == first.frames[9:]

    @pytest.mark.parametrize("forgotten", [False, True])
    def test_past_the_end_is_204(self, api: Api, stack: Stack, forgotten: bool) -> None:
        """Which stops an EventSource; the last chunk itself is not the end."""
        first = api.seed()
        if forgotten:
            stack.forget(first.id)
        url = f"{CHAT}/{first.id}/stream"
        for answer in (
            api.get(url, params={"after": "13"}),
            api.get(url, params={"after": "9" * 30}),
            api.get(url, headers={"Last-Event-ID": "13"}),
        ):
            assert answer.status_code == 204
            assert answer.content == b""
        assert [frame.event for frame in api.follow(first.id, 12).frames] == ["done"]

    def test_past_the_error_of_a_failed_one_is_204(self, api: Api) -> None:
        """The error frame's id leads there."""
        first = api.seed(fake={"error_event_after": 2})
        assert (first.last.event, first.last.id) == ("error", 3)
        last = {"Last-Event-ID": "3"}
        assert api.get(f"{CHAT}/{first.id}/stream", headers=last).status_code == 204
        assert [f.event for f in api.follow(first.id, 2).frames] == ["error"]

    @pytest.mark.parametrize("value", ["-2", "abc", "", "1.5", "%00", "1e3"])
    def test_a_bad_index_is_refused(self, api: Api, value: str) -> None:
        """400 that names the parameter, and nothing is replayed."""
        first = api.seed()
        answer = api.get(f"{CHAT}/{first.id}/stream?after={value}")
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "after"

    def test_a_queued_one_can_be_followed_before_it_starts(self, api: Api, stack: Stack) -> None:
        """The stream is open and silent until a worker takes the completion."""
        with stack.paused("interactive0"):
            completion_id = api.background(api.tenant)
            with api.stream("GET", f"{CHAT}/{completion_id}/stream") as response:
                pieces = response.iter_raw()
                assert next(pieces).startswith(b": ")
                assert stack.state(completion_id)["state"] == "queued"
        assert api.follow(completion_id).text == ordered()

    def test_two_readers_agree(self, api: Api) -> None:
        """One from the start, one from the middle, one late."""
        body = asking(fake={"chunks": 40, "interval_ms": 10})
        with api.events(body) as live:
            early = live.next(10)
            with api.events(url=f"{CHAT}/{live.id}/stream?after=4", method="GET") as second:
                frames = early + live.rest()
                assert second.rest() == frames[5:]
        assert api.follow(live.id).frames == frames

    def test_a_log_that_leaves_redis_under_a_reader_goes_on_from_the_books(
        self, api: Api, stack: Stack
    ) -> None:
        """A reader that came before the end of its time misses nothing."""
        completion_id = api.seed(fake={"chunks": 3000, "text": None, "pieces": ["word " * 200] * 3000}).id
        url = f"{CHAT}/{completion_id}/stream"
        with api.stream("GET", url) as response:
            pieces = response.iter_raw()
            begun = next(pieces) + next(pieces)
            stack.forget(completion_id)
            rest = b"".join(pieces)
        whole = api.get(url).content
        assert (begun + rest).replace(b": tailrace\n\n", b"") == whole.replace(b": tailrace\n\n", b"")
        assert whole.endswith(b"data: null\n\n")


class TestIdempotency:
    def test_the_same_key_adopts_the_same_completion(self, api: Api) -> None:
        """A retry gets the answer, whole, and on either endpoint; the provider is asked once."""
        key = {"Idempotency-Key": "retry me"}
        first = api.seed(api.tenant, headers=key)
        assert api.seed(api.tenant, headers=key).frames == first.frames
        plain = api.plain(api.tenant, headers=key)
        assert plain.json()["id"] == first.id
        assert api.openai(api.tenant, headers=key).id == first.id
        assert api.background(api.tenant, headers=key) == first.id
        assert len(api.provider_requests(api.tenant)) == 1

    def test_a_retry_while_it_runs_joins_it(self, api: Api) -> None:
        """From its start."""
        key = {"Idempotency-Key": "k"}
        body = asking(api.tenant, fake={"chunks": 40, "interval_ms": 10})
        with api.events(body, headers=key) as first:
            first.next(5)
            assert api.whole(body, headers=key).text == ordered(40)
        assert len(api.provider_requests(api.tenant)) == 1

    def test_many_at_once_are_one(self, api: Api) -> None:
        """Whoever comes first: one completion, one call."""
        import asyncio

        async def run() -> list[str]:
            headers = {**api.headers, "Idempotency-Key": "all at once"}
            async with httpx.AsyncClient(base_url=api.base_url, headers=headers, timeout=30) as client:
                answers = await asyncio.gather(
                    *(client.post(CHAT, json=asking(api.tenant)) for _ in range(20))
                )
            assert {a.status_code for a in answers} == {200}
            assert {a.json()["choices"][0]["message"]["content"] for a in answers} == {ordered()}
            return [a.json()["id"] for a in answers]

        assert len(set(asyncio.run(run()))) == 1
        assert len(api.provider_requests(api.tenant)) == 1

    @pytest.mark.parametrize("url", [SEED, CHAT])
    def test_another_request_under_the_same_key_is_422(self, api: Api, url: str) -> None:
        """Two different questions can't have one answer."""
        api.seed(api.tenant, headers={"Idempotency-Key": "k"})
        answer = api.post(url, json=asking("something else"), headers={"Idempotency-Key": "k"})
        assert answer.status_code == 422
        assert error_of(answer)["code"] == "idempotency_key_reused"
        assert not [r for r in api.provider_requests("something else") if api.tenant in str(r.body)]

    def test_keys_are_the_tenants_own(self, api: Api, stack: Stack) -> None:
        """Another tenant's equal key is another key."""
        first = api.seed(api.tenant, headers={"Idempotency-Key": "k"})
        with stack.api() as other:
            assert other.seed("other", headers={"Idempotency-Key": "k"}).id != first.id

    def test_a_key_may_be_any_text(self, api: Api) -> None:
        """UTF-8, spaces and colons; a control character or nothing at all is 400."""
        key = {"Idempotency-Key": "ключ: 1 {p0}".encode()}
        assert api.seed(headers=key).id == api.seed(headers=key).id
        for bad in (b"", b"x" * 257, "a\u2028b".encode()):
            answer = api.post(SEED, json=asking(), headers=encoded({"Idempotency-Key": bad}))
            assert answer.status_code == 400
            assert error_of(answer)["param"] == "idempotency-key"

    def test_a_request_that_was_refused_leaves_its_key_free(self, api: Api) -> None:
        """Only what was accepted holds a key."""
        answer = api.plain(model="no-such-model", headers={"Idempotency-Key": "k"})
        assert answer.status_code == 404
        assert api.plain(headers={"Idempotency-Key": "k"}).status_code == 200


class TestEndUsers:
    def test_a_fingerprint_is_looked_up_within_the_end_user(self, api: Api) -> None:
        """Equal requests of two users don't make each other ambiguous."""
        ann = api.seed(api.tenant, headers=named("ann")).id
        bob = api.seed(api.tenant, headers=named("bob")).id
        assert api.seed(api.tenant, headers={**named("ann"), LAST: b"3"}).id == ann
        assert api.seed(api.tenant, headers={**named("bob"), LAST: b"3"}).id == bob

    def test_another_users_completion_cannot_be_resumed(self, api: Api) -> None:
        """By none of the three ways."""
        key = {"Idempotency-Key": b"k"}
        ann = api.seed(api.tenant, headers={**named("ann"), **key}).id
        for naming in ({"x-completion-id": ann.encode()}, key, {}):
            headers = {**named("bob"), **naming, LAST: b"0"}
            assert api.post(SEED, json=asking(api.tenant), headers=encoded(headers)).status_code == 404
