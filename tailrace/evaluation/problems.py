"""What is wrong with a suite file, told all at once: each in a line of its own, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tailrace.errors import Problems, TailraceError


class Problem(NamedTuple):
    """``line`` counts from 1; 0 is the command line, whose option is then the ``field``. None is the file as such."""

    line: int | None
    field: str | None
    message: str


class Unreadable(Exception):
    """The file can't be read beyond this."""

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(line, None, message)


def told(path: Path, problems: Iterable[Problem]) -> TailraceError:
    """One error for all of them."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem.line or 0)
    return Problems("\n".join(_line(path, problem) for problem in ordered))


def _line(path: Path, problem: Problem) -> str:
    place = {None: f"{path}: ", 0: ""}.get(problem.line, f"{path}:{problem.line}: ")
    field = f"{problem.field}: " if problem.field else ""
    return f"{place}{field}{problem.message}"
