"""Questions in, results out: two JSONL files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tailrace
from tailrace.errors import TailraceError

#: Where the questions are, seen from the folder of the caller or from that of the project.
EXAMPLE = Path("examples/questions.jsonl")


@dataclass(frozen=True, slots=True)
class Question:
    """A row: the caller's own id, and the parameters of the request."""

    custom_id: str
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The last message's."""
        messages: list[dict[str, Any]] = self.body.get("messages") or [{}]
        return str(messages[-1].get("content", ""))


def find() -> Path:
    """Raises TailraceError."""
    for folder in (Path.cwd(), Path(tailrace.__file__).parents[1]):
        if (folder / EXAMPLE).exists():
            return folder / EXAMPLE
    raise TailraceError(f"there is no {EXAMPLE} here: name a file with --questions")


def load(path: Path) -> list[Question]:
    """Rows ``{"custom_id": …, "body": {…}}``, at least two of them. Raises TailraceError naming file and line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TailraceError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    found: list[Question] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            body = row["body"]
            if not isinstance(body, dict):
                raise TypeError
            found.append(Question(str(row.get("custom_id", number)), cast("dict[str, Any]", body)))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TailraceError(
                f'{path}, line {number}: a row is {{"custom_id": "…", "body": {{…}}}}'
            ) from None
    if len(found) < 2:
        raise TailraceError(f"{path} has {len(found)} questions: the tour needs two at least")
    return found


def save(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
