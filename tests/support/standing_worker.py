"""The Celery app of a worker whose main thread stands still for ever when remote control says ``stand``."""

import threading
from typing import Any

from celery.worker.control import control_command

from workers import steps
from workers.app import app

__all__ = ["app"]

steps.LOOK_PAUSE, steps.LOOKS = 0.1, 20


@control_command(name="stand")
def stand(state: Any) -> None:
    threading.Event().wait()
