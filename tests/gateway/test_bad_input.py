"""What is wrong with a request is told in OpenAI's shape, with its status and the field: never 500, never a hang."""

from __future__ import annotations

import json
import select
import socket
import string
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote_from_bytes

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.api import (
    CHAT,
    PATIENCE,
    SEED,
    Api,
    anybody,
    asking,
    dump,
    error_of,
    ordered,
    parse_frames,
    text_of,
)
from tests.support.json_texts import json_texts, object_text
from tests.support.properties import examples
from tests.support.stack import ORIGIN, SETTINGS, Stack
from tests.support.valkey import wait_until

LIMIT = int(SETTINGS["MAX_BODY_BYTES"])
SOMEBODY = f"chatcmpl-{uuid.uuid4().hex}"
both = pytest.mark.parametrize("url", [SEED, CHAT])


class Wire:
    """A connection on which any bytes can be said; answers are read one after the other."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._answers = self.socket.makefile("rb")

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def answer(self, *, head: bool = False) -> httpx.Response:
        """The next answer, whole; ``head`` where the request was HEAD."""
        status = self._line().split(b" ", 2)
        assert status[0] == b"HTTP/1.1", status
        headers: list[tuple[bytes, bytes]] = []
        while line := self._line():
            name, _, value = line.partition(b":")
            headers.append((name.lower(), value.strip()))
        named = dict(headers)
        content = b""
        if b"content-length" in named and not head:
            content = self._answers.read(int(named[b"content-length"]))
        elif named.pop(b"transfer-encoding", None) == b"chunked":
            while size := int(self._line(), 16):
                content += self._answers.read(size)
                assert self._line() == b""
            assert self._line() == b""
        return httpx.Response(int(status[1]), headers=headers, content=content)

    def repeat(self, piece: bytes) -> int:
        """Send it again and again until there is an answer; how many bytes that took."""
        sent = 0
        while not select.select([self.socket], [], [], 0)[0]:
            try:
                self.send(piece)
            except ConnectionError:
                break
            sent += len(piece)
        return sent

    def _line(self) -> bytes:
        line = self._answers.readline()
        assert line.endswith(b"\r\n"), f"the connection ended within {line!r}"
        return line[:-2]

    def ended(self) -> bool:
        """Wait until the other side has closed; whether it said nothing more."""
        try:
            return self._answers.read(1) == b""
        except ConnectionError:
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._answers.close()
        self.socket.close()


@contextmanager
def wire(stack: Stack) -> Generator[Wire]:
    """A connection; after it, the gateway still answers others."""
    with Wire(stack.port) as made:
        yield made
    with anybody(stack.url) as client:
        assert client.get("/healthz").status_code == 200


def head(api: Api, *lines: bytes, request: bytes = b"POST " + CHAT.encode()) -> bytes:
    """A request line and headers, with the key."""
    key = b"Authorization: Bearer " + api.api_key.encode()
    return b"\r\n".join([request + b" HTTP/1.1", b"Host: here", key, *lines, b"", b""])


def post(api: Api, body: bytes, *lines: bytes, url: str = CHAT) -> bytes:
    """A whole POST."""
    return head(api, *lines, b"Content-Length: %d" % len(body), request=b"POST " + url.encode()) + body


# ---------------------------------------------------------------------------------------------------- the body

TEXT = b'{"model":"fake","messages":[{"role":"user","content":"hi"}]'


@both
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n",
        b"{",
        b"not JSON",
        b"{'model': 'fake'}",
        TEXT,
        TEXT + b"}}",
        TEXT + b"} trailing",
        TEXT + b',"temperature":NaN}',
        TEXT + b',"temperature":1e999}',
        TEXT + b',"seed":0x10}',
        TEXT + b',"user":"\xff\xfe"}',
        TEXT + b',"user":"\\ud800"}',
        TEXT + b',"user":"a\nb"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{\x00}\x00",
        b"\x1f\x8b\x08\x00garbage",
        b"\x00" * 1000,
    ],
    ids=lambda body: repr(body[-20:]),
)
def test_what_is_no_json_is_400(api: Api, url: str, body: bytes) -> None:
    """Whatever is wrong with it, and nothing is accepted."""
    answer = api.post(url, content=body)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_json"
    assert "x-completion-id" not in answer.headers


@both
@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"1", b"true", b"[{}]"])
def test_json_that_is_no_object_is_400(api: Api, url: str, body: bytes) -> None:
    """A request is an object."""
    answer = api.post(url, content=body)
    assert answer.status_code == 400
    assert "object" in error_of(answer)["message"]


USER = {"role": "user", "content": "hi"}

FIELDS: list[tuple[dict[str, Any], str]] = [
    # missing and empty
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    # wrong types
    ({"model": 5}, "model"),
    ({"model": ["fake"]}, "model"),
    ({"model": "a\nb"}, "model"),
    ({"model": "m" * 300}, "model"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {"role": "user"}}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [None]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "boss", "content": "hi"}]}, "messages[1].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].tool_call_id"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"temperature": "warm"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"seed": "7"}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop[0]"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tool_choice": "some"}, "tool_choice"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"logprobs": 1}, "logprobs"),
    ({"user": 5}, "user"),
    ({"store": "no"}, "store"),
    ({"metadata": []}, "metadata"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    # out of range
    ({"temperature": 2.01}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": -1}, "top_p"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"n": 0}, "n"),
    ({"n": 10**30}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"seed": 2**60}, "seed"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"reasoning_effort": "maximum"}, "reasoning_effort"),
    ({"user": "a\0b"}, "user"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: ""}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": 10**9}, "timeout"),
]


@both
@pytest.mark.parametrize(("change", "param"), FIELDS, ids=lambda value: str(value)[:60])
def test_a_wrong_field_is_named(api: Api, url: str, change: dict[str, Any], param: str) -> None:
    """400 with the path of the field, also in the sentence; nothing is accepted."""
    answer = api.post(url, content=dump({**asking(), **change}))
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param in error["message"]
    assert "x-completion-id" not in answer.headers
    assert "Traceback" not in answer.text


@both
@pytest.mark.parametrize(
    "model", ["no-such-model", "nobody:fake", "listed:fake-b", "fake:", "fake:fake:fake", "auto:x"]
)
def test_an_unknown_model_or_provider_is_404(api: Api, url: str, model: str) -> None:
    """It names the model, and no provider is asked."""
    answer = api.post(url, json=asking(api.tenant, model=model))
    assert answer.status_code == 404
    error = error_of(answer)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert not api.provider_requests(api.tenant)


# ------------------------------------------------------------------------------------------- headers and callers


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("x-last-chunk-index", value)
            for value in (b"-2", b"", b"one", b"1.5", b"1,2", b"\xff", b"9" * 65)
        ),
        ("last-event-id", b"last"),
        ("x-sample", b"-1"),
        ("x-sample", b"a few"),
        ("cache-control", b"max-age=soon"),
        ("x-completion-id", b""),
        ("x-completion-id", b"x" * 257),
        ("idempotency-key", "\u3000".encode()),
        ("idempotency-key", b"a\tb"),
        ("idempotency-key", b"k" * 257),
        ("x-on-behalf-of", b"a\tb"),
        ("x-on-behalf-of", "\u202e".encode()),
    ],
)
def test_a_bad_header_is_named(api: Api, url: str, name: str, value: bytes) -> None:
    """400 that names it, and nothing is accepted."""
    answer = api.post(url, json=asking(api.tenant), headers=[(name.encode(), value)])
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"].startswith(name)
    assert name in error["message"]
    assert not api.provider_requests(api.tenant)


@pytest.mark.parametrize("character", [*range(9), 10, *range(11, 32), 127])
def test_a_header_with_a_control_character_is_400(stack: Stack, api: Api, character: int) -> None:
    """In a name or in a value, and the connection is closed."""
    for line in (b"X-Note: a%cb" % character, b"X-No%cte: ab" % character):
        with wire(stack) as client:
            client.send(post(api, dump(asking(api.tenant)), line))
            answer = client.answer()
            assert answer.status_code == 400
            assert error_of(answer)["code"] == "invalid_http"
            assert client.ended()
    assert not api.provider_requests(api.tenant)


def test_bad_keys_are_401_before_anything_is_looked_at(stack: Stack, api: Api) -> None:
    """Missing, malformed, unknown and revoked ones, whatever the body says."""
    tenant = stack.tenant()
    key_id, revoked = stack.key(tenant)
    stack.keys.revoke(key_id)
    unknown = f"tr-{uuid.uuid4().hex[:12]}-{'A' * 43}"
    for key in (
        None,
        "",
        "Bearer",
        "Bearer nonsense",
        f"Basic {api.api_key}",
        f"Bearer {unknown}",
        f"Bearer {revoked}",
    ):
        with anybody(stack.url, headers={} if key is None else {"Authorization": key}) as client:
            for method, url in (
                ("POST", SEED),
                ("POST", CHAT),
                ("GET", CHAT),
                ("DELETE", f"{CHAT}/{SOMEBODY}"),
            ):
                answer = client.request(method, url, content=b"{" if method == "POST" else None)
                assert answer.status_code == 401, (key, url)
                assert error_of(answer)["type"] == "authentication_error"


def test_anothers_ids_are_404_like_those_that_nobody_has(stack: Stack, api: Api) -> None:
    """By path and by header, word for word but for the id."""
    theirs = api.seed().id
    with stack.api() as other:

        def told(completion_id: str) -> list[str]:
            answers = [
                other.request(method, f"{CHAT}/{completion_id}{rest}", content=body)
                for method, rest, body in (
                    ("GET", "", None),
                    ("POST", "", b'{"metadata": {}}'),
                    ("DELETE", "", None),
                    ("GET", "/stream", None),
                    ("POST", "/cancel", None),
                    ("POST", "/token", None),
                )
            ]
            resume = {"x-completion-id": completion_id, "x-last-chunk-index": "-1"}
            answers += [other.post(url, json=asking(), headers=resume) for url in (SEED, CHAT)]
            assert [answer.status_code for answer in answers] == [404] * len(answers)
            assert {error_of(answer)["param"] for answer in answers} == {"id"}
            return [error_of(answer)["message"].replace(completion_id, "ID") for answer in answers]

        assert told(theirs) == told(SOMEBODY)


@pytest.mark.parametrize("host", [b"[", b"a b", b"\xff", b"[::1", b"here:port", b"a/b?c#d", b""])
def test_a_bad_host_header_harms_nothing(stack: Stack, api: Api, host: bytes) -> None:
    """What is built from the request's own address does not read it."""
    completion_id = api.seed().id
    with wire(stack) as client:
        for path, status in ((f"{CHAT}/{completion_id}/token", 200), ("/nowhere", 404)):
            request = head(api, b"Content-Length: 0", request=b"POST " + path.encode())
            client.send(request.replace(b"Host: here", b"Host: " + host))
            answer = client.answer()
            assert answer.status_code == status
    assert "/nowhere" in error_of(answer)["message"]


# ---------------------------------------------------------------------------------------------------------- size


@both
def test_the_largest_body_is_taken_and_one_byte_more_is_413(api: Api, url: str) -> None:
    """The limit is the setting's, to the byte."""
    body = dump(asking(stream=True)).ljust(LIMIT)
    assert api.post(url, content=body).status_code == 200
    answer = api.post(url, content=body + b" ")
    assert answer.status_code == 413
    error = error_of(answer)
    assert error["code"] == "request_too_large"
    assert f"{LIMIT:,}" in error["message"]


@pytest.mark.parametrize("lines", [[], [b"Expect: 100-continue"]], ids=["at once", "asks first"])
def test_a_length_beyond_the_limit_is_413_before_the_body(stack: Stack, api: Api, lines: list[bytes]) -> None:
    """What would be too much is not waited for, nor asked for; then the connection is closed."""
    for url in (SEED, CHAT):
        with wire(stack) as client:
            client.send(head(api, *lines, b"Content-Length: %d" % 10**15, request=b"POST " + url.encode()))
            answer = client.answer()
            assert answer.status_code == 413
            error_of(answer)
            assert client.ended()


@pytest.mark.parametrize("path", [SEED, CHAT, "update"])
def test_an_endless_body_is_413_and_cut_off(stack: Stack, api: Api, path: str) -> None:
    """The answer comes after little more than the limit, and what follows is not read for long."""
    url = f"{CHAT}/{api.seed().id}" if path == "update" else path
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with wire(stack) as client:
        client.send(head(api, b"Transfer-Encoding: chunked", request=b"POST " + url.encode()))
        assert client.repeat(chunk) < LIMIT + 32 * 1024 * 1024
        answer = client.answer()
        assert answer.status_code == 413
        error_of(answer)

        def cut() -> bool:
            try:
                client.send(chunk)
            except ConnectionError:
                return True
            return False

        wait_until(cut, what="end of the connection")


def test_a_client_that_sends_its_body_after_all_keeps_its_connection(stack: Stack, api: Api) -> None:
    """What comes after an early answer is thrown away, and the next request is answered."""
    with wire(stack) as client:
        body = b" " * (LIMIT + 1)
        client.send(head(api, b"Content-Length: %d" % len(body)))
        assert client.answer().status_code == 413
        client.send(body, head(api, request=b"GET " + CHAT.encode()))
        assert client.answer().status_code == 200


@pytest.mark.parametrize(
    "request_",
    [b"GET /%b HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX-Long: %b\r\n", b"GET / HTTP/1.1\r\nX-%b: long\r\n"],
)
def test_an_endless_head_is_431(stack: Stack, request_: bytes) -> None:
    """A line without an end is not collected."""
    with wire(stack) as client:
        before, _, _ = request_.partition(b"%b")
        client.send(before)
        client.repeat(b"a" * 4096)
        answer = client.answer()
        assert answer.status_code == 431
        assert error_of(answer)["code"] == "headers_too_large"
        assert client.ended()


# --------------------------------------------------------------------------------------------------- on the socket


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\xff\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"BREW /coffee HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX-Folded: a\r\n b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /?\xff HTTP/1.1\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
    ],
)
def test_what_is_no_http_is_400(stack: Stack, garbage: bytes) -> None:
    """In the shape of every other error, and the connection is closed."""
    with wire(stack) as client:
        client.send(garbage)
        answer = client.answer()
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "invalid_http"
        assert client.ended()


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ([b"Content-Length: -1"], b""),
        ([b"Content-Length: many"], b""),
        ([b"Content-Length: 1e3"], b""),
        ([b"Content-Length: 99999999999999999999999"], b""),
        ([b"Content-Length: 3", b"Content-Length: 4"], b"abc"),
        ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        ([b"Transfer-Encoding: gzip"], b"abc"),
        ([b"Transfer-Encoding: chunked"], b"size\r\nabc\r\n"),
        ([b"Transfer-Encoding: chunked"], b"-3\r\nabc\r\n"),
        ([b"Transfer-Encoding: chunked"], b"3\r\nabcdef\r\n"),
        ([b"Transfer-Encoding: chunked"], b"FFFFFFFFFFFFFFFFFF\r\nabc"),
    ],
)
def test_a_body_of_unclear_length_is_400(stack: Stack, api: Api, lines: list[bytes], body: bytes) -> None:
    """Nobody guesses where it ends."""
    with wire(stack) as client:
        client.send(head(api, *lines), body)
        answer = client.answer()
        assert answer.status_code == 400
        error_of(answer)
        assert client.ended()


def test_pipelined_requests_are_answered_in_order(stack: Stack, api: Api) -> None:
    """Bad ones among them take nothing from the others."""
    with wire(stack) as client:
        client.send(
            post(api, dump(asking("first"))),
            post(api, b"{"),
            head(api, request=f"GET {CHAT}/{SOMEBODY}".encode()),
            head(api, request=b"PATCH " + CHAT.encode()),
            post(api, dump(asking("last", stream=True))),
            head(api, request=b"HEAD /nowhere"),
            head(api, request=b"GET /healthz"),
        )
        assert client.answer().json()["choices"][0]["message"]["content"] == ordered()
        for status in (400, 404, 405):
            answer = client.answer()
            assert answer.status_code == status
            error_of(answer)
        frames = list(parse_frames([client.answer().content]))
        assert text_of(f.data for f in frames if not f.is_comment) == ordered()
        assert client.answer(head=True).status_code == 404
        assert client.answer().json() == {"status": "ok"}


def test_garbage_behind_a_request_waits_for_its_answer(stack: Stack, api: Api) -> None:
    """A stream that is under way is never broken into by an error about what came after it."""
    body = dump(asking(fake={"chunks": 20, "interval_ms": 10}))
    with wire(stack) as client:
        client.send(post(api, body, url=SEED), b"\x00garbage\r\n\r\n")
        stream = client.answer()
        frames = [f for f in parse_frames([stream.content]) if not f.is_comment]
        assert frames[-1].event == "done"
        assert text_of(f.data for f in frames) == ordered(20)
        answer = client.answer()
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "invalid_http"
        assert client.ended()


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"nonsense"])
def test_a_request_to_change_the_protocol_is_passed_over(stack: Stack, api: Api, protocol: bytes) -> None:
    """As HTTP allows: the body is read whole, wherever it is cut, and the connection goes on."""
    upgrade = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol, b"HTTP2-Settings: AAMAAABk"]
    request = post(api, dump(asking()), *upgrade)
    for cut in (len(request), len(request) - 10, request.index(b"\r\n\r\n") + 4):
        with wire(stack) as client:
            client.send(request[:cut])
            if cut < len(request):
                client.send(request[cut:])
            assert client.answer().json()["choices"][0]["message"]["content"] == ordered()
            client.send(request, request)
            assert client.answer().status_code == 200
            assert client.answer().status_code == 200


@both
@pytest.mark.parametrize("lines", [[b"Content-Length: 1000"], [b"Transfer-Encoding: chunked"]])
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end"])
def test_a_client_that_leaves_within_its_body_leaves_nothing(
    stack: Stack, api: Api, url: str, lines: list[bytes], reset: bool
) -> None:
    """No completion, no error in a log, and the gateway goes on."""
    body = dump(asking(api.tenant))
    with wire(stack) as client:
        client.send(head(api, *lines, request=b"POST " + url.encode()))
        client.send(b"%x\r\n" % (2 * len(body)) if b"chunked" in lines[0] else b"", body)
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        else:
            client.socket.shutdown(socket.SHUT_WR)
            assert client.ended()
    assert api.get(CHAT).json()["data"] == []
    assert not api.provider_requests(api.tenant)


def test_what_is_nowhere_is_404_and_what_is_not_done_is_405(stack: Stack, api: Api) -> None:
    """With the methods that are, also for the server as a whole and for paths that are written oddly."""
    for path in (
        "/",
        "/v1",
        "/v1/",
        "/v2/models",
        "//v1/models",
        "/v1/chat",
        "/v1/chat/completions//stream",
        "/%00",
    ):
        answer = api.get(path)
        assert answer.status_code == 404, path
        error_of(answer)
    for method, path, allowed in (
        ("PATCH", CHAT, "GET, POST"),
        ("DELETE", "/v1/models", "GET"),
        ("OPTIONS", f"{CHAT}/{SOMEBODY}", "DELETE, GET, POST"),
        ("TRACE", "/healthz", "GET"),
    ):
        answer = api.request(method, path)
        assert answer.status_code == 405, path
        assert answer.headers["allow"] == allowed
        error_of(answer)
    with wire(stack) as client:
        client.send(b"OPTIONS * HTTP/1.1\r\nHost: here\r\n\r\n")
        answer = client.answer()
        assert answer.status_code == 404
        error_of(answer)


@pytest.mark.parametrize(
    ("origin", "method"), [("http://evil.example", "GET"), (ORIGIN, "PATCH"), ("null", "POST")]
)
def test_a_refused_preflight_is_an_error_like_others(api: Api, origin: str, method: str) -> None:
    """400 in the same shape."""
    answer = api.options(CHAT, headers={"Origin": origin, "Access-Control-Request-Method": method})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "cors_refused"


# ---------------------------------------------------------------------------------------------------------- any input

#: Parameters whose right values make work that is long or fails by intention.
_FUZZED = [
    "model",
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "stop",
    "response_format",
    "logprobs",
    "top_logprobs",
    "user",
    "store",
    "reasoning_effort",
    "metadata",
    "unknown",
]
_HEADERS = [
    "Accept",
    "Accept-Encoding",
    "Cache-Control",
    "Content-Encoding",
    "Content-Type",
    "Cookie",
    "Idempotency-Key",
    "Last-Event-ID",
    "Origin",
    "Prefer",
    "Range",
    "Referer",
    "X-Completion-Id",
    "X-Forwarded-For",
    "X-Last-Chunk-Index",
    "X-On-Behalf-Of",
    "X-Request-Id",
    "X-Sample",
]

_ASKED = [(json.dumps(name), json.dumps(value)) for name, value in asking().items()]
bodies = st.one_of(
    st.binary(max_size=200),
    json_texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.tuples(st.sampled_from(_FUZZED).map(json.dumps), json_texts), min_size=1, max_size=3).map(
        lambda fields: object_text([*_ASKED, *fields]).encode("utf-8", "surrogatepass")
    ),
)
values = st.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n")) | st.sampled_from(
    [
        b"only-if-cached",
        b"max-age=",
        b"respond-async",
        b"-1",
        b"0",
        b"7",
        b"text/event-stream",
        ORIGIN.encode(),
    ]
)
headers_ = st.lists(
    st.tuples(
        st.sampled_from(_HEADERS) | st.text(string.ascii_letters, min_size=1).map("X-{}".format), values
    ),
    max_size=4,
)
pieces = st.binary(max_size=12).map(
    lambda piece: quote_from_bytes(piece, safe="/:?&=[]%#;")
) | st.sampled_from(
    ["v1", "api/v1/llm", "chat/completions", "models", "stream", "cancel", "token", "..", "", SOMEBODY]
)
paths = st.sampled_from(
    [SEED, CHAT, f"{CHAT}/{SOMEBODY}", f"{CHAT}/{SOMEBODY}/stream", "/v1/models/fake", "/docs"]
) | st.lists(pieces, max_size=5).map(lambda found: "/" + "/".join(found))
queries = st.just("") | st.lists(
    st.tuples(
        st.sampled_from(["after", "limit", "order", "model", "status", "token", "metadata[a]"]) | pieces,
        pieces,
    ),
    min_size=1,
    max_size=3,
).map(lambda pairs: "?" + "&".join(f"{name}={value}" for name, value in pairs))
methods = st.sampled_from(["GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"])


def lawful(answer: httpx.Response, *, head: bool = False) -> None:
    """A good answer, or an error of the client's in the one shape."""
    assert "Traceback" not in answer.text
    if answer.status_code >= 400 and not head:
        error = error_of(answer)
        assert answer.status_code < 500 or error["code"] == "cache_miss", answer.text


@examples(120)
@given(body=bodies, headers=headers_, url=st.sampled_from([SEED, CHAT]))
def test_any_body_and_headers_get_a_lawful_answer(
    stack: Stack, api: Api, body: bytes, headers: list[tuple[str, bytes]], url: str
) -> None:
    """A property of both endpoints that ask for completions."""
    with Wire(stack.port) as client:
        client.send(post(api, body, *(b"%b: %b" % (n.encode(), v) for n, v in headers), url=url))
        lawful(client.answer())


@examples(120)
@given(method=methods, path=paths, query=queries, headers=headers_)
def test_any_path_and_query_get_a_lawful_answer(
    stack: Stack, api: Api, method: str, path: str, query: str, headers: list[tuple[str, bytes]]
) -> None:
    """Under any method that HTTP has."""
    lines = [b"%b: %b" % (n.encode(), v) for n, v in headers]
    with Wire(stack.port) as client:
        client.send(head(api, *lines, request=f"{method} {path}{query}".encode()))
        lawful(client.answer(head=method == "HEAD"), head=method == "HEAD")


@examples(60)
@given(
    pieces=st.lists(
        st.binary(max_size=60) | st.sampled_from([b"\r\n", b"\r\n\r\n", b"GET ", b" HTTP/1.1\r\n"])
    )
)
def test_any_bytes_on_the_socket_are_answered_or_dropped(stack: Stack, pieces: list[bytes]) -> None:
    """An error in the one shape or the end, once the client has said all."""
    with Wire(stack.port) as client:
        try:
            client.send(*pieces)
            client.socket.shutdown(socket.SHUT_WR)
            told = client.socket.recv(1 << 20)
        except ConnectionError:
            return
        assert told == b"" or told.startswith(b"HTTP/1.1 ")
        assert b"Traceback" not in told
        assert not told.startswith(b"HTTP/1.1 5")
