"""``--profile``: py-spy beside a server while Tailrace streams, and where its time went."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Self

#: Samples a second.
RATE = 250
#: Lines of each list of a summary, and the share of all samples that a line must have.
LINES, LEAST = 40, 0.008

#: What every stack begins with.
_BOILERPLATE = tuple(
    f"({file})"
    for file in (
        *("threading.py", "click/core.py", "click/decorators.py", "<frozen runpy>"),
        *("celery/__main__.py", "celery/bin/celery.py", "celery/bin/base.py", "celery/bin/worker.py"),
        *("celery/bootsteps.py", "celery/worker/worker.py", "celery/worker/consumer/consumer.py"),
        *("uvicorn/_compat.py", "uvicorn/server.py", "asyncio/runners.py", "gateway/__main__.py"),
    )
)


class Profiler:
    """py-spy on one process, into a file of collapsed stacks, which speedscope and flamegraph.pl open. ``native`` adds
    frames of C code."""

    def __init__(self, name: str, pid: int, seconds: float, folder: Path, *, native: bool = False) -> None:
        beside = Path(sys.executable).with_name("py-spy")
        program = str(beside) if beside.exists() else shutil.which("py-spy")
        if program is None:
            raise RuntimeError("--profile needs py-spy: make setup installs it")
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.file = file_of(name, folder)
        self._process = subprocess.Popen(
            [
                program,
                *("record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))),
                # Stopping a process with a hundred threads for every sample would measure the stopping, and reading
                # them all takes longer than a sample may.
                *("--nonblocking", "--gil", "--threads", "--rate", str(RATE)),
                *("--format", "raw", "--output", str(self.file)),
                *(("--native",) if native else ()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until the file is written. Raises RuntimeError with what py-spy says."""
        said, _ = self._process.communicate(timeout=60)
        if self._process.returncode or not self.file.exists():
            raise RuntimeError(f"py-spy: {said.strip()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def file_of(name: str, folder: Path) -> Path:
    return folder / f"{name}.collapsed.txt"


def summary(collapsed: str) -> str:
    """Where the samples are: by thread and, within it, by function with all that it calls; and by a function's own."""
    threads: Counter[str] = Counter()
    own: Counter[str] = Counter()
    cumulative: dict[str, Counter[str]] = defaultdict(Counter)
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        title, *frames = stack.split(";")
        thread, frames = _thread(title), [_function(frame) for frame in frames] or ["?"]
        samples = int(count)
        threads[thread] += samples
        own[frames[-1]] += samples
        for frame in {frame for frame in frames if not frame.endswith(_BOILERPLATE)}:
            cumulative[thread][frame] += samples
    total = threads.total() or 1

    def lines(counts: Counter[str]) -> list[str]:
        return [
            f"    {100 * n / total:5.1f}%  {frame}"
            for frame, n in counts.most_common(LINES)
            if n / total > LEAST
        ]

    said = [
        f"{total} samples of a thread that has the interpreter",
        "  by a function's own time",
        *lines(own),
    ]
    for thread, samples in threads.most_common():
        said += [f"  {100 * samples / total:5.1f}%  in {thread}, with callees", *lines(cumulative[thread])]
    return "\n".join(said)


def _thread(frame: str) -> str:
    """``thread (0x7F…): pool-1_17`` as ``pool-1``."""
    name = frame.partition("): ")[2] or frame
    return re.sub(r"[_-]\d+$", "", name)


def _function(frame: str) -> str:
    """``name (file.py:123)`` without the line."""
    return frame.rpartition(":")[0] + ")" if frame.endswith(")") and ":" in frame else frame
