"""How long to wait before trying again."""

from __future__ import annotations

import random

#: Seconds before the second try; doubles from there.
FIRST = 0.25
#: The longest wait, in seconds, that isn't asked for by a Retry-After.
LONGEST = 8.0


def delay(failures: int, *, first: float = FIRST, longest: float = LONGEST) -> float:
    """Seconds to wait after ``failures`` (1, 2, …) in a row: doubling, with up to a quarter less at random.

    >>> 1.5 <= delay(4) <= 2.0
    True
    """
    whole = min(longest, first * 2.0 ** min(failures - 1, 32))
    return whole * (1.0 - random.random() / 4)
