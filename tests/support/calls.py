"""What a provider saw, from the fake backend's own log: how many calls at once, and in any window."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.backend import Received


def most_at_once(calls: Sequence[Received]) -> int:
    """A call is there from its request to the end of its answer, or for ever."""
    events = [(call.at, 1) for call in calls]
    events += [(call.ended_at, -1) for call in calls if call.ended_at is not None]
    most = running = 0
    for _, change in sorted(events):
        running += change
        most = max(most, running)
    return most


def most_in_window(calls: Sequence[Received], seconds: float) -> int:
    """Calls in any half-open window of so many seconds."""
    times = sorted(call.at for call in calls)
    most = first = 0
    for at, time in enumerate(times):
        while time - times[first] >= seconds:
            first += 1
        most = max(most, at - first + 1)
    return most
