"""Writing TOML: the standard library only reads it."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping
from typing import Any, cast

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def text(document: Mapping[str, Any]) -> str:
    """What ``tomllib.loads`` makes the same document of. Tables, and tables of tables, have a header each; what is
    deeper stands in one line."""
    lines = _pairs({name: value for name, value in document.items() if not isinstance(value, dict)})
    for name, table in document.items():
        if not isinstance(table, dict):
            continue
        inner = cast("dict[str, Any]", table)
        if inner and all(isinstance(value, dict) for value in inner.values()):
            for each, fields in inner.items():
                lines += ["", f"[{_key(name)}.{_key(each)}]", *_pairs(fields)]
        else:
            lines += ["", f"[{_key(name)}]", *_pairs(inner)]
    return "\n".join(lines).strip("\n") + "\n"


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {_value(value)}" for name, value in fields.items()]


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _string(value)
        case dict():
            fields = _pairs(cast("dict[str, Any]", value))
            return f"{{ {', '.join(fields)} }}" if fields else "{}"
        case list():
            return f"[{', '.join(map(_value, cast('list[Any]', value)))}]"
        case dt.date() | dt.time():
            return value.isoformat()
        case _:
            return repr(value)


def _string(value: str) -> str:
    """JSON's escapes are TOML's, but for DEL, which TOML wants one for."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
