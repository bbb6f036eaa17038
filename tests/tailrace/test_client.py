"""The client against a server that breaks in every way a network can."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

import tailrace
from tailrace import _http, backoff, connection
from tailrace.client import find_server
from tests.tailrace.server import SSE, Gateway, Reply, StandIn, frames, stand_in

ID = "chatcmpl-1"
TEXTS = ["Sluice", " gates", " — ", "größer", "\n\ndata: no\r\n", "水", "", "."]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    def delay(failures: int, *, first: float = 0, longest: float = 0) -> float:
        return 0.001

    monkeypatch.setattr(backoff, "delay", delay)


@pytest.fixture
def gateway() -> Gateway:
    gateway = Gateway()
    gateway.add(ID, TEXTS)
    return gateway


@pytest.fixture
async def server(gateway: Gateway) -> AsyncGenerator[StandIn]:
    async with stand_in(gateway) as server:
        yield server


@pytest.fixture
async def client(server: StandIn) -> AsyncGenerator[tailrace.Client]:
    async with tailrace.Client(server.url, "sk-test", end_user="ann") as client:
        yield client


async def collect(completion: tailrace.Completion, after: int = -1) -> list[tuple[int, str]]:
    return [(chunk.index, chunk.text) async for chunk in completion.chunks(after)]


WHOLE = list(enumerate(TEXTS))


async def test_submit_sends_what_was_asked_and_gives_a_handle(
    client: tailrace.Client, server: StandIn
) -> None:
    """Parameters go into the body, extras into headers, and the stream flags nowhere."""
    completion = await client.submit(
        model="m", messages=[], stream=True, timeout=9, sample=3, cache_control="no-cache"
    )
    (request,) = server.requests
    assert completion.id == "chatcmpl-0"
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.json() == {"model": "m", "messages": [], "timeout": 9}
    sent = request.headers
    assert (sent["prefer"], sent["authorization"]) == ("respond-async", "Bearer sk-test")
    assert (sent["x-on-behalf-of"], sent["x-sample"], sent["cache-control"]) == ("ann", "3", "no-cache")


async def test_a_submission_whose_answer_is_lost_is_sent_again_under_the_same_key(
    client: tailrace.Client, server: StandIn, gateway: Gateway
) -> None:
    """Torn answer, 503, a proxy's 502: four tries, one completion."""
    server.faults = [
        Reply.of({"id": "x"}),
        Reply.error(503, "unavailable", Retry_After="0"),
        Reply(502, b"<html>"),
    ]
    assert server.faults[0]
    server.faults[0].cut = 3
    completion = await client.submit(model="m", messages=[])
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(server.requests) == 4
    assert len(keys) == 1
    assert gateway.by_key[keys.pop()] == completion.id


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply.error(400, "invalid_request"), tailrace.InvalidRequest),
        (Reply.error(401, "invalid_api_key"), tailrace.Unauthenticated),
        (Reply.error(404, "model_not_found"), tailrace.NotFound),
        (Reply.error(409, "conflict"), tailrace.Conflict),
        (Reply.error(422, "idempotency_key_reused"), tailrace.InvalidRequest),
        (Reply.error(429, "limit", x_should_retry="false"), tailrace.RateLimited),
        (Reply.error(503, "unavailable", Retry_After="3600"), tailrace.Unavailable),
        (Reply.error(502, "provider_auth"), tailrace.APIError),
        (Reply.error(504, "cache_miss"), tailrace.APIError),
        (Reply(418, b"<b>teapot</b>"), tailrace.APIError),
    ],
)
async def test_a_final_refusal_is_raised_at_once(
    client: tailrace.Client, server: StandIn, reply: Reply, kind: type[tailrace.APIError]
) -> None:
    """What another try can't mend is not tried again, and keeps its code and request id."""
    server.faults = [reply]
    with pytest.raises(kind) as caught:
        await client.submit(model="m", messages=[])
    assert type(caught.value) is kind
    assert caught.value.status == reply.status
    assert len(server.requests) == 1
    if reply.status != 418:
        assert caught.value.code == json.loads(reply.body)["error"]["code"]
        assert caught.value.request_id == "req-1"


async def test_retry_after_is_honoured(client: tailrace.Client, server: StandIn) -> None:
    """A server that names a time is asked again no sooner."""
    server.faults = [Reply.error(429, "limit", Retry_After="0.3")]
    start = asyncio.get_running_loop().time()
    await client.models()
    assert asyncio.get_running_loop().time() - start >= 0.3


async def test_a_server_that_is_away_ends_in_connection_failed() -> None:
    """The error names the server; it is no httpx exception."""
    async with tailrace.Client("http://127.0.0.1:9", "k", retries=2) as client:
        with pytest.raises(tailrace.ConnectionFailed, match=r"http://127\.0\.0\.1:9"):
            await client.models()


async def test_chunks_arrive_in_order_from_any_index(client: tailrace.Client) -> None:
    """After N come exactly the chunks N+1 and up; past the end there are none."""
    completion = client.completion(ID)
    for after in range(-1, len(TEXTS)):
        assert await collect(completion, after) == WHOLE[after + 1 :]


async def test_a_stream_cut_at_any_byte_goes_on_without_gap_or_repeat(
    client: tailrace.Client, server: StandIn, gateway: Gateway
) -> None:
    """Every byte position of the response: a reset there, then the rest."""
    body = frames(gateway.chunks[ID], -1)
    for first in range(7):  # each stream is cut several times, at places that drift apart
        for cut in range(first, len(body), 49):
            server.faults = [Reply(200, body, SSE, cut=cut + 7 * n) for n in range(7)]
            assert await collect(client.completion(ID)) == WHOLE, f"first cut at {cut}"


async def test_a_stream_that_ends_without_an_end_is_resumed(
    client: tailrace.Client, server: StandIn, gateway: Gateway
) -> None:
    """A clean close after some chunks is not taken for the end; the next try asks from the last index seen."""
    server.faults = [
        Reply(200, frames(gateway.chunks[ID][:3], -1, end=""), SSE),
        Reply(502, b"proxy"),
        Reply.error(503, "unavailable"),
        Reply(200, b"<html>", {"Content-Type": "text/html"}),
    ]
    assert await collect(client.completion(ID)) == WHOLE
    assert [request.query["after"] for request in server.requests] == ["-1", "2", "2", "2", "2"]


async def test_a_silent_stream_is_given_up_and_resumed(
    client: tailrace.Client, server: StandIn, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that vanished without a word is noticed by the missing keep-alive comments."""
    monkeypatch.setattr(_http, "SILENCE", 0.2)
    server.faults = [Reply(200, frames(gateway.chunks[ID][:2], -1, end=""), SSE, hang=True)]
    assert await collect(client.completion(ID)) == WHOLE


async def test_a_stream_without_progress_gives_up(client: tailrace.Client, server: StandIn) -> None:
    """Endless cuts don't hang a reader: it gets an error after a bounded number of tries."""
    server.faults = [Reply(200, b": hello\n\n", SSE) for _ in range(100)]
    with pytest.raises(tailrace.ConnectionFailed, match="stopped before its end"):
        await collect(client.completion(ID))


async def test_a_reader_may_leave_and_come_back(client: tailrace.Client, server: StandIn) -> None:
    """Closing the iterator closes the connection; another one goes on behind it."""
    completion = client.completion(ID)
    async with aclosing(completion.chunks()) as chunks:
        first = [(chunk.index, chunk.text) async for chunk, _ in _both(chunks, 3)]
    assert first + await collect(completion, first[-1][0]) == WHOLE


async def _both(
    chunks: AsyncGenerator[tailrace.Chunk], count: int
) -> AsyncGenerator[tuple[tailrace.Chunk, int]]:
    for at in range(count):
        yield await anext(chunks), at


async def test_a_failure_reaches_the_reader_with_its_code(client: tailrace.Client, gateway: Gateway) -> None:
    """Chunks first, then CompletionFailed; also for a reader that comes back after the last chunk."""
    gateway.add("chatcmpl-f", ["a", "b"], "failed", code="provider_stalled", message="no chunk for 60 s")
    completion = client.completion("chatcmpl-f")
    chunks = completion.chunks()
    assert [(await anext(chunks)).index, (await anext(chunks)).index] == [0, 1]
    with pytest.raises(tailrace.CompletionFailed, match="provider_stalled: no chunk for 60 s"):
        await anext(chunks)
    with pytest.raises(tailrace.CompletionFailed) as caught:
        await collect(completion, 1)
    assert (caught.value.code, caught.value.type, caught.value.id) == (
        "provider_stalled",
        "provider_error",
        "chatcmpl-f",
    )
    with pytest.raises(tailrace.CompletionFailed):
        await completion.result()


async def test_an_error_of_the_way_is_no_error_of_the_completion(
    client: tailrace.Client, server: StandIn, gateway: Gateway
) -> None:
    """An error event while the completion is alive means: try this stream again."""
    server.faults = [
        Reply(200, frames(gateway.chunks[ID][:2], -1, "error", "unavailable: Redis is away"), SSE)
    ]
    assert await collect(client.completion(ID)) == WHOLE


async def test_abandoned_chunks_are_announced_and_a_result_survives_them(
    client: tailrace.Client, server: StandIn, gateway: Gateway
) -> None:
    """Whoever saw chunks of an attempt that was given up is told; who only wants the answer gets it."""
    gateway.status[ID] = "in_progress"
    restarted = Reply(200, frames(gateway.chunks[ID][:2], -1, "error", "restarted: start again from -1"), SSE)
    server.faults = [restarted]
    with pytest.raises(tailrace.Restarted, match="start again") as told:
        await collect(client.completion(ID))
    assert told.value.base == 3  # the event's id is that of the last abandoned chunk
    server.faults = [Reply.error(409, "restarted", "Start from -1.", x_base_index="7")]
    with pytest.raises(tailrace.Restarted, match="Start from -1") as told:
        await collect(client.completion(ID), 3)
    assert told.value.base == 7
    gateway.status[ID] = "completed"
    server.faults = [Reply.of({"id": ID, "status": "in_progress"}), restarted]
    assert await client.completion(ID).text() == "".join(TEXTS)


async def test_result_waits_for_the_end(client: tailrace.Client, server: StandIn, gateway: Gateway) -> None:
    """Also where the record lags behind the stream."""
    lagging = Reply.of({"id": ID, "status": "in_progress", "choices": []})
    server.faults = [lagging, None, lagging, Reply(204), lagging]
    result = await client.completion(ID).result()
    assert result["choices"][0]["message"]["content"] == "".join(TEXTS)


async def test_cancel_and_status(client: tailrace.Client, gateway: Gateway) -> None:
    completion = await client.submit(model="m", messages=[])
    assert await completion.status() == "completed"
    assert await completion.cancel() == "cancelled"
    with pytest.raises(tailrace.CompletionCancelled):
        await completion.result()
    with pytest.raises(tailrace.CompletionCancelled):
        await collect(completion)


async def test_list_walks_all_pages(
    client: tailrace.Client, server: StandIn, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters go along on every page; ``limit`` bounds the whole."""
    monkeypatch.setattr("tailrace.client.PAGE", 3)
    for number in range(2, 9):
        gateway.add(f"chatcmpl-{number}", [])
    found = [c["id"] async for c in client.list(status="completed", metadata={"run": "7"})]
    assert found == [f"chatcmpl-{number}" for number in range(1, 9)]
    assert [request.query.get("after") for request in server.requests] == [None, "chatcmpl-3", "chatcmpl-6"]
    assert {request.query["metadata[run]"] for request in server.requests} == {"7"}
    assert [c["id"] async for c in client.list(limit=4)] == found[:4]
    assert [c["id"] async for c in client.list(limit=0)] == []


async def test_two_hundred_streams_at_once(client: tailrace.Client) -> None:
    """No pool limit makes readers wait for one another."""
    collected = await asyncio.gather(*(collect(client.completion(ID)) for _ in range(200)))
    assert all(chunks == WHOLE for chunks in collected)


async def test_the_sync_face_does_the_same(server: StandIn) -> None:
    def use() -> None:
        with tailrace.SyncClient(server.url + "/v1/", "k") as client:
            completion = client.submit(model="m", messages=[])
            assert [chunk.text for chunk in completion.chunks()] == ["Hel", "lo"]
            assert next(completion.chunks(0)).index == 1
            assert completion.text() == "Hello"
            assert completion.status() == "completed"
            assert client.completion(ID).result()["id"] == ID
            assert {c["id"] for c in client.list()} == {ID, completion.id}
            assert client.models() == [{"id": "smollm2"}]
            left = client.completion(ID).chunks()
            next(left)
            left.close()
            with pytest.raises(tailrace.NotFound):
                client.completion("nobody").status()
            assert completion.cancel() == "cancelled"

    await asyncio.to_thread(use)
    assert not [t for t in threading.enumerate() if t.name == "tailrace-client"]


def test_the_server_is_found_in_environment_and_connection_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments before environment before connection.json; and no key goes to a server it isn't for."""
    for name in ("TAILRACE_URL", "TAILRACE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TAILRACE_HOME", str(tmp_path))
    find = find_server
    with pytest.raises(tailrace.NotConfigured, match="tailrace up"):
        find(None, None)
    connection.write(tmp_path, connection.Connection("http://127.0.0.1:8080", "sk-file"))
    assert (tmp_path / connection.FILE).stat().st_mode & 0o777 == 0o600
    assert find(None, None) == ("http://127.0.0.1:8080", "sk-file")
    assert find("http://127.0.0.1:8080/", None) == ("http://127.0.0.1:8080/", "sk-file")
    with pytest.raises(tailrace.NotConfigured, match="TAILRACE_API_KEY"):
        find("https://elsewhere", None)
    monkeypatch.setenv("TAILRACE_URL", "https://elsewhere")
    monkeypatch.setenv("TAILRACE_API_KEY", "sk-env")
    assert find(None, None) == ("https://elsewhere", "sk-env")
    assert find(None, "sk-arg") == ("https://elsewhere", "sk-arg")
    assert find(None, None, tmp_path) == ("http://127.0.0.1:8080", "sk-file")
    (tmp_path / connection.FILE).write_text("[]")
    with pytest.raises(tailrace.NotConfigured, match="not a connection file"):
        find(None, None, tmp_path)


def test_import_lives_beside_an_application_with_a_schemas_of_its_own(tmp_path: Path) -> None:
    """``import tailrace`` loads no other room, and leaves the application's ``schemas`` alone."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "__init__.py").write_text("OWNER = 'the application'\n")
    root = Path(__file__).parents[2]
    code = """
import sys, tailrace
rooms = {"schemas", "stores", "producers", "consumers", "workers", "gateway", "migrations"}
assert not rooms & set(sys.modules), rooms & set(sys.modules)
import schemas
assert schemas.OWNER == "the application"
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
