"""The states of a generation. ``docs/states.md`` has the machine: transitions, scripts, crash points."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """As stored in the ``state`` field of a generation's hash and in SQL."""

    QUEUED = "queued"
    LEASED = "leased"
    PARKED = "parked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in ENDED

    @property
    def public(self) -> str:
        """The ``status`` that a client sees: ``queued``, ``in_progress``, ``completed``, ``failed``, ``cancelled``."""
        if self is State.LEASED:
            return "in_progress"
        return "queued" if self is State.PARKED else self.value


ENDED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

#: Every ``status`` that a client can see or filter by.
PUBLIC_STATUSES = ("queued", "in_progress", "completed", "failed", "cancelled")


class OnDisconnect(StrEnum):
    """What becomes of a completion whose client leaves before it has its answer: ``x-on-disconnect``."""

    CONTINUE = "continue"
    CANCEL = "cancel"


class Queue(StrEnum):
    """The Celery queues; each is served by workers of its own."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


def other(queue: str) -> str:
    """The queue that it is not."""
    return (Queue.INTERACTIVE if queue == Queue.BULK.value else Queue.BULK).value
