"""Outlives a supervisor that was killed, and takes its processes along.

Runs as a process of its own with the standard library alone. Standard input is a pipe from the supervisor and tells it
the process groups: ``+<pgid>``, ``+<pgid> last`` (to be stopped after the others), ``-<pgid>``, one a line. The pipe
closes when the supervisor ends, whichever way; what is still on the list then is stopped.
"""

from __future__ import annotations

import os
import signal
import sys
import time

#: Seconds between SIGTERM and SIGKILL.
GRACE = 3.0


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, bool] = {}
    for line in sys.stdin:
        group, _, last = line[1:].strip().partition(" ")
        if line.startswith("+"):
            groups[int(group)] = last == "last"
        else:
            groups.pop(int(group), None)
    stop([group for group, last in groups.items() if not last])
    stop([group for group, last in groups.items() if last])


def stop(groups: list[int]) -> None:
    """SIGTERM, then SIGKILL to what is left."""
    deadline = time.monotonic() + GRACE
    groups = [group for group in groups if send(group, signal.SIGTERM)]
    while groups and time.monotonic() < deadline:
        time.sleep(0.02)
        groups = [group for group in groups if send(group, 0)]
    for group in groups:
        send(group, signal.SIGKILL)


def send(group: int, number: int) -> bool:
    """Whether there was a process to get it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of a group of zombies
        return False
    return True


if __name__ == "__main__":
    main()
