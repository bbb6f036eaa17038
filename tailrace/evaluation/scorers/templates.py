"""Templates of scorers: patterns and rubrics, over an item and its answer."""

from __future__ import annotations

import re
from typing import Any

from tailrace.errors import TailraceError
from tailrace.evaluation.scorers.base import prompt, said
from tailrace.evaluation.shapes import Answer, Item


class Template:
    """Jinja2 in a sandbox, where an unknown name is an error. ``{{ target | escape_regex }}`` stands for itself in a
    pattern. Raises TailraceError, beginning with ``field``, where it is no template."""

    def __init__(self, text: str, field: str) -> None:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["escape_regex"] = _escaped
        self._field = field
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise TailraceError(f"{field}: line {error.lineno} of the template: {error.message}") from None

    def render(self, variables: dict[str, Any]) -> str:
        """Raises TailraceError."""
        try:
            return self._template.render(variables)
        except Exception as error:  # noqa: BLE001 - a template may do whatever an expression can
            raise TailraceError(f"{self._field}: the template fails: {error}") from None


def of_item(item: Item) -> dict[str, Any]:
    """The item's columns, and over them ``input``, ``target`` (the first, empty where there is none), ``targets``
    and ``id``."""
    target = item.targets[0] if item.targets else ""
    return item.columns | {
        "input": item.input,
        "target": target,
        "targets": list(item.targets),
        "id": item.id,
    }


def of_answer(answer: Answer) -> dict[str, Any]:
    """The item's, with ``answer`` (over a column of that name) and ``prompt``, the last message of a user."""
    return of_item(answer.item) | {"answer": said(answer), "prompt": prompt(answer)}


def _escaped(value: object) -> str:
    return re.escape(str(value))
