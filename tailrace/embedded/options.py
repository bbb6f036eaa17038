"""What a caller may choose about an embedded stack, and how it fails."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tailrace.errors import TailraceError

#: Streams at once in one interactive worker. Threads are cheap, as the bytes flow on one event loop.
CONCURRENCY = 128


class StackError(TailraceError):
    """The stack can't start, or can't be kept running. One line that says what to change."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """``port`` 0 takes any free one. ``say`` gets the lines about progress, ``warn`` those about trouble.

    ``environment`` is where ``TAILRACE_*`` is looked up, and what the processes inherit.
    """

    home: Path
    say: Callable[[str], None]
    warn: Callable[[str], None]
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    concurrency: int = CONCURRENCY
    flower: bool = True
    local_model: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(os.environ))
