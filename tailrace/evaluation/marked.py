"""YAML 1.2 as values that know their line, so that whoever finds something wrong with one can say where it stands.

Plain scalars follow the core schema: ``yes`` and ``2026-01-31`` are texts, ``1e3`` is a number. Keys are texts as they
are written. Merge keys (``<<: *base``) work; a key that stands twice, and a tag beyond ``!!str``, is an error.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from tailrace.errors import TailraceError
from tailrace.evaluation.problems import Problem, Unreadable

#: Values that one file may have, aliases written out.
MOST_VALUES = 100_000
#: How deep lists and mappings may stand in each other.
DEEPEST = 50

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_TAGS = {"ScalarEvent": "str", "MappingStartEvent": "map", "SequenceStartEvent": "seq"}

Step = str | int
Value: TypeAlias = "str | int | float | bool | dict[str, Node] | list[Node] | None"


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A value: a scalar, a ``dict`` or a ``list`` of nodes. ``line`` counts from 1, that of its key where it has one.
    ``label`` is how the value is called where the way to it says something else. ``source`` is where a text was read
    from, if not from this file. ``size`` is how many values it is made of, aliases written out."""

    value: Value
    line: int
    label: str | None = None
    source: str | None = None
    size: int = 1

    def get(self, step: Step) -> Node | None:
        if isinstance(self.value, dict):
            return self.value.get(step) if isinstance(step, str) else None
        if isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            return self.value[step]
        return None

    def find(self, way: Iterable[Step]) -> Node | None:
        node: Node | None = self
        for step in way:
            node = None if node is None else node.get(step)
        return node

    def items(self) -> Iterator[tuple[str, Node]]:
        """The fields of a mapping; none of anything else."""
        if isinstance(self.value, dict):
            yield from self.value.items()

    def elements(self) -> list[Node]:
        """The elements of a list; none of anything else."""
        return list(self.value) if isinstance(self.value, list) else []

    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.elements()]
        return self.value


def parse(text: str) -> tuple[Node | None, list[Problem]]:
    """The document (None where there is none), and what is wrong with it that doesn't end the reading. Raises
    Unreadable where something does."""
    try:
        yaml: Any = importlib.import_module("ruamel.yaml")  # much of it has no types
    except ImportError:
        raise TailraceError(
            "suite files take the package ruamel.yaml: pip install 'tailrace[eval]'"
        ) from None
    reading: Any = importlib.import_module("ruamel.yaml.reader")
    try:
        builder = _Builder(yaml.YAML(typ="safe", pure=True).parse(text))
        return builder.document(), builder.problems
    except yaml.error.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(None if mark is None else mark.line + 1, _said(text, mark, error)) from None
    except reading.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(
            line, f"the character U+{ord(text[error.position]):04X} can't stand in YAML"
        ) from None
    except yaml.error.YAMLError as error:
        raise Unreadable(None, f"is not valid YAML: {' '.join(str(error).split())}") from None


def _said(text: str, mark: Any, error: Any) -> str:
    problem = " ".join(str(error.problem or error.context or "is not valid").split())
    if "'\\t'" in problem or (mark is not None and "\t" in _indent(text, mark.line)):
        return "a tab stands where YAML takes spaces alone"
    if "but found another document" in problem:
        return "a second document begins here; a suite is one"
    context = f" {' '.join(str(error.context).split())}" if error.context and error.problem else ""
    return f"is not valid YAML: {problem}{context}"


def _indent(text: str, line: int) -> str:
    lines = text.splitlines()
    found = lines[line] if line < len(lines) else ""
    return found[: len(found) - len(found.lstrip())]


class _Builder:
    """Nodes of a parser's events. An alias shares the node that its anchor names, so nothing is written out here."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, Node] = {}
        self.problems: list[Problem] = []

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self._events:
            if type(event).__name__ == "DocumentStartEvent":
                if root is not None:
                    raise Unreadable(
                        event.start_mark.line + 1, "a second document begins here; a suite is one"
                    )
                root = self._node(next(self._events), 0)
        return root

    def _node(self, event: Any, depth: int) -> Node:
        kind = type(event).__name__
        line: int = event.start_mark.line + 1
        if kind == "AliasEvent":
            if event.anchor not in self._anchors:
                raise Unreadable(
                    line, f"*{event.anchor} stands for nothing: no &{event.anchor} ends before it"
                )
            return dataclasses.replace(self._anchors[event.anchor], line=line)
        if depth > DEEPEST:
            raise Unreadable(line, f"lists and mappings stand in each other more than {DEEPEST} deep")
        tag = None if event.tag is None else str(event.tag)
        if tag is not None and tag != f"tag:yaml.org,2002:{_TAGS[kind]}":
            self.problems.append(
                Problem(line, None, f"the tag {tag} isn't taken: write the value without it")
            )
        if kind == "ScalarEvent":
            plain = bool(event.implicit[0]) and tag is None
            node = Node(self._scalar(event.value, line) if plain else self._text(event.value, line), line)
        elif kind == "SequenceStartEvent":
            elements = self._sequence(depth)
            node = Node(elements, line, size=_size(elements, line))
        else:
            fields = self._mapping(depth)
            node = Node(fields, line, size=_size(fields.values(), line))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, depth: int) -> list[Node]:
        found: list[Node] = []
        while type(event := next(self._events)).__name__ != "SequenceEndEvent":
            found.append(self._node(event, depth + 1))
        return found

    def _mapping(self, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        while type(event := next(self._events)).__name__ != "MappingEndEvent":
            line: int = event.start_mark.line + 1
            if type(event).__name__ != "ScalarEvent":
                raise Unreadable(line, "a key must be a text")
            key = self._text(event.value, line)
            node = dataclasses.replace(self._node(next(self._events), depth + 1), line=line)
            if key == "<<" and event.implicit[0]:
                merged = {**self._merged(node), **merged}
            elif key in found:
                told = f"stands here a second time; the first is on line {found[key].line}"
                self.problems.append(Problem(line, key, told))
            else:
                found[key] = node
        return {**merged, **found}

    def _merged(self, node: Node) -> dict[str, Node]:
        sources = node.elements() if isinstance(node.value, list) else [node]
        fields: dict[str, Node] = {}
        for source in sources:
            if not isinstance(source.value, dict):
                self.problems.append(Problem(node.line, "<<", "must be a mapping, or a list of them"))
            fields = {**dict(source.items()), **fields}
        return fields

    def _scalar(self, text: str, line: int) -> str | int | float | bool | None:
        """A plain scalar, by YAML 1.2's core schema."""
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        try:
            if _INT.fullmatch(text):
                return int(text)
            if _BASED.fullmatch(text):
                return int(text[2:], 8 if text[1] == "o" else 16)
        except ValueError:  # Python's limit of digits
            self.problems.append(Problem(line, None, "this number is too long"))
            return 0
        if _NO_NUMBER.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
            self.problems.append(Problem(line, None, f"{text[:40]} is no finite number"))
            return 0.0
        return float(text) if _FLOAT.fullmatch(text) else self._text(text, line)

    def _text(self, text: str, line: int) -> str:
        """JSON's ``\\ud83d\\ude00`` comes as two halves."""
        if text.isascii():
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self.problems.append(Problem(line, None, "this text has half of a surrogate pair"))
            return "?"


def _size(nodes: Iterable[Node], line: int) -> int:
    size = 1 + sum(node.size for node in nodes)
    if size > MOST_VALUES:
        raise Unreadable(line, f"there are more than {MOST_VALUES:,} values, aliases written out")
    return size
