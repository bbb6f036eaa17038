"""``tailrace tail``: the text of a completion, as it comes."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Annotated

import typer

import tailrace
from tailrace.cli.options import Home
from tailrace.cli.output import warn

#: A server that is not there is asked again only this often: a person is waiting. A stream that has begun is patient.
RETRIES = 2


def tail(
    id: Annotated[str, typer.Argument(metavar="ID", help="The completion.")],
    start: Annotated[int, typer.Option("--from", metavar="N", min=0, help="Index of the first chunk.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line a chunk: its index and the chunk.")
    ] = False,
    home: Home = None,
) -> None:
    """Print a completion's text as it comes, live or from the books."""
    asyncio.run(_tail(tailrace.Client(home=home, retries=RETRIES), id, start, as_json))


async def _tail(client: tailrace.Client, id: str, start: int, as_json: bool) -> None:
    text = ""
    try:
        async with client:
            completion = client.completion(id)
            await completion.status()
            while True:
                try:
                    async with aclosing(completion.chunks(after=start - 1)) as chunks:
                        async for chunk in chunks:
                            if as_json:
                                print(json.dumps({"index": chunk.index, "chunk": chunk.data}), flush=True)
                            elif chunk.text:
                                text = chunk.text
                                print(text, end="", flush=True)
                    return
                except tailrace.Restarted:
                    text = _close_line(text)
                    warn("the answer was started again, and what came so far is void; from its beginning:")
                    start = 0
    finally:
        _close_line(text)


def _close_line(text: str) -> str:
    """A line break after a text without one; the text of the line that begins."""
    if text and not text.endswith("\n"):
        print(flush=True)
    return ""
