"""``tailrace up``: the whole stack on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from tailrace import connection
from tailrace.cli.options import Home

if TYPE_CHECKING:
    from tailrace.embedded.stack import EmbeddedStack


def up(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The gateway's port; 0 takes a free one.")
    ] = 8080,
    host: Annotated[str, typer.Option(help="The gateway's address.")] = "127.0.0.1",
    home: Home = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Interactive worker processes.")] = 1,
    concurrency: Annotated[
        int, typer.Option(min=1, metavar="C", help="Streams at once in each of them.")
    ] = 128,
    flower: Annotated[
        bool, typer.Option("--flower/--no-flower", help="Flower, a view of the workers.")
    ] = True,
    local_model: Annotated[
        bool, typer.Option("--local-model", help="A small real model on this CPU.")
    ] = False,
) -> None:
    """Start everything that is not configured elsewhere, and keep it running until Ctrl-C."""
    from tailrace.cli import output, running
    from tailrace.cli.running import INTERRUPTED
    from tailrace.embedded.options import Options
    from tailrace.embedded.stack import EmbeddedStack

    options = Options(
        home=connection.home_path(home),
        say=output.say,
        warn=output.warn,
        host=host,
        port=port,
        workers=workers,
        concurrency=concurrency,
        flower=flower,
        local_model=local_model,
    )
    started = time.monotonic()
    is_up = False

    async def use(stack: EmbeddedStack) -> int:
        nonlocal is_up
        is_up = True
        output.say(f"\ntailrace is up after {time.monotonic() - started:.1f} s\n{await _summary(stack)}")
        await asyncio.Event().wait()
        return 0

    code = asyncio.run(running.run(EmbeddedStack(options), use))
    output.say("tailrace is down")
    raise typer.Exit(0 if is_up and code == INTERRUPTED else code)  # Ctrl-C is how it is meant to end


async def _summary(stack: EmbeddedStack) -> str:
    from tailrace.embedded.providers import example_model

    there = stack.connection
    model = example_model(stack.providers) or "MODEL"
    body = {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    lines = [
        f"  url     {there.url}",
        f"  key     {there.api_key}",
        *([f"  flower  {there.flower_url}"] if there.flower_url else []),
        f"  home    {stack.home}",
        "",
        (
            f"curl -N {there.url}/api/v1/llm/chat/completions/stream -H 'Authorization: Bearer {there.api_key}' "
            f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
        ),
        "",
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)
