"""The short forms of a suite file, written out: a model or scorer that is but a name, a text that is in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from tailrace.evaluation.marked import Node, parse
from tailrace.evaluation.problems import Problem, Unreadable

#: The largest file that a suite names for a text, in bytes.
LARGEST_TEXT = 1024 * 1024


def expanded(root: Node, folder: Path) -> tuple[Node, list[Problem]]:
    """``root`` without short forms, and which files can't be read. Files are those beside the suite."""
    expander = _Expander(folder)
    fields = dict(root.items())
    for name, written_out in (
        ("dataset", expander.dataset),
        ("prompts", _many(expander.prompt)),
        ("models", _many(_called("model"))),
        ("scorers", _many(expander.scorer)),
        ("tags", _many(lambda node, label: dataclasses.replace(node, label=label))),
    ):
        if name in fields:
            fields[name] = written_out(fields[name], name)
    return dataclasses.replace(root, value=fields), expander.problems


def label(node: Node, *names: str) -> str:
    """The first of these fields that is a text; empty where none is."""
    for name in names:
        found = node.get(name)
        if found is not None and isinstance(found.value, str) and found.value:
            return found.value
    return ""


_Form = Callable[[Node, str], Node]


def _many(one: _Form) -> _Form:
    """A list of them, or but one."""

    def written_out(node: Node, name: str) -> Node:
        if isinstance(node.value, list):
            elements = [one(element, f"{name}[{n}]") for n, element in enumerate(node.elements())]
            return dataclasses.replace(node, value=elements)
        if isinstance(node.value, str | dict):
            return dataclasses.replace(node, value=[one(node, name)])
        return node

    return written_out


def _called(field: str) -> _Form:
    """A text is the ``field`` of a mapping."""

    def written_out(node: Node, label: str) -> Node:
        if isinstance(node.value, str):
            return Node({field: dataclasses.replace(node, label=label)}, node.line, label)
        return dataclasses.replace(node, label=label)

    return written_out


class _Expander:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.problems: list[Problem] = []

    def dataset(self, node: Node, label: str) -> Node:
        return _called("path")(node, label)

    def prompt(self, node: Node, label: str) -> Node:
        if set(dict(node.items())) == {"file"}:
            node = self._text(node, label)
        node = self._texts(_called("template")(node, label), label, "template", "system")
        shots = node.get("few_shot")
        if shots is None or not isinstance(shots.value, list):
            return node
        written = [
            self._texts(shot, f"{label}.few_shot[{n}]", "user", "assistant")
            for n, shot in enumerate(shots.elements())
        ]
        few_shot = dataclasses.replace(shots, value=written)
        return dataclasses.replace(node, value={**dict(node.items()), "few_shot": few_shot})

    def scorer(self, node: Node, label: str) -> Node:
        node = self._texts(_called("type")(node, label), label, "rubric")
        schema = node.get("schema")
        if schema is None or not isinstance(schema.value, str):
            return node
        return dataclasses.replace(
            node, value={**dict(node.items()), "schema": self._schema(schema, f"{label}.schema")}
        )

    def _texts(self, node: Node, label: str, *names: str) -> Node:
        """A mapping with those of its fields read that are files."""
        fields = dict(node.items())
        read = {name: self._text(fields[name], f"{label}.{name}") for name in names if name in fields}
        return dataclasses.replace(node, value={**fields, **read}) if read else node

    def _text(self, node: Node, label: str) -> Node:
        """A text as it is; the text of ``{file: PATH}``."""
        if not isinstance(node.value, dict):
            return node
        file = node.get("file")
        if file is None or not isinstance(file.value, str) or len(node.value) != 1:
            self.problems.append(Problem(node.line, label, "must be a text, or {file: PATH}"))
            return dataclasses.replace(node, value=label)
        text = self._read(file.value, file.line, label)
        return dataclasses.replace(node, value=label if text is None else text, source=file.value, size=1)

    def _schema(self, node: Node, label: str) -> Node:
        """The JSON Schema of a file."""
        file = str(node.value)
        text = self._read(file, node.line, label)
        if text is None:
            return dataclasses.replace(node, value=True)
        try:
            found, problems = parse(text.replace("\t", " "))
        except Unreadable as error:
            found, problems = None, [error.problem]
        if problems:
            self.problems += [
                Problem(node.line, label, f"{file}:{problem.line or 1}: {problem.message}")
                for problem in problems
            ]
            return dataclasses.replace(node, value=True)
        value = None if found is None else found.value
        return Node(value, node.line, label, file)

    def _read(self, file: str, line: int, label: str) -> str | None:
        try:
            with (self._folder / file).open("rb") as opened:
                data = opened.read(LARGEST_TEXT + 1)
            if len(data) > LARGEST_TEXT:
                reason = f"has more than {LARGEST_TEXT // 1024} KiB"
            else:
                return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            reason = "is not UTF-8 text"
        except FileNotFoundError:
            reason = f"isn't there (paths are relative to {self._folder.absolute()})"
        except (OSError, ValueError) as error:
            reason = f"can't be read: {getattr(error, 'strerror', None) or error}"
        self.problems.append(Problem(line, label, f"the file {file!r} {reason}"))
        return None
