"""Writing a providers.toml for a test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def providers_text(
    providers: Mapping[str, str | Mapping[str, Any]],
    *,
    default: str | None = None,
    aliases: Mapping[str, list[str]] | None = None,
) -> str:
    """``{"fake": backend.url}`` or ``{"fake": {"base_url": …, "timeout": {…}, "prices": {…}}}`` as TOML.

    The first one is the default where none is named. Strings, numbers, booleans, lists and tables come out as given.
    """
    names = list(providers)
    lines = [f"default = {_value(default or names[0])}"] if names else []
    for name, given in providers.items():
        fields = {"base_url": given} if isinstance(given, str) else dict(given)
        fields.setdefault("kind", "openai")
        lines += ["", f"[providers.{_key(name)}]"]
        lines += [f"{_key(key)} = {_value(value)}" for key, value in fields.items()]
    if aliases:
        lines += ["", "[aliases]", *(f"{_key(key)} = {_value(value)}" for key, value in aliases.items())]
    return "\n".join(lines) + "\n"


def write_providers(
    path: Path,
    providers: Mapping[str, str | Mapping[str, Any]],
    *,
    default: str | None = None,
    aliases: Mapping[str, list[str]] | None = None,
) -> Path:
    path.write_text(providers_text(providers, default=default, aliases=aliases))
    return path


def _key(name: str) -> str:
    return json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return json.dumps(value)  # JSON's strings, numbers and booleans are TOML's
