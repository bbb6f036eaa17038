"""Money and time as the command line shows them."""

from __future__ import annotations

#: Dollars are kept in integers, so many to one.
NANO = 10**9


def money(nano: int | None) -> str:
    """A question mark where nobody knows."""
    if nano is None:
        return "$?"
    dollars = nano / NANO
    return f"${dollars:,.2f}" if dollars >= 1 or not nano else f"${dollars:,.6f}"


def span(seconds: float) -> str:
    """

    >>> span(4), span(75), span(7300), span(200000)
    ('4s', '1m15s', '2h01m', '2d07h')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"
