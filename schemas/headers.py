"""What headers say, read by the same rules on an HTTP request and on a row of a batch. Each raises InvalidRequest."""

from __future__ import annotations

import re

from schemas.errors import InvalidRequest

#: No index, limit or number of a sample is greater.
MOST = 2**53
#: Characters of somebody's own name for something.
NAME_LIMIT = 256

_INTEGER = re.compile(r"[+-]?[0-9]{1,64}")
_DIRECTIVE = re.compile(r"\s*([A-Za-z-]+)(?:\s*=\s*\"?([^\",]*)\"?)?\s*")


def integer(value: str, *, name: str, least: int) -> int:
    """A header's or query parameter's integer; one beyond MOST is taken for MOST."""
    text = value.strip()
    if not _INTEGER.fullmatch(text) or int(text) < least:
        raise InvalidRequest(
            f"'{name}' must be an integer of at least {least}, not {value[:40]!r}.", param=name
        )
    return min(int(text), MOST)


def name(value: str, *, header: str) -> str:
    """A header that holds somebody's own name for something, as text."""
    if not value.strip() or len(value) > NAME_LIMIT or not value.isprintable():
        raise InvalidRequest(
            f"'{header}' must be 1 to {NAME_LIMIT} printable characters.", param=header, code="invalid_header"
        )
    return value


def cache_directives(header: str | None) -> dict[str, str]:
    """Those of ``Cache-Control``. A ``max-age`` must be a number of seconds; unknown directives are passed over."""
    found: dict[str, str] = {}
    for part in (header or "").split(","):
        match = _DIRECTIVE.fullmatch(part)
        if match:
            found[match[1].lower()] = (match[2] or "").strip()
    if "max-age" in found:
        integer(found["max-age"], name="cache-control: max-age", least=0)
    return found
