"""The home folder of a stack, and the lock that makes one stack of it at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tailrace.embedded.options import StackError

#: Seconds to wait for the end of a stack whose supervisor is dead already.
CLEANING = 15.0


def prepare(home: Path) -> None:
    """Make the folders. Raises StackError where nothing can be written."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("logs", "valkey", "beat"):
            (home / name).mkdir(mode=0o700, exist_ok=True)
        probe = home / ".may-write"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StackError(
            f"the home folder {home} can't be written: {error.strerror}; choose another with --home"
        ) from None


@asynccontextmanager
async def locked(home: Path) -> AsyncGenerator[int]:
    """Hold the folder's lock; gives its file descriptor. Raises StackError where another stack has it."""
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = asyncio.get_running_loop().time() + CLEANING
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # A supervisor that was killed leaves a guardian, which has the lock until all is cleaned up.
                pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                if _alive(pid) or asyncio.get_running_loop().time() > deadline:
                    raise StackError(
                        f"a stack already runs on {home} (process {pid}): stop it, or choose another --home"
                    ) from None
                await asyncio.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
