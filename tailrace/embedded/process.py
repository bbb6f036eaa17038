"""One process of the stack: starting it, waiting for it, ending it with all that it started."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from tailrace.embedded import guardian

#: A log longer than this many bytes is put aside (as ``.1``) when its process starts.
LONGEST_LOG = 10 * 1024 * 1024
#: Seconds that a part gets to end by itself; a worker uses about half of them for its streams.
GRACE = 8.0


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """How to run a part of the stack, and how to know that it is ready.

    ``where`` is said once it is. ``last``: stopped after the others, which need it to stop well. ``grace`` is the
    time between SIGTERM and SIGKILL, in seconds.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    ready: Callable[[], Awaitable[bool]]
    where: str = ""
    last: bool = False
    grace: float = GRACE


class Process:
    """A running part, the leader of a session of its own: the terminal's Ctrl-C goes past it."""

    def __init__(self, part: Part, process: asyncio.subprocess.Process, log_start: int) -> None:
        self.part = part
        self.pid = process.pid
        self._process = process
        self._log_start = log_start

    @classmethod
    async def start(cls, part: Part) -> Process:
        """Raises OSError."""
        if part.log.exists() and part.log.stat().st_size > LONGEST_LOG:
            part.log.replace(part.log.with_name(part.log.name + ".1"))
        with part.log.open("ab") as log:
            log_start = log.tell()
            process = await asyncio.create_subprocess_exec(
                *part.command,
                cwd=part.folder,
                env=part.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return cls(part, process, log_start)

    async def wait(self) -> int:
        """The exit code once it has ended; what it left in its group is killed."""
        code = await self._process.wait()
        self.send(signal.SIGKILL)
        return code

    def terminate(self) -> None:
        """Ask the leader to end; it asks its children."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def last_words(self) -> str:
        """The last line that it wrote, for an error of one line."""
        log = self.part.log
        with log.open("rb") as file:
            file.seek(max(self._log_start, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip()[:400] for line in reversed(lines) if line.strip()), "it said nothing")

    def send(self, number: signal.Signals) -> None:
        """Signal the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def describe(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class Guardian:
    """Makes sure that no process outlives a supervisor that gets ``kill -9``. See ``guardian.py``.

    It holds the home folder's lock as well, so that the next stack begins when the last one is really gone.
    """

    def __init__(self, lock: int, log: Path) -> None:
        self._lock = lock
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._listed: dict[int, str] = {}

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guardian.__file__),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(self._lock,),
            )
        for line in self._listed.values():
            self._tell(line)

    def add(self, process: Process) -> None:
        self._listed[process.pid] = f"+{process.pid}{' last' if process.part.last else ''}\n"
        self._tell(self._listed[process.pid])

    def remove(self, process: Process) -> None:
        if self._listed.pop(process.pid, None):
            self._tell(f"-{process.pid}\n")

    def _tell(self, line: str) -> None:
        if self._process and self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write(line.encode())

    async def keep(self) -> None:
        """Start it again whenever it ends; until cancelled."""
        while self._process:
            await self._process.wait()
            await asyncio.sleep(0.1)
            await self.start()

    async def stop(self) -> None:
        """Let it go; the list must be empty, or it does its work."""
        if self._process:
            process, self._process = self._process, None
            if process.stdin:
                process.stdin.close()
            await process.wait()
