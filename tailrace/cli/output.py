"""Writing to standard output and standard error."""

from __future__ import annotations

import os
import sys


def say(line: str) -> None:
    """A line of progress; it does no harm when nobody reads it."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        close_output()


def warn(line: str) -> None:
    """A line about trouble."""
    print("tailrace: " + " ".join(line.split()), file=sys.stderr, flush=True)


def close_output() -> None:
    """Whoever read our output has gone: let the rest of it go nowhere, the interpreter's last flush too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
