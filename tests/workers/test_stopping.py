"""SIGTERM to a worker process: others go on with what it streams, and begin what it has not begun."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from tests.support.api import asking, ordered, text_of
from tests.support.stack import ROOT, Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

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


def test_another_worker_goes_on_with_what_a_stopped_one_streamed(stack: Stack) -> None:
    """The reader of a deterministic stream notices nothing, and no worker counts as lost."""
    stack.add_worker("streams", "interactive", 4)
    orders = [{"chunks": 300, "interval_ms": 50}, {"chunks": 300, "interval_ms": 1}]
    with stack.api() as api, api.events(asking(temperature=0, fake=orders)) as stream:
        frames = stream.next(3)
        stop(stack, "streams")
        frames += stream.rest()
        assert frames[-1].event == "done"
        assert [frame.id for frame in frames] == list(range(len(frames)))
        assert text_of(frame.data for frame in frames) == ordered(300)
    stack.settled(stream.id)
    assert stack.attempts(stream.id) == [(1, "released"), (2, "completed")]
    assert "crashes" not in stack.state(stream.id)


def test_a_stream_that_ends_soon_is_not_handed_on(stack: Stack) -> None:
    stack.add_worker("streams", "interactive", 4)
    with (
        stack.api() as api,
        api.events(asking(temperature=1, fake={"chunks": 30, "interval_ms": 50})) as stream,
    ):
        frames = stream.next(3)
        stop(stack, "streams")
        frames += stream.rest()
        assert frames[-1].event == "done"
    stack.settled(stream.id)
    assert stack.attempts(stream.id) == [(1, "completed")]


def test_a_rolling_restart_under_load(stack: Stack) -> None:
    """Two workers, one after the other, with a hundred deterministic streams: no reader sees an error."""
    for name in ("a", "b"):
        stack.add_worker(name, "interactive", 64)
    order = [{"chunks": 150, "interval_ms": 80}, {"chunks": 150, "interval_ms": 40}, {"chunks": 150}]
    with stack.api() as api:
        ids = [api.background(f"{number}", temperature=0, fake=order) for number in range(100)]
        for name in ("a", "b"):
            stop(stack, name)
            stack.add_worker(f"{name}'", "interactive", 64)
        for completion_id in ids:
            whole = api.follow(completion_id)
            assert whole.last.event == "done"
            assert list(whole.chunks) == list(range(len(whole.chunks)))
            assert whole.text == ordered(150)
    stack.settled(*ids)
    states = {state for completion_id in ids for _, state in stack.attempts(completion_id)}
    assert states <= {"released", "completed"}
    for name in ("a'", "b'"):
        stop(stack, name)


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


def test_a_worker_that_can_not_stop_is_ended() -> None:
    """Whatever its threads wait for; they are told, so that somebody can find out. Celery has its log for stderr."""
    code = (
        "import threading; from celery import Celery; from workers.ending import end_within; "
        "Celery().log.setup(redirect_stdouts=True); end_within(0.3); threading.Event().wait(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "not stopped within 0.3 s" in done.stderr
    assert "most recent call first" in done.stderr
