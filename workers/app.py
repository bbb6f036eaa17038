"""The Celery app: ``celery -A workers.app worker``.

Celery carries dispatch, routing, scaling and Flower's view. A task lasts as long as its generation streams; the bytes
flow on the process's own asyncio loop (``workers/runtime.py``).
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery import Celery, bootsteps, signals

from schemas.errors import TailraceError
from schemas.messaging import GENERATE, HOUSEKEEPING, WakeUp, celery_config
from schemas.records import VERSION
from schemas.settings import Settings
from schemas.states import Queue
from workers.runtime import Runtime

log = logging.getLogger("tailrace.worker")

#: Between runs of the periodic house-keeping, in seconds.
HOUSEKEEPING_PERIOD = 600.0

app = Celery("tailrace")
app.conf.update(celery_config(Settings()))
app.conf.beat_schedule = {
    "housekeeping": {
        "task": HOUSEKEEPING,
        "schedule": HOUSEKEEPING_PERIOD,
        "options": {"queue": Queue.BULK.value, "expires": HOUSEKEEPING_PERIOD},
    }
}


class RuntimeStep(bootsteps.StartStopStep):
    """Starts the loop and the control thread before the worker takes its first message."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._runtime: Runtime | None = None

    def start(self, parent: Any) -> None:
        try:
            self._runtime = Runtime(Settings())
            self._runtime.start()
        except TailraceError as error:
            print(f"tailrace: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        app.runtime = self._runtime  # type: ignore[attr-defined]
        signals.worker_shutting_down.connect(self._on_shutdown, weak=False)

    def stop(self, parent: Any) -> None:
        if self._runtime is not None:
            self._runtime.stop()
            self._runtime = None

    terminate = stop

    def _on_shutdown(self, **_: Any) -> None:
        if self._runtime is not None:
            self._runtime.drain()


app.steps["worker"].add(RuntimeStep)


@app.task(name=GENERATE)
def generate(message: WakeUp) -> str:
    """One attempt at one generation."""
    if message["v"] > VERSION:
        log.error("a message of version %s: update this worker", message["v"])
        return "newer"
    runtime: Runtime = app.runtime  # type: ignore[attr-defined]
    return runtime.generate(message["id"], message["queue"], message["seq"])


@app.task(name=HOUSEKEEPING)
def housekeeping() -> int:
    """Drops texts that no stored completion points to; returns how many."""
    runtime: Runtime = app.runtime  # type: ignore[attr-defined]
    return runtime.books().drop_orphaned_results()
