"""Redis goes away under live streams: they go on when it is back, or end with an error that says how to resume."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import uvicorn

from consumers import follow as follow_module
from gateway.app import make_app
from gateway.server import Protocol
from schemas.settings import Settings
from stores.redis import PATIENCE
from stores.wire import REPLY_TIMEOUT
from tests.support.api import CHAT, SEED, Api, EventStream, Frame, asking, dump, ordered, text_of
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

#: An answer of some 20 s.
CHUNKS = 400
ORDER = {"chunks": CHUNKS, "interval_ms": 50}
#: When the gateway has tried to put its message and to take the work back, in seconds, and would go on to its key.
UNDONE = 2.4 * PATIENCE


@pytest.fixture(scope="module")
def mortal() -> Iterator[Stack]:
    """A stack whose Valkey is killed and stopped; its data are in an append-only file, each write as it is made.

    Leases outlast what happens, so that each answer is that of one attempt.
    """
    with Stack(appendonly=True, settings={"LEASE_SECONDS": "60"}) as stack:
        stack.redis.config_set("appendfsync", "always")
        yield stack


class Reader(threading.Thread):
    """Reads a stream to its end."""

    def __init__(self, stream: EventStream) -> None:
        super().__init__()
        self.stream = stream
        self.frames: list[Frame] = []
        self.start()

    def run(self) -> None:
        self.frames = self.stream.rest()


@contextmanager
def reading(api: Api) -> Generator[list[Reader]]:
    """A stream of each kind, of which something was read."""
    with ExitStack() as stack:
        body = asking(stream=True, fake=ORDER)
        streams = [stack.enter_context(api.events(body, url=url)) for url in (SEED, CHAT)]
        for stream in streams:
            stream.next(3)
        yield [Reader(stream) for stream in streams]


def waiting(api: Api, answers: list[httpx.Response]) -> threading.Thread:
    """Somebody who waits for a whole answer."""

    def ask() -> None:
        with Api(str(api.base_url), api.api_key, tenant=api.tenant, backend=api.backend) as other:
            other.timeout = httpx.Timeout(120)
            answers.append(other.post(CHAT, content=dump(asking(fake=ORDER))))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def killed(stack: Stack) -> None:
    stack.valkey.kill()
    stack.valkey.start()


def silent(stack: Stack) -> None:
    """For longer than anybody waits for a reply."""
    stack.valkey.pause()
    threading.Event().wait(REPLY_TIMEOUT + 3)
    stack.valkey.resume()


@pytest.mark.parametrize("happen", [killed, silent])
def test_live_streams_go_on(mortal: Stack, happen: Callable[[Stack], None]) -> None:
    """Nothing is missing and nothing comes twice, on either endpoint and for who waits for the whole."""
    answers: list[httpx.Response] = []
    with mortal.api() as api, reading(api) as readers:
        whole = waiting(api, answers)
        wait_until(lambda: len(api.get(CHAT).json()["data"]) == 3, what="third completion")
        happen(mortal)
        for reader in readers:
            reader.join(90)
            assert not reader.is_alive()
        whole.join(90)
        seed, openai = readers
        assert [f.id for f in seed.frames] == list(range(3, CHUNKS + 4))
        assert seed.frames[-1].event == "done"
        assert openai.frames[-1].data == "[DONE]"
        for reader in readers:
            assert text_of(f.data for f in reader.frames) == ordered(CHUNKS).removeprefix(ordered(2))
        (answer,) = answers
        assert answer.json()["choices"][0]["message"]["content"] == ordered(CHUNKS)
        mortal.settled(*(reader.stream.id for reader in readers))


def test_a_worker_that_stands_still_meanwhile_takes_work_again(mortal: Stack) -> None:
    """It finds all its connections closed, and a Valkey that is there: whichever it looks at first."""
    with mortal.api() as api:
        for _ in range(3):
            with mortal.paused("interactive0"):
                killed(mortal)
            assert api.plain(api.tenant).status_code == 200


@pytest.fixture
def impatient(mortal: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a gateway in this process, which waits for a Redis that is away no longer than it has to."""
    monkeypatch.setattr(follow_module, "OUTAGE", 0.0)
    for name, value in mortal.environment.items():
        if name.startswith("TAILRACE_"):
            monkeypatch.setenv(name, value)
    port = free_port()
    app = make_app(Settings())
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, http=Protocol, ws="none", lifespan="on", log_level="error")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, what="gateway")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def test_a_stream_that_can_wait_no_longer_says_how_to_resume(mortal: Stack, impatient: str) -> None:
    """Index and headers are in the error; with them the same request goes on where the stream ended."""
    with mortal.api() as api:
        other = Api(impatient, api.api_key, tenant=api.tenant, backend=api.backend)
        with other, reading(other) as readers:
            mortal.valkey.kill()
            for reader in readers:
                reader.join(60)
                assert not reader.is_alive()
        mortal.valkey.start()
        seed, openai = readers
        (*chunks, last) = seed.frames
        assert last.event == "error"
        assert last.data.startswith("unavailable: Redis is not available")
        error = openai.frames[-1].data["error"]
        assert error["code"] == "unavailable"
        tail = (chunks[-1].id or 0) if chunks else 2
        for reader, message, had in (
            (seed, last.data, tail),
            (openai, error["message"], 2 + len(openai.frames) - 1),
        ):
            completion_id = reader.stream.id
            assert message.endswith(
                f"Resume with 'x-last-chunk-index: {had}' and 'x-completion-id: {completion_id}'."
            )
            headers = {"x-last-chunk-index": str(had), "x-completion-id": completion_id}
            rest = api.seed(headers=headers)
            assert list(rest.chunks) == list(range(had + 1, CHUNKS + 3))
            assert rest.last.event == "done"


def silent_for_long(stack: Stack) -> None:
    """As a host that loses its power: nobody is told that the connection is gone."""
    stack.valkey.pause()
    time.sleep(REPLY_TIMEOUT + 1)
    killed(stack)


@pytest.mark.parametrize("lost", [killed, silent_for_long])
def test_what_redis_forgets_is_accepted_again(lost: Callable[[Stack], None]) -> None:
    """Here it forgets all. Nobody is told that there is no such completion, each one is finished once, and who has read
    of the one that was lost is told that it starts again."""
    old, new = [f"old{i} " for i in range(200)], [f"new{i} " for i in range(20)]
    orders = [{"pieces": old, "interval_ms": 100}, {"pieces": new, "interval_ms": 20}]
    with Stack() as stack, stack.api() as api:
        headers = {"Idempotency-Key": "once", "Prefer": "respond-async"}
        body = asking(fake={"chunks": 5, "first_delay_ms": 1000})
        over, over_headers = asking("over"), {**headers, "Idempotency-Key": "over"}
        with api.events(asking(temperature=1, fake=orders)) as stream:
            frames = stream.next(4)
            keyed = api.post(CHAT, content=dump(body), headers=headers).json()["id"]
            in_books = api.post(CHAT, content=dump(over), headers=over_headers).json()["id"]
            stack.settled(in_books)
            lost(stack)
            assert api.get(f"{CHAT}/{keyed}").status_code == 200
            assert api.post(CHAT, content=dump(over), headers=over_headers).json()["id"] == in_books
            assert api.post(CHAT, content=dump(body), headers=headers).json()["id"] == keyed
            frames += stream.rest()
        assert frames[-1].event == "error"
        assert frames[-1].data.startswith("restarted: ")
        assert "".join(old).startswith(text_of(frame.data for frame in frames))
        rows = stack.settled(stream.id, keyed)
        assert [row.status for row in rows] == ["completed"] * 2
        whole = api.follow(stream.id)
        assert whole.text == "".join(new)
        assert min(whole.chunks) > len(old)  # no index is used again
        assert not stack.balanced()


def test_what_redis_forgets_of_shared_answers() -> None:
    """A join and a hit come back with their Idempotency-Keys: a retry has the same completion."""
    with Stack() as stack, stack.api() as api:
        answered, running = (
            dump(asking(content, temperature=0, fake={"chunks": 40, "interval_ms": interval}))
            for content, interval in (("answered", 0), ("running", 100))
        )

        def ask(body: bytes, key: str) -> tuple[str, str]:
            answer = api.post(CHAT, content=body, headers={"Idempotency-Key": key, "Prefer": "respond-async"})
            return answer.json()["id"], answer.headers["x-cache"]

        first, _ = ask(answered, "first")
        stack.settled(first)
        asked = {
            key: ask(body, key) for body, key in ((running, "creator"), (running, "join"), (answered, "hit"))
        }
        assert [outcome for _, outcome in asked.values()] == ["miss", "join", "hit"]
        killed(stack)
        for completion_id, _ in asked.values():
            assert api.get(f"{CHAT}/{completion_id}").status_code == 200
        again = {key: ask(answered if key == "hit" else running, key) for key in asked}
        assert again == asked
        ids = [completion_id for completion_id, _ in asked.values()]
        assert [row.status for row in stack.settled(*ids)] == ["completed"] * 3
        assert {row.generation_id for row in stack.settled(*ids[:2])} == {ids[0]}
        assert not stack.balanced()


def test_a_key_stands_for_what_could_not_be_taken_back(mortal: Stack) -> None:
    """A gateway that can put no message can't take the work back either, for Redis is gone: a retry goes on with it."""
    port = free_port()
    mortal.add_gateway("brokerless", port, TAILRACE_BROKER_URL=f"redis://127.0.0.1:{free_port()}/0")
    answers: list[httpx.Response] = []
    with mortal.api() as api:
        headers = {"Idempotency-Key": "once", "Prefer": "respond-async"}
        body = dump(asking(fake={"chunks": 3}))

        def ask() -> None:
            url = f"http://127.0.0.1:{port}{CHAT}"
            answers.append(httpx.post(url, content=body, headers={**api.headers, **headers}, timeout=60))

        asker = threading.Thread(target=ask)
        asker.start()
        wait_until(lambda: bool(mortal.redis.keys("tailrace:*:req:*")), what="acceptance")
        mortal.valkey.kill()
        time.sleep(UNDONE)
        mortal.valkey.start()
        asker.join()
        assert [answer.status_code for answer in answers] == [503]
        again = api.post(CHAT, content=body, headers=headers).json()["id"]
        mortal.settled(again)
        data = api.get(CHAT).json()["data"]
        assert [one["id"] for one in data if one["status"] != "cancelled"] == [again]
    mortal.remove("brokerless", signal.SIGTERM)
