"""SIGTERM to a worker process: what it streams gets an end, what it has not begun is another's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from tests.support.api import asking
from tests.support.stack import Stack
from tests.support.valkey import wait_until

#: The most that a worker may take, in seconds: 4 for its streams, and some for a busy machine.
PATIENCE = 15.0
#: Messages that are on their way before a worker is stopped.
FLOOD = 60


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Without interactive workers: each test has its own."""
    with Stack(interactive=0) as stack:
        yield stack


def stop(stack: Stack, name: str) -> None:
    worker = stack.parts.pop(name)
    assert worker.process
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(PATIENCE) == 0
    assert "Traceback" not in worker.log.read_text()


def test_a_worker_that_streams_stops_and_its_reader_gets_an_end(stack: Stack) -> None:
    """The process waits for its streams, and they don't wait for ever."""
    stack.add_worker("streams", "interactive", 4)
    with stack.api() as api, api.events(asking(fake={"stall_after": 3})) as stream:
        assert len(stream.next(3)) == 3
        stop(stack, "streams")
        assert stream.rest()[-1].data.startswith("worker_stopped: ")
    (row,) = stack.settled(stream.id)
    assert row.generation
    assert row.generation.failure
    assert row.generation.failure.code == "worker_stopped"


@contextmanager
def flood(stack: Stack, accepted: list[str]) -> Generator[None]:
    """Submit completions without a pause for as long as the ``with`` lasts."""
    enough = threading.Event()

    def submit() -> None:
        with stack.api() as api:
            while not enough.is_set():
                accepted.append(api.background())

    submitting = threading.Thread(target=submit)
    submitting.start()
    try:
        yield
    finally:
        enough.set()
        submitting.join()


def test_workers_that_come_and_go_lose_no_message(stack: Stack) -> None:
    """A message that a worker takes from its queue while it stops goes back to the queue."""
    accepted: list[str] = []
    for name in ("first", "second"):
        stack.add_worker(name, "interactive", 64)
        before = len(accepted)
        with flood(stack, accepted):
            wait_until(lambda n=before: len(accepted) > n + FLOOD, what="flood")
            stop(stack, name)
    stack.add_worker("last", "interactive", 64)
    try:
        assert {row.status.value for row in stack.settled(*accepted)} == {"completed"}
    finally:
        stop(stack, "last")
