"""``tailrace batch`` as processes in a folder, and rows for the fake backend."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.stack import Stack
from tests.tailrace.command import run, start

SECONDS = 90.0


class Batch:
    """The commands, in a folder of their own."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.settings = settings

    def write(self, rows: Sequence[Any], name: str = "in.jsonl") -> None:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("batch", *arguments, settings=self.settings, cwd=self.folder)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return start("batch", *arguments, settings=self.settings, cwd=self.folder)

    def lines(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {"home", "providers.toml"}

    def list(self) -> list[dict[str, Any]]:
        return json.loads(self("list", "--json").stdout)


def rows(count: int, **order: Any) -> list[dict[str, Any]]:
    """Rows of the Batch format for the fake backend."""
    return [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "fake",
                "messages": [{"role": "user", "content": f"question {n}"}],
                "fake": {"chunks": 2, **order},
            },
        }
        for n in range(count)
    ]


def asked(stack: Stack, api_rows: Callable[[str], bool]) -> list[str]:
    """What the model was asked, of the rows that are meant."""
    texts = [received.prompt for received in stack.backend.completions]
    return [text for text in texts if api_rows(text)]


def prompts(mark: str) -> Callable[[str], bool]:
    return lambda text: text.startswith(mark)


def marked(mark: str, count: int, **order: Any) -> list[dict[str, Any]]:
    """The same with prompts that no other test has."""
    found = rows(count, **order)
    for n, row in enumerate(found):
        row["body"]["messages"][0]["content"] = f"{mark} {n}"
        row["body"]["fake_id"] = f"{mark} {n}"
    return found


def text_of(line: dict[str, Any]) -> str:
    return line["response"]["body"]["choices"][0]["message"]["content"]
