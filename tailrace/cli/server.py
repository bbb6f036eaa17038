"""Which server a long command speaks to: the one that is configured, or a stack for its own duration."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import tailrace
from tailrace import connection
from tailrace.cli import interruptible, output

if TYPE_CHECKING:
    from tailrace.embedded.stack import EmbeddedStack

#: How often a server is asked again that doesn't answer: it may be restarting, which takes some seconds.
RETRIES = 5
#: What a command does with a server; the exit code.
Use = Callable[[tailrace.Client], Awaitable[int]]


def is_configured(home: Path | None) -> bool:
    """Whether a server is known: by the environment, or as the stack that runs on the home folder."""
    if home is None and os.environ.get("TAILRACE_URL"):
        return True
    folder = connection.home_path(home)
    return connection.read(folder) is not None and not _stopped(folder)


def _stopped(home: Path) -> bool:
    """Whether the file is that of a stack which has ended: the running one has the folder's lock."""
    try:
        descriptor = os.open(home / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def identity(home: Path | None) -> str:
    """What tells servers apart; the port of an embedded stack is another one each time."""
    if is_configured(home):
        return tailrace.Client(home=home).url.rstrip("/")
    return f"embedded:{connection.home_path(home)}"


def with_server(home: Path | None, use: Use) -> int:
    """``use`` the configured server. Ctrl-C cancels it, and ends in KeyboardInterrupt where it lets it through."""

    async def run() -> int:
        async with tailrace.Client(home=home, retries=RETRIES) as client:
            return await use(client)

    return interruptible.run(run())


def embedded(home: Path | None, *, local_model: bool, quiet: bool, use: Use) -> int:
    """``use`` a stack that runs as long as that takes; Ctrl-C stops all of it."""
    from tailrace.cli import running
    from tailrace.embedded.options import Options
    from tailrace.embedded.stack import EmbeddedStack

    options = Options(
        home=connection.home_path(home),
        say=_nothing if quiet else output.say,
        warn=output.warn,
        port=0,
        flower=False,
        local_model=local_model,
    )

    async def with_stack(stack: EmbeddedStack) -> int:
        async with tailrace.Client(stack.connection.url, stack.connection.api_key) as client:
            return await use(client)

    return asyncio.run(running.run(EmbeddedStack(options), with_stack))


def _nothing(_: str) -> None:
    pass
