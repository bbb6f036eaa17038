"""Finding processes that a test run left behind."""

from __future__ import annotations

import os
import uuid

import psutil

_VARIABLE = "TAILRACE_TEST_RUN"


def mark_environment() -> None:
    """Every process started from now on carries this run's mark, also one whose parent has died."""
    os.environ[_VARIABLE] = uuid.uuid4().hex


def left_behind() -> list[psutil.Process]:
    """Live processes that this run started, itself not counted."""
    mark = os.environ[_VARIABLE]
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(_VARIABLE) == mark
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
