"""The ``tailrace`` command as a person runs it: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "tailrace", *arguments]


def environment(**changed: str) -> dict[str, str]:
    """This process's, with the project in reach of any folder; ``changed`` are ``TAILRACE_*``."""
    return {**os.environ, "PYTHONPATH": _path(), **{f"TAILRACE_{k}": v for k, v in changed.items()}}


def _path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def run(
    *arguments: str,
    settings: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 90,
) -> subprocess.CompletedProcess[str]:
    """Run to its end."""
    return subprocess.run(
        command(*arguments),
        env=environment(**(settings or {})),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(*arguments: str, settings: Mapping[str, str], cwd: Path) -> subprocess.Popen[str]:
    """Begin; what it says, on either stream, is in ``stdout``."""
    return subprocess.Popen(
        command(*arguments),
        env=environment(**settings),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def complaint(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on standard error of a command that ended with ``code``."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("tailrace: ")
    return line
