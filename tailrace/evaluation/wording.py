"""What pydantic finds wrong with a suite, in words for whoever wrote it, with the line and the field of the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tailrace.evaluation.marked import Node, Step
from tailrace.evaluation.problems import Problem
from tailrace.evaluation.suite import Dataset, Model, Prompt, Scorer, Shot, Suite

#: Type → the class of a scorer.
SCORERS: dict[str, type[BaseModel]] = {
    child.model_fields["type"].default: child for child in get_args(get_args(Scorer)[0])
}
_PATTERNS = {
    "name": "must be up to 100 letters, digits and any of . _ : @ + - and begin with a letter or digit",
    "function": "must be of the form module:function",
    "letters": "must be 2 to 26 capital letters",
}
_WORDS = {
    "missing": "is missing",
    "string_type": "must be a text",
    "path_type": "must be a path",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "tuple_type": "must be a list",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have one at least",
}


def place(root: Node, way: Sequence[Step]) -> tuple[int, str, Node | None]:
    """Line, name and node of what stands there. Where nothing does, the line is that of what is around it."""
    line, name, node = root.line, "", root
    for step in way:
        node = None if node is None else node.get(step)
        joined = f"{name}[{step}]" if isinstance(step, int) else f"{name}.{step}" if name else step
        name = (node and node.label) or joined
        line = line if node is None else node.line
    return line, name, node


def in_words(error: ValidationError, root: Node) -> list[Problem]:
    """One problem for each thing that is wrong, however many types a union tried."""
    found: dict[tuple[Step, ...], Problem] = {}
    for said in error.errors(include_url=False):
        way = _way(said)
        if way in found or (not way and said["type"] == "value_error"):
            continue  # the latter is of names that stand twice: `findings` has their lines
        line, name, node = place(root, way)
        if said["type"] == "too_short" and node is not None and node.elements():
            continue  # it has elements, and what is wrong with them is told
        found[way] = Problem(line, name, _words(said, way, node))
    return list(found.values())


def _way(said: Any) -> tuple[Step, ...]:
    """Where it is in the file: without the types that pydantic tried there."""
    loc: tuple[Step, ...] = said["loc"]
    if said["type"].startswith("union_tag") and said["ctx"].get("tag") is not None:
        return (*loc, "type")
    if loc[:1] == ("scorers",) and len(loc) > 2:
        loc = (*loc[:2], *loc[3:])  # the scorer's type
        return loc[:3] if loc[2] == "schema" else loc
    if loc[:2] == ("dataset", "filter"):
        return loc[:3]
    return loc


def _words(said: Any, way: tuple[Step, ...], node: Node | None) -> str:
    kind: str = said["type"]
    match kind:
        case "extra_forbidden":
            return _unknown_field(said["loc"], way)
        case "union_tag_not_found":
            return f"has no type; the scorers are {', '.join(SCORERS)}"
        case "union_tag_invalid":
            tag: str = said["ctx"]["tag"]
            near = _nearest(tag, SCORERS)
            return f"{tag!r} is no scorer{near and f' ({near})'}; the scorers are {', '.join(SCORERS)}"
        case "string_pattern_mismatch":
            return _PATTERNS.get(str(way[-1]), str(said["msg"]))
        case _ if way[:2] == ("dataset", "filter") and len(way) == 3:
            return "must be a value, or a list of values"
        case _ if way[:1] == ("scorers",) and way[2:] == ("schema",) and kind != "missing":
            return "must be a JSON Schema, or the path of one"
        case _ if way[:1] == ("scorers",) and len(way) == 2 and kind.endswith("_type"):
            return "must be the name of a scorer, or a mapping with its type"
        case _:
            limits = {name: _number(limit) for name, limit in said.get("ctx", {}).items()}
            words = _WORDS[kind].format(**limits) if kind in _WORDS else str(said["msg"])
    if node is not None and node.value is None and kind.endswith("_type"):
        return f"is empty, and {words}"
    if kind == "string_type" and node is not None and isinstance(node.value, int | float):
        return f"{words}: put it in quotes"
    return words


def _unknown_field(loc: tuple[Step, ...], way: tuple[Step, ...]) -> str:
    owner = _owner(loc)
    known = [field.alias or name for name, field in owner.model_fields.items()]
    near = _nearest(str(way[-1]), known)
    if near:
        return f"is unknown; {near}"
    told = f"is unknown; there are {', '.join(known)}"
    return f"{told}; what its requests say goes under params" if owner is Model else told


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]!r}?" if near else ""


def _number(limit: Any) -> Any:
    return f"{limit:g}" if isinstance(limit, float) else limit


def _owner(loc: tuple[Step, ...]) -> type[BaseModel]:
    """The class that has no such field."""
    match loc[:-1]:
        case ("dataset",):
            return Dataset
        case ("prompts", _):
            return Prompt
        case ("prompts", _, "few_shot", _):
            return Shot
        case ("models", _):
            return Model
        case ("scorers", _, str(type)):
            return SCORERS[type]
        case _:
            return Suite
