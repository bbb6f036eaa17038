"""Running a command that Ctrl-C ends at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``; Ctrl-C cancels ``work``, and ends in KeyboardInterrupt where it lets it through.

    asyncio's own handler does not wake the loop: a signal that comes just before the loop waits is seen when something
    else wakes it, and is lost where that is the timeout of what it should cancel.
    """

    async def interruptible() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        return await work

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
