"""SIGTERM to a worker process: what it has ends, what it has not begun is another's."""

from __future__ import annotations

import signal
import threading
import time

from tests.support.api import asking
from tests.support.stack import Stack

#: The most that a worker may take, in seconds: 4 for its streams, and some for a busy machine.
PATIENCE = 15.0


def test_a_worker_that_streams_stops_and_its_readers_get_an_end() -> None:
    """The runtime outlives the tasks that it carries; the pool waits for them."""
    with Stack() as stack, stack.api() as api:
        worker = stack.parts["interactive0"]
        with api.events(asking(fake={"stall_after": 3})) as stream:
            assert len(stream.next(3)) == 3
            assert worker.process
            worker.process.send_signal(signal.SIGTERM)
            assert stream.rest()[-1].data.startswith("worker_stopped: ")
            assert worker.process.wait(PATIENCE) == 0
        (row,) = stack.settled(stream.id)
        assert row.generation
        assert row.generation.failure
        assert row.generation.failure.code == "worker_stopped"
        assert "Traceback" not in worker.log.read_text()


def test_workers_that_come_and_go_lose_no_message() -> None:
    """A message that a worker takes from its queue while it stops goes back."""
    with Stack(concurrency=64) as stack, stack.api() as api:
        accepted: list[str] = []
        enough = threading.Event()

        def submit() -> None:
            while not enough.is_set():
                accepted.append(api.background())

        submitting = threading.Thread(target=submit)
        submitting.start()
        name = "interactive0"
        try:
            for number in range(1, 4):
                before = len(accepted)
                while len(accepted) < before + 100:
                    time.sleep(0.01)
                worker = stack.parts.pop(name).process
                assert worker
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(PATIENCE) == 0
                name = f"interactive{number}"
                stack.add_worker(name, "interactive", 64)
        finally:
            enough.set()
            submitting.join()
        assert {row.status.value for row in stack.settled(*accepted)} == {"completed"}
