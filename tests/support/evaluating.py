"""``tailrace eval`` as a process in a folder of its own, with suites over the fake backend."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.backend import Received
from tests.support.stack import Stack
from tests.tailrace.command import run, start


class Evaluation:
    """``mark`` begins every prompt of its items, so that what the backend was asked for it can be told."""

    def __init__(self, folder: Path, stack: Stack, settings: Mapping[str, str], mark: str) -> None:
        self.folder = folder
        self.stack = stack
        self.settings = settings
        self.mark = mark

    def suite(self, items: int = 4, name: str = "suite.yaml", **changed: Any) -> None:
        """Write a suite and its items: every even one has a target that the fake model says. A field that is None is
        left out."""
        with (self.folder / "items.jsonl").open("w") as file:
            for n in range(items):
                target = "tok1" if n % 2 == 0 else "nothing"
                row = {"id": f"i{n}", "input": f"{self.mark} {n}", "target": target, "kind": f"k{n % 2}"}
                file.write(json.dumps(row) + "\n")
        suite: dict[str, Any] = {
            "name": "suite",
            "dataset": {"path": "items.jsonl", "category": "kind"},
            "models": ["fake"],
            "params": {"fake": {"chunks": 3}},
            "scorers": ["includes"],
            **changed,
        }
        told = {field: value for field, value in suite.items() if value is not None}
        (self.folder / name).write_text(json.dumps(told))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("eval", *arguments, settings=self.settings, cwd=self.folder)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return start("eval", *arguments, settings=self.settings, cwd=self.folder)

    def done(self, *arguments: str, code: int = 0) -> str:
        """Run to its end; what it said."""
        ended = self(*arguments)
        assert ended.returncode == code, (ended.returncode, ended.stdout, ended.stderr)
        return ended.stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.done(*arguments, "--json", code=code))

    @property
    def runs(self) -> list[Path]:
        """The oldest first."""
        found = (self.folder / "runs").glob("*/manifest.json")
        return [
            path.parent for path in sorted(found, key=lambda path: json.loads(path.read_text())["created"])
        ]

    def samples(self, run: int = -1) -> list[dict[str, Any]]:
        text = (self.runs[run] / "samples.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def manifest(self, run: int = -1) -> dict[str, Any]:
        return json.loads((self.runs[run] / "manifest.json").read_text())

    def figures(self, run: int = -1) -> dict[str, Any]:
        return json.loads((self.runs[run] / "summary.json").read_text())["figures"]

    def outcomes(self, run: int = -1, arm: int = 0) -> dict[str, int]:
        """Of one arm, those that there are."""
        return {name: n for name, n in self.figures(run)["arms"][arm]["outcomes"].items() if n}

    def means(self, run: int = -1, arm: int = 0) -> dict[str, float | None]:
        """Of one arm, by scorer."""
        scorers = self.figures(run)["arms"][arm]["scorers"].items()
        return {name: scorer["score"] and scorer["score"]["mean"] for name, scorer in scorers}

    def asked(self, model: str | None = None) -> list[Received]:
        """What the backend was asked about the items, by one model or all."""
        found = [call for call in self.stack.backend.completions if call.prompt.startswith(self.mark)]
        return [call for call in found if model is None or call.body["model"] == model]
