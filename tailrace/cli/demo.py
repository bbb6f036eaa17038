"""``tailrace demo``: a tour of the whole, with a real model on this CPU."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailrace import connection

if TYPE_CHECKING:
    from tailrace.embedded.stack import EmbeddedStack

#: What a user may have configured, and the tour brings along itself.
_CONFIGURED = frozenset(
    f"TAILRACE_{name}" for name in ("REDIS_URL", "BROKER_URL", "DATABASE_URL", "PROVIDERS", "PARTITIONS")
)

NEXT = """
what next
  tailrace up --local-model   the same stack to keep, with Flower and a curl line
  tailrace tail ID            follow a completion from another terminal
  tailrace usage              what was used and what it cost, by model, key, user or day
  tailrace --help             all commands"""


def demo(
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Questions, JSONL (default: examples/questions.jsonl)."),
    ] = None,
    home: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Home folder of the tour (default: ./.tailrace/demo).")
    ] = None,
) -> None:
    """Start everything with a small real model, send it questions, cut a stream and resume it, stop everything."""
    import rich.console

    from tailrace.cli import output, running
    from tailrace.client import Client
    from tailrace.demo import questions as files
    from tailrace.demo.tour import tour
    from tailrace.embedded.options import Options
    from tailrace.embedded.stack import EmbeddedStack

    rows = files.load(questions or files.find())
    folder = connection.home_path(home or Path(os.environ.get("TAILRACE_HOME") or ".tailrace") / "demo")
    # The tour is about what comes with Tailrace, and leaves what is configured alone.
    environment = {name: value for name, value in os.environ.items() if name not in _CONFIGURED}
    options = Options(
        home=folder,
        say=output.say,
        warn=output.warn,
        port=0,
        flower=False,
        local_model=True,
        environment=environment,
    )
    console = rich.console.Console()

    async def use(stack: EmbeddedStack) -> int:
        async with Client(stack.connection.url, stack.connection.api_key) as client:
            return 0 if await tour(client, rows, folder / "results.jsonl", console) else 1

    code = asyncio.run(running.run(EmbeddedStack(options), use))
    output.say("everything is stopped")
    if code == 0:
        output.say(NEXT)
    raise typer.Exit(code)
