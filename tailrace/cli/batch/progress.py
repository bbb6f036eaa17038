"""How a batch is doing, for eyes: a bar on a terminal, a line now and then elsewhere, nothing for programs."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

from tailrace.amounts import money, span
from tailrace.cli.output import say

#: Seconds between two lines of progress at first; each pause is half as long again, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
#: Seconds that rates are taken over.
WINDOW = 30.0
#: Columns of a terminal in which there is room for all that can be told.
WIDE = 110


class Reading:
    """A ``batch`` object, and what it has become since the earlier ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int, int]] = deque()
        self.status = "validating"
        self.total = self.completed = self.failed = self.tokens = 0
        self.cost: int | None = None

    def add(self, batch: dict[str, Any]) -> None:
        counts: dict[str, int] = batch.get("request_counts") or {}
        usage: dict[str, Any] = batch.get("usage") or {}
        self.status = batch["status"]
        self.total, self.completed, self.failed = (
            counts.get("total", 0),
            counts.get("completed", 0),
            counts.get("failed", 0),
        )
        self.tokens = usage.get("total_tokens") or 0
        self.cost = cost_of(batch)
        now = self._clock()
        self._seen.append((now, self.done, self.tokens))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()

    @property
    def done(self) -> int:
        return self.completed + self.failed

    def _rate(self, which: int) -> float:
        first, last = self._seen[0], self._seen[-1]
        seconds = last[0] - first[0]
        return (last[which] - first[which]) / seconds if seconds > 0 else 0.0

    @property
    def rows_per_second(self) -> float:
        return self._rate(1) if self._seen else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self._rate(2) if self._seen else 0.0

    @property
    def left(self) -> float | None:
        """Seconds to the end at this rate; None where nobody can say."""
        rate = self.rows_per_second
        return (self.total - self.done) / rate if rate > 0 and self.total else None

    def words(self, *, tokens: bool = True) -> list[str]:
        """All that is told beside the bar."""
        found = [f"{self.failed:,} failed"]
        if self.status in ("in_progress", "cancelling") and len(self._seen) > 1:
            found.append(f"{_rate(self.rows_per_second)} rows/s")
            found += [f"{_rate(self.tokens_per_second)} tokens/s"] if tokens else []
        found.append(money(self.cost))
        left = self.left if self.status == "in_progress" else None
        if left is not None:
            found.append(f"{span(left)} left")
        return found


class Progress(Protocol):
    def show(self, batch: dict[str, Any]) -> None: ...


class _Quiet:
    def show(self, batch: dict[str, Any]) -> None:
        pass


class _Lines:
    """A line for each status, and while it is the same one after a while, if something was done."""

    def __init__(self) -> None:
        self._reading = Reading()
        self._last: tuple[str, int] | None = None
        self._next, self._pause = 0.0, FIRST_PAUSE

    def show(self, batch: dict[str, Any]) -> None:
        reading = self._reading
        reading.add(batch)
        now = time.monotonic()
        changed = self._last is None or self._last[0] != reading.status
        if not changed and (now < self._next or self._last == (reading.status, reading.done)):
            return
        self._last = (reading.status, reading.done)
        self._pause = FIRST_PAUSE if changed else min(LONGEST_PAUSE, self._pause * 1.5)
        self._next = now + self._pause
        if reading.total:
            rows = f"{reading.done:,} of {reading.total:,} rows"
            say(f"{reading.status}: " + ", ".join([rows, *reading.words()]))
        else:
            say(reading.status)


class _Bar:
    def __init__(self) -> None:
        import rich.console
        import rich.progress

        self._reading = Reading()
        console = rich.console.Console(highlight=False)
        self._wide = console.width >= WIDE
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24 if self._wide else 8),
            rich.progress.TextColumn("{task.fields[rows]}"),
            rich.progress.TextColumn("{task.fields[words]}", style="dim"),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("validating", total=None, rows="", words="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, batch: dict[str, Any]) -> None:
        reading = self._reading
        reading.add(batch)
        self._progress.update(
            self._task,
            description=reading.status,
            total=reading.total or None,
            completed=reading.done,
            rows=f"{reading.done:,}/{reading.total:,}" if reading.total else "",
            words=" · ".join(reading.words(tokens=self._wide)) if reading.total else "",
        )


def progress(*, quiet: bool) -> AbstractContextManager[Progress]:
    """What suits standard output."""
    if quiet:
        return nullcontext(_Quiet())
    return _Bar() if sys.stdout.isatty() else nullcontext(_Lines())


def errors_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """What validation found, or why a batch was stopped."""
    errors: dict[str, Any] | None = batch.get("errors")
    return errors["data"] if errors else []


def rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def cost_of(batch: dict[str, Any]) -> int | None:
    """Nano-dollars; None where nobody knows."""
    cost = batch.get("cost")
    return None if cost is None else int(cost)


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
