"""``x-on-disconnect``: what becomes of a completion whose client leaves before it has its answer."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from schemas.states import OnDisconnect
from tests.support.api import CHAT, SEED, Api, asking, error_of, ordered
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.valkey import wait_until

HEADER = "x-on-disconnect"
CANCEL, CONTINUE = {HEADER: "cancel"}, {HEADER: "continue"}
#: An answer that takes some seconds.
SLOW = {"chunks": 150, "interval_ms": 20}
#: One that never ends by itself.
ENDLESS = {"chunks": 50, "stall_after": 3}


@contextmanager
def request(api: Api, stack: Stack, url: str, **more: object) -> Generator[socket.socket]:
    """An open request, which is left at the end."""
    headers: object = more.pop("headers", {})
    assert isinstance(headers, dict)
    body = json.dumps(asking(api.tenant, **more)).encode()
    lines = [f"POST {url} HTTP/1.1", "Host: x", f"Authorization: Bearer {api.api_key}"]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection(("127.0.0.1", stack.port), timeout=20) as sock:
        sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        yield sock


def the_one(api: Api) -> str:
    """The id of the tenant's only completion."""
    wait_until(lambda: bool(api.get(CHAT).json()["data"]), what="completion in the list")
    (item,) = api.get(CHAT).json()["data"]
    return item["id"]


def says_something(stack: Stack, completion_id: str) -> None:
    wait_until(lambda: int(stack.state(completion_id).get("next", 0)) > 1, what="chunks")


@pytest.mark.parametrize("value", ["", "stop", "cancel, continue", "1", "cancel;now"])
def test_what_it_may_say(api: Api, value: str) -> None:
    """Anything but the two words is refused, by name, before anything is accepted."""
    completion_id = api.seed().id
    before = len(api.backend.completions)
    for url in (SEED, CHAT):
        answer = api.post(url, json=asking(), headers={HEADER: value})
        assert answer.status_code == 400
        assert error_of(answer)["param"] == HEADER
        assert "'continue' or 'cancel'" in error_of(answer)["message"]
    answer = api.get(f"{CHAT}/{completion_id}/stream", headers={HEADER: value})
    assert (answer.status_code, error_of(answer)["param"]) == (400, HEADER)
    assert len(api.backend.completions) == before


@pytest.mark.parametrize(("url", "stream"), [(SEED, True), (CHAT, True), (CHAT, False)])
@pytest.mark.parametrize("given", [True, False])
def test_cancelled_when_its_client_leaves(
    api: Api, stack: Stack, url: str, stream: bool, given: bool
) -> None:
    """In mid-stream, before the first chunk, and where the whole is waited for: the provider's connection closes,
    and what was said is kept."""
    order = ENDLESS if given else {"first_delay_ms": 60_000}
    with request(api, stack, url, stream=stream, fake=order, headers=CANCEL):
        completion_id = the_one(api)
        api.backend.wait_until(lambda: bool(api.provider_requests(api.tenant)))
        if given:
            says_something(stack, completion_id)
    (received,) = api.provider_requests(api.tenant)
    api.backend.wait_until(lambda: received.ended is not None)
    assert received.ended == "closed"
    (row,) = stack.settled(completion_id)
    assert row.status == "cancelled"
    body = api.stored(completion_id)
    if given:
        assert body["choices"][0]["message"]["content"] == ordered(3)
        assert body["usage"]["completion_tokens"] > 0
    else:
        assert body["choices"] == []


@pytest.mark.parametrize("headers", [{}, CONTINUE])
@pytest.mark.parametrize(("url", "stream"), [(SEED, True), (CHAT, True), (CHAT, False)])
def test_finished_where_it_is_to_continue(
    api: Api, stack: Stack, url: str, stream: bool, headers: dict[str, str]
) -> None:
    """That is what happens where nothing is said, too. Nobody stays subscribed."""
    with request(api, stack, url, stream=stream, fake={"chunks": 40, "interval_ms": 20}, headers=headers):
        completion_id = the_one(api)
        says_something(stack, completion_id)
    (row,) = stack.settled(completion_id)
    assert row.status == "completed"


@pytest.mark.parametrize(("url", "stream"), [(SEED, True), (CHAT, False)])
def test_a_queued_one_never_starts(api: Api, stack: Stack, url: str, stream: bool) -> None:
    with stack.paused("interactive0"):
        with request(api, stack, url, stream=stream, headers=CANCEL):
            completion_id = the_one(api)
        wait_until(lambda: stack.state(completion_id)["state"] == "cancelled", what="cancel")
    after = api.background("next in line")
    (row, _) = stack.settled(completion_id, after)
    assert row.status == "cancelled"
    assert not api.provider_requests(api.tenant)


def test_an_answer_in_the_background_has_no_client_that_could_leave(api: Api, stack: Stack) -> None:
    completion_id = api.background(fake={"chunks": 40, "interval_ms": 10}, headers={HEADER: b"cancel"})
    assert stack.settled(completion_id)[0].status == "completed"


@pytest.mark.parametrize("way", ["GET", "POST"])
def test_resumed_streams_too(api: Api, stack: Stack, way: str) -> None:
    """Whoever resumes decides for himself; the one who asked had said nothing."""
    completion_id = api.background(api.tenant, fake=ENDLESS)
    says_something(stack, completion_id)
    if way == "GET":
        with api.events(url=f"{CHAT}/{completion_id}/stream?after=0", method="GET", headers=CANCEL) as stream:
            stream.next(1)
    else:
        naming = {"x-completion-id": completion_id, "x-last-chunk-index": "0"}
        with api.events(asking(), headers={**naming, **CANCEL}) as stream:
            stream.next(1)
    assert stack.settled(completion_id)[0].status == "cancelled"
    (received,) = api.provider_requests(api.tenant)
    api.backend.wait_until(lambda: received.ended == "closed")


def test_a_reader_who_says_nothing_leaves_it_alone(api: Api, stack: Stack) -> None:
    completion_id = api.background(fake={"chunks": 40, "interval_ms": 20})
    says_something(stack, completion_id)
    with api.events(url=f"{CHAT}/{completion_id}/stream", method="GET") as stream:
        stream.next(1)
    assert api.request("HEAD", f"{CHAT}/{completion_id}/stream", headers=CANCEL).status_code == 200
    assert stack.settled(completion_id)[0].status == "completed"


def test_a_stream_token_is_for_reading(api: Api) -> None:
    """Whoever holds one can't cancel by leaving."""
    completion_id = api.seed().id
    url = api.post(f"{CHAT}/{completion_id}/token").json()["url"]
    answer = api.get(url, headers=CANCEL)
    assert (answer.status_code, error_of(answer)["param"]) == (400, HEADER)
    assert api.get(url).status_code == 200


def test_the_keys_setting_counts_where_the_header_says_nothing(stack: Stack) -> None:
    """For whoever asks; the header wins over it; a reader of what is there is not meant by it."""
    tenant = stack.tenant()
    _, plaintext = stack.keys.create("leaver", tenant, on_disconnect=OnDisconnect.CANCEL)
    with Api(stack.url, plaintext, tenant=tenant, backend=stack.backend) as api:
        ids: list[str] = []
        for headers in ({}, CONTINUE):
            with api.events(asking(fake={"chunks": 60, "interval_ms": 20}), headers=headers) as stream:
                stream.next(1)
            ids.append(stream.id)
        ids.append(api.background(fake={"chunks": 60, "interval_ms": 20}))
        says_something(stack, ids[2])
        with api.events(url=f"{CHAT}/{ids[2]}/stream", method="GET") as stream:
            stream.next(1)
    assert [row.status.value for row in stack.settled(*ids)] == ["cancelled", "completed", "completed"]


def test_who_has_it_all_cancels_nothing_by_leaving(api: Api, stack: Stack) -> None:
    whole = api.seed(headers=CANCEL)
    plain = api.plain(headers=CANCEL)
    assert whole.last.event == "done"
    ids = (whole.id, plain.headers["x-completion-id"])
    assert {row.status.value for row in stack.settled(*ids)} == {"completed"}


def test_a_gateway_that_is_stopped_is_no_client_that_leaves(api: Api, stack: Stack) -> None:
    """Its streams break off, and the completions go on: their clients resume elsewhere."""
    port = free_port()
    stack.add_gateway("stopped", port)
    with Api(f"http://127.0.0.1:{port}", api.api_key, tenant=api.tenant, backend=api.backend) as other:
        with other.events(asking(fake={"chunks": 350, "interval_ms": 25}), headers=CANCEL) as stream:
            stream.next(2)
            stack.remove("stopped", signal.SIGTERM)
        headers = {"x-completion-id": stream.id, "x-last-chunk-index": "1"}
        assert api.seed(headers=headers).last.event == "done"
    assert stack.settled(stream.id)[0].status == "completed"
