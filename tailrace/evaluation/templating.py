"""Templates over an item: prompts, patterns and rubrics.

They see the columns of the item's row, and what ``variables`` says. Beside Jinja2's own filters there are ``letters``
and ``escape_regex``; ``tojson`` writes JSON as it is, not for HTML. Limits are those of ``tailrace.templating``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jinja2
import msgspec

from tailrace import templating
from tailrace.evaluation.shapes import Item


class Template(templating.Template):
    """With the filters of suites. Raises templating.Invalid where the text is none."""

    def __init__(self, text: str) -> None:
        super().__init__(text, FILTERS)


def variables(item: Item) -> dict[str, Any]:
    """What a template sees of an item. ``target`` is a text, a list where there are several, None where there is none;
    it, ``input`` and ``id`` go before columns of these names."""
    target: Any = list(item.targets) if len(item.targets) > 1 else next(iter(item.targets), None)
    return {**item.columns, "input": item.input, "target": target, "id": item.id}


def letters(options: Any) -> list[tuple[str, Any]]:
    """``("A", first), ("B", second), …`` of a list of up to 26."""
    if isinstance(options, str | bytes | Mapping) or not isinstance(options, Iterable):
        raise jinja2.exceptions.FilterArgumentError("letters takes a list")
    found = list(cast("Iterable[Any]", options))
    if len(found) > len(string.ascii_uppercase):
        raise jinja2.exceptions.FilterArgumentError(f"letters takes up to 26 options, not {len(found)}")
    return list(zip(string.ascii_uppercase, found, strict=False))


def _json(value: Any, indent: int | None = None) -> str:
    if isinstance(value, jinja2.Undefined):
        str(value)  # says what is undefined
    encoded = msgspec.json.encode(value)
    return (encoded if indent is None else msgspec.json.format(encoded, indent=indent)).decode()


def _escaped(value: object) -> str:
    """What stands for itself in a regular expression."""
    return re.escape(str(value))


FILTERS = {"letters": letters, "escape_regex": _escaped, "tojson": _json}
