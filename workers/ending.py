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
from typing import NoReturn

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
