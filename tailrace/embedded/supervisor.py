"""Keeps the processes of a stack running: starts them, starts those again that die, and stops all of them."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from tailrace import backoff
from tailrace.embedded.options import StackError
from tailrace.embedded.process import Guardian, Part, Process, describe

#: Seconds for a part to get ready.
PATIENCE = 120.0
#: Between two looks at a part that starts, in seconds.
GLANCE = 0.1
#: A part that dies this often within so many seconds is beyond help.
DEATHS, DEATHS_SECONDS = 5, 60.0


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Do all of it at once; when one fails, give the others up and raise what it raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Supervisor:
    """Owns the processes. ``broken`` ends with a StackError when one of them can't be kept alive."""

    def __init__(self, guardian: Guardian, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self._guardian = guardian
        self._say = say
        self._warn = warn
        self._running: dict[str, Process] = {}
        self._been_ready: set[str] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self, *parts: Part) -> None:
        """Start the parts and wait until all are ready. Raises StackError."""
        processes = [await self._launch(part) for part in parts]
        self._keepers += [asyncio.create_task(self._keep(process)) for process in processes]
        await together(*(self._get_ready(process) for process in processes))

    async def _get_ready(self, process: Process) -> None:
        part = process.part
        try:
            async with asyncio.timeout(PATIENCE):
                # It is another process that is waited for, and it rings no bell.
                while not await self._unless_broken(part.ready()):  # noqa: ASYNC110
                    await asyncio.sleep(GLANCE)
        except TimeoutError:
            raise StackError(
                f"{part.name} is not ready after {PATIENCE:.0f} s; the last line of {part.log}: {process.last_words()}"
            ) from None
        self._been_ready.add(part.name)
        self._say(f"{part.name} ready" + (f": {part.where}" if part.where else ""))

    async def _unless_broken(self, check: Awaitable[bool]) -> bool:
        task = asyncio.ensure_future(check)
        await asyncio.wait((task, self.broken), return_when=asyncio.FIRST_COMPLETED)
        if self.broken.done():
            task.cancel()
            self.broken.result()
        return await task

    async def _launch(self, part: Part) -> Process:
        try:
            process = await Process.start(part)
        except OSError as error:
            raise StackError(f"{part.name} can't be started: {error}") from None
        self._running[part.name] = process
        self._guardian.add(process)
        return process

    async def _keep(self, process: Process) -> None:
        """Watch a part, through all its lives."""
        part = process.part
        deaths: deque[float] = deque(maxlen=DEATHS)
        clock = asyncio.get_running_loop().time
        while True:
            code = await process.wait()
            self._guardian.remove(process)
            self._running.pop(part.name, None)
            if part.name not in self._been_ready:
                return self._break(f"{part.name} did not start: {process.last_words()} (log: {part.log})")
            now = clock()
            deaths.append(now)
            recent = sum(1 for at in deaths if now - at < DEATHS_SECONDS)
            if recent == DEATHS:
                return self._break(f"{part.name} died {DEATHS} times within a minute: see {part.log}")
            self._warn(f"{part.name} died ({describe(code)}); starting it again")
            await asyncio.sleep(backoff.delay(recent))
            try:
                process = await self._launch(part)
            except StackError as error:
                return self._break(str(error))

    def _break(self, why: str) -> None:
        if not self.broken.done():
            self.broken.set_exception(StackError(why))

    async def stop(self) -> None:
        """End everything: all at once, and then what the others stand on."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for last in (False, True):
            leaving = [process for process in self._running.values() if process.part.last is last]
            await asyncio.gather(*(self._end(process) for process in leaving))
        self._running.clear()
        if not self.broken.cancel() and not self.broken.cancelled():
            self.broken.exception()  # has been seen, as far as asyncio is concerned

    async def _end(self, process: Process) -> None:
        process.terminate()
        end = asyncio.create_task(process.wait())
        await asyncio.wait((end,), timeout=process.part.grace)
        process.send(signal.SIGKILL)
        await end
        self._guardian.remove(process)

    def hurry(self) -> None:
        """Spend no grace: for the one who presses Ctrl-C again."""
        for process in self._running.values():
            if not process.part.last:
                process.send(signal.SIGKILL)
