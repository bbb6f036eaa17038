"""Ending a process that is of no more use, so that whoever supervises it starts another one.

Work that it held goes on elsewhere when its leases run out, and its log says where its threads stood.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from typing import Any, NoReturn

log = logging.getLogger("tailrace.worker")

#: How long a worker may take to end after SIGTERM, in seconds. Its streams are handed on long before that.
EXIT_SECONDS = 25.0


def end(why: str) -> NoReturn:
    """End the process now, with 1, and tell where its threads stand."""
    try:
        log.error("%s: this process is ended", why)
        if sys.__stderr__ is not None:  # not sys.stderr, in whose place Celery puts its log
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    finally:
        os._exit(1)


def end_within(seconds: float) -> None:
    """End the process if it is still there then."""

    def wait() -> None:
        time.sleep(seconds)
        end(f"the worker had not stopped within {seconds:g} s")

    threading.Thread(target=wait, name="exit", daemon=True).start()


class StandstillWatch:
    """Ends the process when Celery's thread stands still between two turns of its hub.

    It is looked at every ``pause`` seconds, and that must have been in vain ``looks`` times: a process that was stopped
    as a whole makes no looks, however long it was.
    """

    def __init__(self, hub: Any, *, pause: float, looks: int) -> None:
        self._hub = hub
        self._pause, self._looks = pause, looks
        self._turns = 0
        self._over = threading.Event()

    def start(self) -> None:
        self._hub.on_tick.add(self._turn)
        threading.Thread(target=self._watch, name="standstill", daemon=True).start()

    def stop(self) -> None:
        """The hub is not to turn any more: the broker is away, or the worker ends."""
        self._hub.on_tick.discard(self._turn)
        self._over.set()

    def _turn(self) -> None:
        self._turns += 1

    def _watch(self) -> None:
        seen = stood = 0
        while stood < self._looks:
            if self._over.wait(self._pause):
                return
            stood = stood + 1 if self._turns == seen else 0
            seen = self._turns
        end("Celery's thread stands still and takes no messages")
