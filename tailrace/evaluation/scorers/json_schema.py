"""The scorer ``json_schema``."""

from __future__ import annotations

import datetime as dt
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers.base import Each, said, shortened
from tailrace.evaluation.shapes import Answer, Score

#: Places in a text at which a JSON value may begin, that are tried.
TRIES = 200
#: Characters of an error that are told.
LONGEST_ERROR = 300

_FENCE = re.compile(r"(?ms)^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)^[ \t]*\1[ \t]*$")
_TIME = re.compile(r"\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)", re.IGNORECASE)


class JsonSchema(Each):
    """1 where the answer's JSON is valid. Raises TailraceError where the schema is none."""

    def __init__(self, spec: suite.JsonSchema, folder: Path) -> None:
        super().__init__(spec.label)
        where = f"{spec.label}: schema"
        try:
            jsonschema: Any = importlib.import_module("jsonschema")
        except ImportError:
            raise TailraceError(f"{where}: needs jsonschema: pip install 'tailrace[eval]'") from None
        schema = _loaded(spec.json_schema, folder, where)
        kind: Any = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise TailraceError(
                f"{where}: {error.json_path}: {shortened(error.message, 200)} is not valid"
            ) from None
        # The specifications' own schemas alone can be referred to: nothing is fetched from anywhere.
        registry: Any = importlib.import_module("jsonschema_specifications").REGISTRY
        _check_references(schema, registry, kind, where)
        self._validator = kind(schema, registry=registry, format_checker=_formats(jsonschema))

    def one(self, answer: Answer) -> Score:
        try:
            text, value = found(said(answer))
        except ValueError as error:
            return Score(0.0, explanation=str(error))
        wrong = next(iter(self._validator.iter_errors(value)), None)
        if wrong is None:
            return Score(1.0, answer=text)
        message = (
            wrong.message if len(wrong.message) <= LONGEST_ERROR else wrong.message[:LONGEST_ERROR] + "…"
        )
        return Score(0.0, answer=text, explanation=f"{wrong.json_path}: {message}")


def found(text: str) -> tuple[str, Any]:
    """The JSON value that a text is, that is in its one fence, or that is the one object (or, without objects, the
    one array) in it; and its text. Raises ValueError that says why there is none."""
    text = text.strip()
    if not text:
        raise ValueError("the answer is empty")
    try:
        return text, parsed(text)
    except ValueError as error:
        whole = error
    fences = [match[2].strip() for match in _FENCE.finditer(text)]
    if len(fences) == 1:
        try:
            return fences[0], parsed(fences[0])
        except ValueError as error:
            raise ValueError(f"what is in the fence is not JSON: {error}") from None
    values = list(_values(text))
    candidates = [found for found in values if isinstance(found[1], dict)] or values
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(f"the answer has {len(candidates)} JSON values, not one")
    raise ValueError(f"the answer is not JSON: {whole}")


def parsed(text: str) -> Any:
    """JSON as RFC 8259 has it: no NaN, no Infinity. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _values(text: str) -> Iterator[tuple[str, Any]]:
    """Objects and arrays in a text, the outermost ones."""
    decoder = json.JSONDecoder(parse_constant=_refuse)
    position = 0
    for _ in range(TRIES):
        begin = re.compile(r"[{\[]").search(text, position)
        if begin is None:
            return
        try:
            value, position = decoder.raw_decode(text, begin.start())
        except ValueError:
            position = begin.end()
        except RecursionError:
            return
        else:
            yield text[begin.start() : position], value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _loaded(schema: dict[str, Any] | bool | Path, folder: Path, where: str) -> Any:
    if not isinstance(schema, Path):
        return schema
    path = folder / schema
    try:
        loaded: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise TailraceError(f"{where}: {path} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise TailraceError(f"{where}: {path} is not JSON: {error}") from None
    if not isinstance(loaded, dict | bool):
        raise TailraceError(f"{where}: {path} must have an object, or true or false")
    return cast("Any", loaded)


def _check_references(schema: Any, registry: Any, kind: Any, where: str) -> None:
    """Raises TailraceError for a ``$ref`` that leads nowhere. In schemas with an ``$id`` within, that shows only when
    an answer is looked at."""
    references: list[str] = []
    pending: list[tuple[Any, bool]] = [(schema, True)]
    while pending:
        part, top = pending.pop()
        if isinstance(part, dict):
            mapping = cast("dict[str, Any]", part)
            if "$id" in mapping and not top:
                return
            references += [
                value for key, value in mapping.items() if key == "$ref" and isinstance(value, str)
            ]
            pending += [
                (value, False)
                for key, value in mapping.items()
                if key not in ("const", "enum", "default", "examples")
            ]
        elif isinstance(part, list):
            pending += [(value, False) for value in cast("list[Any]", part)]
    referencing: Any = importlib.import_module("referencing")
    jsonschemas: Any = importlib.import_module("referencing.jsonschema")
    dialect = kind.META_SCHEMA.get("$schema", "")
    resource = referencing.Resource.from_contents(
        schema, default_specification=jsonschemas.specification_with(dialect)
    )
    base = resource.id() or ""
    resolver = registry.with_resource(base, resource).resolver(base_uri=base)
    for reference in references:
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise TailraceError(
                f"{where}: $ref {shortened(reference)} leads nowhere; files and addresses are not read"
            ) from None


def _formats(jsonschema: Any) -> Any:
    """The library's checks that need nothing else installed, and three that do, in short."""
    checker = jsonschema.FormatChecker()
    checker.checks("date-time", ValueError)(_is_moment)
    checker.checks("time", ValueError)(_is_time)
    checker.checks("uri", ValueError)(_is_uri)
    return checker


def _is_moment(value: object) -> bool:
    """RFC 3339."""
    if not isinstance(value, str):
        return True
    date, separator, time = value[:10], value[10:11], value[11:]
    dt.date.fromisoformat(date)
    return (
        separator in ("T", "t", " ") and re.fullmatch(r"\d{4}-\d\d-\d\d", date) is not None and _is_time(time)
    )


def _is_time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    if _TIME.fullmatch(value) is None:
        return False
    hours, minutes, seconds = int(value[:2]), int(value[3:5]), int(value[6:8])
    return hours < 24 and minutes < 60 and seconds <= 60


def _is_uri(value: object) -> bool:
    if not isinstance(value, str):
        return True
    parts = urlsplit(value)
    return (
        bool(parts.scheme) and bool(parts.netloc or parts.path) and not re.search(r"[\s<>\"{}|\\^`]", value)
    )
