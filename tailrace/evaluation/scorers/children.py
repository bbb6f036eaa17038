"""Child processes that answer one JSON line with another, and are ended when they take too long."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

#: Seconds between looks at whether a child has ended whose pipe something else holds open.
TICK = 0.2
#: Seconds that a child may take to end by itself.
LEAVING = 1.0
#: Bytes that are read at once.
READ_BYTES = 65536

_SCRIPT = Path(__file__).with_name("child.py")


class Hung(Exception):
    """It took too long, and was ended."""


class Died(Exception):
    """It ended instead of answering; the text says how."""


class Stopped(Exception):
    """Nobody waits for the answer any more."""


class Child:
    """Started by ``start`` or by the first ``ask``, and again by the next one after it hung or died. For several
    threads: they wait for each other.

    ``arguments`` are those of ``child.py``, ``flags`` Python's own. ``starting``: seconds until it must be ready.
    """

    def __init__(self, *arguments: str, flags: Sequence[str] = (), starting: float) -> None:
        self._command = [sys.executable, *flags, str(_SCRIPT), *arguments]
        self._starting = starting
        self._process: subprocess.Popen[bytes] | None = None
        self._selector = selectors.PollSelector()
        self._buffer = b""
        self._asked = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Raises Hung or Died; what the child could not do for want of a module or the like is Died's text."""
        with self._lock:
            self._started()

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """What the child answers within ``timeout`` seconds. Raises Hung, Died or Stopped."""
        with self._lock:
            process = self._started()
            self._asked += 1
            line = msgspec.json.encode(request | {"id": self._asked, "timeout": timeout}) + b"\n"
            return self._exchange(process, self._asked, line, timeout)

    def stop(self) -> None:
        """For another thread: whoever asks, now or later, has Stopped raised, soon and whatever the child is at."""
        self._stopped.set()

    def close(self) -> None:
        """Ends the child and its process group."""
        with self._lock:
            self._end(LEAVING)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and not _has_ended(self._process):
            return self._process
        self._end(0)
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        self._process, self._buffer = process, b""
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ)
        ready = self._exchange(process, 0, b"", self._starting)
        if "error" in ready:
            self._end(0)
            raise Died(ready["error"])
        return process

    def _exchange(
        self, process: subprocess.Popen[bytes], id: int, line: bytes, timeout: float
    ) -> dict[str, Any]:
        until = time.monotonic() + timeout
        unsent = memoryview(line)
        try:
            while True:
                if self._stopped.is_set():
                    raise Stopped
                unsent = self._send(process, unsent)
                for answer in self._receive(process, min(TICK, until - time.monotonic())):
                    if answer.get("id") == id:
                        return answer
                if time.monotonic() >= until:
                    raise Hung(f"took more than {timeout:g} s")
        except BaseException:
            self._end(0)
            raise

    def _send(self, process: subprocess.Popen[bytes], unsent: memoryview) -> memoryview:
        assert process.stdin is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while unsent:
                unsent = unsent[os.write(process.stdin.fileno(), unsent) :]
        writing = process.stdin in self._selector.get_map()
        if unsent and not writing:
            self._selector.register(process.stdin, selectors.EVENT_WRITE)
        elif writing and not unsent:
            self._selector.unregister(process.stdin)
        return unsent

    def _receive(self, process: subprocess.Popen[bytes], seconds: float) -> list[dict[str, Any]]:
        """Whole lines that have come, within some seconds. Raises Died where there will be none."""
        assert process.stdout is not None
        ready = [key.fileobj for key, _ in self._selector.select(max(seconds, 0))]
        if process.stdout not in ready:
            if _has_ended(process):
                raise self._death(process)
            return []
        data = os.read(process.stdout.fileno(), READ_BYTES)
        if not data:
            raise self._death(process)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [msgspec.json.decode(line) for line in lines]

    def _death(self, process: subprocess.Popen[bytes]) -> Died:
        self._end(LEAVING)
        code = process.returncode
        if code is not None and code < 0:
            return Died(f"its process was ended by signal {-code} ({signal.strsignal(-code)})")
        return Died(f"its process ended with status {code}")

    def _end(self, seconds: float) -> None:
        """Waits that long for the child to end by itself, then ends its group. Until it is reaped its group is its
        own, so nobody else's can be hit."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            if pipe in self._selector.get_map():
                self._selector.unregister(pipe)
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        process.stdin.close()
        until = time.monotonic() + seconds
        while not _has_ended(process) and time.monotonic() < until:
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has, without reaping it."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
