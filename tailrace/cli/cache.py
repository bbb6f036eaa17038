"""``tailrace cache``: what is in the cache, and dropping it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

import tailrace
from tailrace.cli.options import Home, Json
from tailrace.cli.tail import RETRIES

app = typer.Typer(no_args_is_help=True, help="The results that answer equal requests.", rich_markup_mode=None)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def duration(text: str) -> int:
    """Seconds, from 90, 45s, 30m, 12h, 7d or 2w. Raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw]?)", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no duration, such as 45s, 30m, 12h or 7d")
    return int(match[1]) * _SECONDS[match[2] or "s"]


@app.command("stats")
def stats(as_json: Json = False, home: Home = None) -> None:
    """Show what is in the cache, and what it has saved."""
    found = _ask(home, lambda client: client.cache())
    if as_json:
        print(json.dumps(found))
        return
    rate = found["hit_rate"]
    rows = {
        "results": f"{found['entries']:,}, {found['bytes']:,} bytes",
        "hits": f"{found['hits']:,}",
        "joins": f"{found['joins']:,}",
        "misses": f"{found['misses']:,}",
        "bypassed": f"{found['bypasses']:,}",
        "hit rate": "-" if rate is None else f"{rate:.0%}",
        "tokens saved": f"{found['saved_tokens']:,}",
    }
    for name, value in rows.items():
        print(f"{name:<14}{value}")


@app.command("purge")
def purge(
    model: Annotated[str | None, typer.Option("--model", metavar="M", help="Only this model's.")] = None,
    older_than: Annotated[
        int | None,
        typer.Option(
            "--older-than", metavar="D", parser=duration, help="Only what is older: 45s, 30m, 12h, 7d."
        ),
    ] = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Drop cached results: equal requests ask the model again. Stored completions stay."""
    gone = _ask(home, lambda client: client.purge_cache(model=model, older_than=older_than))
    print(json.dumps(gone) if as_json else f"{gone['entries']:,} results, {gone['bytes']:,} bytes")


def _ask(home: Any, ask: Callable[[tailrace.Client], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with tailrace.Client(home=home, retries=RETRIES) as client:
            return await ask(client)

    return asyncio.run(run())
