"""Templates of scorers: patterns and rubrics, over an item and its answer."""

from __future__ import annotations

from typing import Any

from tailrace.errors import TailraceError
from tailrace.evaluation import templating
from tailrace.evaluation.scorers.base import prompt, said
from tailrace.evaluation.shapes import Answer, Item
from tailrace.templating import Failed, Invalid


class Template:
    """Raises TailraceError, beginning with ``field``, where the text is no template."""

    def __init__(self, text: str, field: str) -> None:
        self._field = field
        try:
            self._template = templating.Template(text)
        except Invalid as error:
            raise TailraceError(f"{field}: {error}") from None

    def render(self, variables: dict[str, Any]) -> str:
        """Raises TailraceError."""
        try:
            return self._template.render(variables)
        except Failed as error:
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
