"""Clients that stop in the middle or leave at once: they hold nobody up and leave nothing behind."""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import ExitStack

import pytest

from tests.support.api import CHAT, SEED, Api, asking
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once


def connect(stack: Stack) -> socket.socket:
    return socket.create_connection(("127.0.0.1", stack.port), timeout=10)


def request(api: Api, url: str, body: bytes, length: int | None = None) -> bytes:
    head = f"POST {url} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.api_key}\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def test_clients_that_stop_in_the_middle_of_a_body_hold_nobody_up(api: Api, stack: Stack) -> None:
    """However many: others are served meanwhile, and when they leave, nothing was accepted."""
    before = len(api.backend.completions)
    with ExitStack() as connections:
        for number in range(100):
            sock = connections.enter_context(connect(stack))
            sock.sendall(request(api, (SEED, CHAT)[number % 2], b'{"model": "fake", "mess', 500))
        started = time.monotonic()
        assert api.get(CHAT).status_code == 200
        assert time.monotonic() - started < 5
    assert api.get(CHAT).status_code == 200
    assert len(api.backend.completions) == before


def test_clients_that_leave_at_once_leave_nothing_behind(api: Api, stack: Stack) -> None:
    """Reset before and within the answer: no reader stays subscribed, and what was accepted is finished."""
    body = json.dumps(asking(stream=True, fake={"chunks": 20, "interval_ms": 10})).encode()
    for number in range(40):
        with connect(stack) as sock:
            sock.sendall(request(api, (SEED, CHAT)[number % 2], body))
            if number % 4 > 1:
                sock.recv(100)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: not stack.readers(), what="end of all subscriptions")
    items = api.get(CHAT, params={"limit": 100}).json()["data"]
    assert {row.status.value for row in stack.settled(*(item["id"] for item in items))} == {"completed"}


def test_a_reader_that_stops_reading_holds_nobody_up(api: Api, stack: Stack) -> None:
    """What it does not take waits in the log; others get theirs, and it gets the rest when it reads on."""
    completion_id = api.seed(fake={"chunks": 30_000}).id
    url = f"{CHAT}/{completion_id}/stream"
    with api.stream("GET", url) as slow:
        pieces = slow.iter_raw()
        begun = next(pieces)
        started = time.monotonic()
        assert api.plain().status_code == 200
        assert time.monotonic() - started < 5
        rest = b"".join(pieces)
    assert (begun + rest).count(b"event: message") == 30_003


def test_numbers_beyond_64_bits_in_unknown_parameters_go_through(api: Api) -> None:
    """They are the provider's business; and where it reports no usage, they don't stop the estimate."""
    part = {"type": "text", "text": api.tenant, "vendor": 10**30}
    body = {"model": "fake", "messages": [{"role": "user", "content": [part]}], "vendor_seed": -(10**25)}
    whole = api.whole({**body, "fake": {"no_usage": True}})
    assert whole.last.event == "done"
    received = [r for r in api.backend.completions if r.body and r.body.get("vendor_seed")][-1]
    assert received.body["vendor_seed"] == -(10**25)
    assert received.body["messages"][0]["content"][0]["vendor"] == 10**30


def test_a_key_that_stands_twice_is_no_way_around_the_checks(api: Api) -> None:
    """What is checked is what is sent: the last one counts for both."""
    good, bad = '"temperature": 1', '"temperature": 9'
    for first, second, status in ((bad, good, 200), (good, bad, 400)):
        messages = json.dumps(asking()["messages"])
        body = f'{{"model": "fake", "messages": {messages}, {first}, {second}}}'
        assert api.post(CHAT, content=body).status_code == status
