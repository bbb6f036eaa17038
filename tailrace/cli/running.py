"""Running a stack from the command line: Ctrl-C and SIGTERM stop all of it, once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from tailrace.embedded.stack import EmbeddedStack

#: The exit code after Ctrl-C.
INTERRUPTED = 130

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run(stack: EmbeddedStack, use: Callable[[EmbeddedStack], Awaitable[int]]) -> int:
    """``use`` the stack while it runs, and give the exit code. A second signal cuts the stop short.

    Raises StackError, and whatever ``use`` raises.
    """
    got: list[signal.Signals] = []
    task = asyncio.create_task(_within(stack, use))
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        got.append(number)
        if len(got) == 1:
            task.cancel()
        else:
            stack.hurry()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not got:
            raise
        return INTERRUPTED if got[0] is signal.SIGINT else 0
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _within(stack: EmbeddedStack, use: Callable[[EmbeddedStack], Awaitable[int]]) -> int:
    """Whichever comes first: the end of ``use``, or of a part that can't be kept alive."""
    async with stack:
        using = asyncio.ensure_future(use(stack))
        broken = asyncio.ensure_future(stack.wait())
        try:
            await asyncio.wait((using, broken), return_when=asyncio.FIRST_COMPLETED)
            return using.result() if using.done() else broken.result() or 1
        finally:
            for task in (using, broken):
                task.cancel()
            await asyncio.gather(using, broken, return_exceptions=True)
