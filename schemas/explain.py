"""pydantic's errors in our words: which field, and what to change."""

from __future__ import annotations

from typing import Any

from pydantic_core import ErrorDetails

#: pydantic's error types, in our words; in braces what pydantic says of the limit.
_WORDS = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must not contain control characters",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "too_long": "must have at most {max_length} items",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


def integral(value: Any) -> Any:
    """100.0 as 100: both are the same number in JSON. 0.5 and what is no number stay as they are."""
    return int(value) if type(value) is float and value.is_integer() else value


def explain(error: ErrorDetails) -> tuple[str, str]:
    """A pydantic error as the field's path (``messages[0].content``) and a sentence on what to change."""
    context = {name: integral(value) for name, value in error.get("ctx", {}).items()}
    param = context.get("param") or field_path(error["loc"])
    words = _WORDS.get(error["type"])
    said = error["msg"] if words is None else words.format(**context)
    return param, f"'{param}' {said}."


def field_path(loc: tuple[int | str, ...]) -> str:
    """A pydantic location in OpenAI's dotted style, without the tags that chose between shapes."""
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not (step.startswith("<") and step.endswith(">")):
            path += f".{step}" if path else step
    return path
