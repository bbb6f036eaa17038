"""Buckets of time, as OpenAI's usage API has them: they begin at whole minutes, hours or days in UTC.

The first bucket of a range begins and the last one ends where the range does, so that all of them together are the
range. Times are seconds since the epoch.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from schemas.errors import InvalidRequest

_PAGE = "page_"


@dataclass(frozen=True, slots=True)
class Width:
    """``seconds`` of a bucket, and how many a page has where nobody says, and at most."""

    seconds: int
    default: int
    most: int

    def after(self, time: int) -> int:
        """The first boundary after a time."""
        return time - time % self.seconds + self.seconds


WIDTHS = {"1m": Width(60, 60, 1440), "1h": Width(3600, 24, 168), "1d": Width(86400, 7, 31)}
#: Of OpenAI's costs.
COSTS_WIDTH = Width(86400, 7, 180)


def page_of(start: int, end: int, width: Width, limit: int) -> list[tuple[int, int]]:
    """The first ``limit`` buckets of a range: (inclusive start, exclusive end)."""
    buckets: list[tuple[int, int]] = []
    while start < end and len(buckets) < limit:
        boundary = min(width.after(start), end)
        buckets.append((start, boundary))
        start = boundary
    return buckets


def encode_page(start: int) -> str:
    """The cursor of the page that begins there."""
    return _PAGE + base64.urlsafe_b64encode(str(start).encode()).rstrip(b"=").decode()


def decode_page(cursor: str, start: int, end: int) -> int:
    """Where the page of a cursor begins within a range. Raises InvalidRequest."""
    try:
        text = cursor.removeprefix(_PAGE)
        place = int(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        place = -1
    if not cursor.startswith(_PAGE) or not start <= place < end:
        raise InvalidRequest(
            "'page' must be the 'next_page' of the same query with the same times.", param="page"
        )
    return place
