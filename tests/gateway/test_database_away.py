"""The database is gone, or says nothing, for a while: what needs it is 503 soon, and all else goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager

import httpx
import pytest

from schemas.keys import Keys
from tests.support.api import CHAT, Api, asking, error_of, ordered, text_of
from tests.support.postgres import PostgresServer
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

#: Chunks of a stream that lasts longer than its worker's lease and than keys are trusted without asking.
LONG = {"chunks": 300, "interval_ms": 20}

Outage = Callable[[PostgresServer], AbstractContextManager[None]]


@contextmanager
def stopped(server: PostgresServer) -> Generator[None]:
    server.stop()
    yield
    server.start()


def silent(server: PostgresServer) -> AbstractContextManager[None]:
    return server.paused()


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def fragile_stack(own_server: PostgresServer) -> Iterator[Stack]:
    with Stack(database_url=own_server.create_database()) as stack:
        yield stack
        stack.check_balanced()


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert error_of(answer)["code"] == "unavailable"


@pytest.mark.parametrize("outage", [stopped, silent])
def test_streams_go_on_and_the_books_catch_up(
    fragile_stack: Stack, own_server: PostgresServer, outage: Outage
) -> None:
    """A key in use asks, streams and reads; the rest is 503 within seconds; afterwards SQL has everything once."""
    stack = fragile_stack
    with ExitStack() as exits:
        known, stranger = exits.enter_context(stack.api()), exits.enter_context(stack.api())
        wait_until(lambda: known.get("/v1/models").status_code == 200, what="end of an outage before")
        old = known.seed().id
        stack.forget(old)
        stream = exits.enter_context(known.events(asking("running", fake=LONG)))
        frames = stream.next(3)
        lag = len(ledger_of(stack))
        with outage(own_server):
            ids = [known.seed("meanwhile").id]
            needs_sql = (
                lambda: stranger.get("/v1/models"),
                lambda: known.get(f"{CHAT}/{old}"),
                lambda: known.get(f"{CHAT}/{old}/stream"),
                lambda: known.get(CHAT),
                lambda: known.delete(f"{CHAT}/{ids[0]}"),
            )
            for ask in needs_sql:
                refused(ask())
            until = time.monotonic() + 3 * 2.0  # three times as long as a key is trusted without asking
            while time.monotonic() < until:
                answer = known.plain("meanwhile")
                assert answer.json()["choices"][0]["message"]["content"] == ordered()
                ids.append(answer.headers["x-completion-id"])
                assert known.get("/v1/models").status_code == 200
                assert known.stored(ids[-1])["status"] == "completed"
            frames += stream.rest()
            for ask in needs_sql:
                refused(ask())
            assert text_of([f.data for f in frames]) == ordered(300)
            assert len(ledger_of(stack)) >= lag + 2 * len(ids)
            assert all(part.alive for part in stack.parts.values())
        wait_until(lambda: known.get(f"{CHAT}/{old}").status_code == 200, what="the database's answers")
        rows = stack.settled(stream.id, *ids)
        assert all(row.usage is not None and row.usage.attempts == 1 for row in rows)
        wait_until(lambda: stranger.get("/v1/models").status_code == 200, what="answer for the other key")


def ledger_of(stack: Stack) -> list[object]:
    entries: list[object] = stack.redis.xrange(Keys(0).ledger)  # type: ignore[assignment]
    return entries


def test_a_restart_between_two_requests_is_not_noticed(
    fragile_stack: Stack, own_server: PostgresServer
) -> None:
    """Connections that the server closed while nobody used them are replaced."""
    with fragile_stack.api() as api:
        wait_until(lambda: api.get("/v1/models").status_code == 200, what="end of an outage before")
        done = api.seed().id
        fragile_stack.forget(done)
        for _ in range(3):
            assert api.stored(done)["status"] == "completed"
            own_server.restart()
        assert api.stored(done)["status"] == "completed"


def test_many_who_need_a_silent_database(fragile_stack: Stack, own_server: PostgresServer) -> None:
    """However many wait, each is told so, and a key in use goes first."""
    with fragile_stack.api() as api:
        wait_until(lambda: api.get("/v1/models").status_code == 200, what="end of an outage before")
        done = api.seed().id
        fragile_stack.forget(done)
        with own_server.paused():
            assert crowd(api, f"{CHAT}/{done}", 200) == [503] * 200
            assert api.plain().status_code == 200
        wait_until(lambda: api.get(f"{CHAT}/{done}").status_code == 200, what="the database's answers")


def crowd(api: Api, path: str, number: int) -> list[int]:
    """The statuses of the same request, by many at once."""

    def ask(_: int) -> int:
        return httpx.get(
            f"{api.base_url}{path}",
            headers={"Authorization": f"Bearer {api.api_key}"},
            timeout=60,
            trust_env=False,
            verify=False,
        ).status_code

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(ask, range(number)))
