"""What a suite may not say beyond what its shapes can tell: names that stand twice, parameters that are ours,
templates, patterns and schemas that are none."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

from tailrace.evaluation.marked import Node, Step
from tailrace.evaluation.problems import Problem
from tailrace.evaluation.shorthand import label
from tailrace.evaluation.templating import Template
from tailrace.evaluation.wording import place
from tailrace.templating import Invalid

#: Parameters that a run says itself, and why.
OURS = {
    "model": "models has the names of models",
    "messages": "prompts has what is asked",
    "stream": "answers come as batches",
    "stream_options": "answers come as batches",
}


def findings(root: Node) -> list[Problem]:
    """``root`` is without short forms. What has the wrong type is passed over: its shape tells that."""
    checks = _Checks(root)
    checks.names("prompts", "name", default="default")
    checks.names("models", "name", "model")
    checks.names("scorers", "name", "type")
    checks.params("params")
    for n, _ in enumerate(_elements(root, "models")):
        checks.params("models", n, "params")
    for n, prompt in enumerate(_elements(root, "prompts")):
        checks.templates("prompts", n, names=("system", "template"))
        for shot, _ in enumerate(_elements(prompt, "few_shot")):
            checks.templates("prompts", n, "few_shot", shot, names=("user", "assistant"))
    for n, scorer in enumerate(_elements(root, "scorers")):
        match label(scorer, "type"):
            case "judge":
                checks.templates("scorers", n, names=("rubric",))
                checks.params("scorers", n, "params")
                checks.grades("scorers", n, "grades")
            case "regex":
                checks.pattern("scorers", n, "pattern")
            case "json_schema":
                checks.schema("scorers", n, "schema")
            case _:
                pass
    return checks.problems


def _elements(node: Node, name: str) -> list[Node]:
    found = node.get(name)
    return [] if found is None else found.elements()


class _Checks:
    def __init__(self, root: Node) -> None:
        self._root = root
        self.problems: list[Problem] = []

    def _tell(self, way: tuple[Step, ...], message: str) -> None:
        line, name, _ = place(self._root, way)
        self.problems.append(Problem(line, name, message))

    def _texts(self, *way: Step, names: tuple[str, ...]) -> Iterator[tuple[tuple[Step, ...], str, str]]:
        for name in names:
            node = self._root.find((*way, name))
            if node is not None and isinstance(node.value, str):
                yield (*way, name), node.value, f"{node.source}: " if node.source else ""

    def names(self, part: str, *fields: str, default: str = "") -> None:
        first: dict[str, Node] = {}
        for n, node in enumerate(_elements(self._root, part)):
            name = (label(node, *fields) or default) if isinstance(node.value, dict) else ""
            if name and name in first:
                told = f"{name!r} is the one on line {first[name].line} already; give each a name of its own"
                self._tell((part, n), told)
            elif name:
                first[name] = node

    def params(self, *way: Step) -> None:
        node = self._root.find(way)
        for name, value in () if node is None else node.items():
            if name in OURS:
                self._tell((*way, name), f"is not for a suite to say: {OURS[name]}")
            elif name == "n" and (value.value is True or value.value not in (1, None)):
                self._tell((*way, name), "must be 1: samples says how often each item is asked")

    def templates(self, *way: Step, names: tuple[str, ...]) -> None:
        for field, text, source in self._texts(*way, names=names):
            try:
                Template(text)
            except Invalid as error:
                self._tell(field, f"{source}{error}")
            if not text.strip():
                self._tell(field, f"{source}is blank")

    def pattern(self, *way: Step) -> None:
        for field, text, _ in self._texts(*way[:-1], names=(str(way[-1]),)):
            try:
                Template(text)
                if "{{" not in text and "{%" not in text:
                    re.compile(text)
            except Invalid as error:
                self._tell(field, str(error))
            except (re.error, RecursionError, OverflowError) as error:
                self._tell(field, f"is no regular expression: {error}")

    def schema(self, *way: Step) -> None:
        node = self._root.find(way)
        if node is None or not isinstance(node.value, dict):
            return
        try:
            schemas: Any = importlib.import_module("jsonschema")
        except ImportError:
            return  # the scorer says what it takes
        plain = node.plain()
        try:
            schemas.validators.validator_for(plain, schemas.Draft202012Validator).check_schema(plain)
        except schemas.SchemaError as error:
            told = f"is no valid JSON Schema: {' '.join(error.message.split())[:300]}"
            if node.source is None:
                self._tell((*way, *error.absolute_path), told)
            else:
                self._tell(way, f"{node.source}: {told}")

    def grades(self, *way: Step) -> None:
        node = self._root.find(way)
        if node is None:
            return
        if node.value == {}:
            self._tell(way, "must have one at least")
        for grade, worth in node.items():
            if isinstance(worth.value, int | float) and not 0 <= worth.value <= 1:
                self._tell((*way, grade), "must be from 0 to 1")
