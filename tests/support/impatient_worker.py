"""The Celery app of a worker that acknowledges the messages of long tasks after a second rather than after minutes."""

from workers import steps
from workers.app import app

__all__ = ["app"]

steps.ACKNOWLEDGE_AFTER, steps.ACKNOWLEDGE_PERIOD = 1.0, 0.2
