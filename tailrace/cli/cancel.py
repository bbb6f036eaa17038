"""``tailrace cancel``: the end of completions that nobody wants any more."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

import tailrace
from tailrace.cli.options import Home, Json
from tailrace.cli.output import warn
from tailrace.cli.tail import RETRIES

#: Requests that are under way at once; each waits until its worker has stopped.
AT_ONCE = 16


def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The completions.")],
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Cancel completions, and print the state of each after that. One that has ended stays as it is."""
    client = tailrace.Client(home=home, retries=RETRIES)
    raise typer.Exit(asyncio.run(_cancel(client, ids, as_json)))


async def _cancel(client: tailrace.Client, ids: list[str], as_json: bool) -> int:
    """The exit code: 1 where any of them could not be cancelled."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(id: str) -> bool:
        try:
            async with slots:
                status = await client.completion(id).cancel()
        except tailrace.APIError as error:
            warn(f"{id}: {error}")
            return False
        print(json.dumps({"id": id, "status": status}) if as_json else f"{id}  {status}", flush=True)
        return True

    async with client:
        return 0 if all(await asyncio.gather(*map(one, ids))) else 1
