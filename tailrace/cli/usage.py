"""``tailrace usage``: what was used, what it cost, and what the cache saved."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import tailrace
from tailrace.amounts import NANO
from tailrace.cli.options import Home, Json

if TYPE_CHECKING:
    from rich.console import Console

#: How often a server that is not there is asked again: a person is waiting.
RETRIES = 2
#: Characters of the longest bar.
BAR = 24

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SINCE = re.compile(r"([0-9]{1,6})([mhdw])")
_GROUPS = {"model": "model", "key": "api_key_id", "user": "external_user_id", "day": "day"}

By = Literal["model", "key", "user", "day"]


def usage(
    by: Annotated[By, typer.Option(help="What to group by; users are end users, days are UTC.")] = "model",
    since: Annotated[
        str,
        typer.Option(metavar="TIME", help="How far back, as 90m, 24h, 7d or 4w, or a date, as 2026-01-31."),
    ] = "7d",
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Show requests, tokens and cost, and what the cache saved."""
    start = _start(since, time.time())
    found = asyncio.run(_fetch(tailrace.Client(home=home, retries=RETRIES), _GROUPS[by], start))
    if as_json:
        print(json.dumps(found))
    else:
        _show(found["data"], by, start)


async def _fetch(client: tailrace.Client, group: str, start: int) -> dict[str, Any]:
    async with client:
        return await client.usage(start_time=start, group_by=[group])


def _start(since: str, now: float) -> int:
    span = _SINCE.fullmatch(since)
    if span is not None:
        return max(0, int(now) - int(span[1]) * _SECONDS[span[2]])
    try:
        return max(0, int(datetime.strptime(since, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()))
    except ValueError:
        raise typer.BadParameter(
            f"{since!r} is neither a time such as 90m, 24h, 7d or 4w nor a date such as 2026-01-31",
            param_hint="--since",
        ) from None


def _show(rows: list[dict[str, Any]], by: By, start: int) -> None:
    """A table with bars on a terminal, plain columns elsewhere."""
    import rich.console

    rows = rows if by == "day" else sorted(rows, key=_weight, reverse=True)
    terminal = sys.stdout.isatty()
    console = rich.console.Console(highlight=False, width=None if terminal else 1000)
    if not rows:
        console.print(f"nothing was used since {_date(start)}")
        return
    _table(console, rows, by, bars=terminal)
    hits, joins = _sum(rows, "cache_hits"), _sum(rows, "cache_joins")
    if hits or joins:
        console.print(f"the cache saved {_money(rows, 'saved_nano')}: {hits:,} hits, {joins:,} joins")
    unpriced = _sum(rows, "unpriced_requests")
    if unpriced:
        console.print(
            f"{unpriced:,} requests of unknown cost are not in it: give their models prices in providers.toml"
        )


def _table(console: Console, rows: list[dict[str, Any]], by: By, *, bars: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD if bars else None, pad_edge=False, show_footer=True)
    table.add_column(by, "all")
    for title, field in (
        ("requests", "num_model_requests"),
        ("input", "input_tokens"),
        ("cached", "input_cached_tokens"),
        ("output", "output_tokens"),
    ):
        table.add_column(title, f"{_sum(rows, field):,}", justify="right")
    table.add_column("cost", _money(rows, "cost_nano"), justify="right")
    if bars:
        table.add_column("", no_wrap=True)
    most = max(map(_weight, rows))
    by_cost = any(_nano(row, "cost_nano") for row in rows)
    for row in rows:
        cells = [
            _name(row, by),
            *(
                f"{row[field]:,}"
                for field in ("num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens")
            ),
            _money([row], "cost_nano"),
        ]
        share = (_weight(row)[0 if by_cost else 1] / (most[0 if by_cost else 1] or 1)) if most else 0
        table.add_row(*map(_plain, cells), *([f"[cyan]{'█' * round(share * BAR)}[/]"] if bars else []))
    console.print(table)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _name(row: dict[str, Any], by: By) -> str:
    value = row[_GROUPS[by]]
    if by == "day":
        return _date(value)
    return "(none)" if value is None else str(value)


def _date(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d")


def _weight(row: dict[str, Any]) -> tuple[int, int]:
    """Cost first; tokens where nothing has a cost."""
    return _nano(row, "cost_nano"), row["input_tokens"] + row["output_tokens"]


def _sum(rows: list[dict[str, Any]], field: str) -> int:
    return sum(row[field] for row in rows)


def _nano(row: dict[str, Any], field: str) -> int:
    return int(row[field] or 0)


def _money(rows: list[dict[str, Any]], field: str) -> str:
    """A question mark where nobody knows any of it."""
    if all(row[field] is None for row in rows):
        return "?"
    dollars = sum(_nano(row, field) for row in rows) / NANO
    return f"${dollars:,.2f}" if dollars >= 100 else f"${dollars:,.6f}"
