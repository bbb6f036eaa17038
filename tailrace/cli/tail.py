"""``tailrace tail``: the text of a completion, as it comes."""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

import tailrace
from tailrace.cli import interruptible
from tailrace.cli.options import Home
from tailrace.cli.output import warn
from tailrace.cli.recording import Recording

#: A server that is not there is asked again only this often: a person is waiting. A stream that has begun is patient.
RETRIES = 2


def tail(
    id: Annotated[str, typer.Argument(metavar="ID", help="The completion.")],
    start: Annotated[int, typer.Option("--from", metavar="N", min=0, help="Index of the first chunk.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line a chunk: its index and the chunk.")
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Add the stream to a file of recordings, which a provider of the kind replay plays.",
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Print a completion's text as it comes, live or from the books."""
    if record is not None and start:
        raise typer.BadParameter("a recording has all chunks: leave --from out", param_hint="--record")
    interruptible.run(_tail(tailrace.Client(home=home, retries=RETRIES), id, start, as_json, record))


async def _tail(client: tailrace.Client, id: str, start: int, as_json: bool, record: Path | None) -> None:
    text = ""
    try:
        async with client:
            completion = client.completion(id)
            status = await completion.status()
            recording = None if record is None else Recording(record)
            if recording is not None and status == "completed":
                warn("it is complete already, so the recording has no timing: all chunks come at once")
            while True:
                try:
                    async with aclosing(completion.chunks(after=start - 1)) as chunks:
                        async for chunk in chunks:
                            if recording is not None:
                                recording.add(chunk)
                            if as_json:
                                print(json.dumps({"index": chunk.index, "chunk": chunk.data}), flush=True)
                            elif chunk.text:
                                text = chunk.text
                                print(text, end="", flush=True)
                    if recording is not None:
                        recording.write()
                    return
                except tailrace.Restarted:
                    text = _close_line(text)
                    warn("the answer was started again, and what came so far is void; from its beginning:")
                    start = 0
                    if recording is not None:
                        recording.clear()
    finally:
        _close_line(text)


def _close_line(text: str) -> str:
    """A line break after a text without one; the text of the line that begins."""
    if text and not text.endswith("\n"):
        print(flush=True)
    return ""
