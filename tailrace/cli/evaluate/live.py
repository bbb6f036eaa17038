"""How a run is doing: a live table on a terminal, a line now and then elsewhere, nothing for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Self

from tailrace.amounts import money, span
from tailrace.cli.batch.progress import FIRST_PAUSE, LONGEST_PAUSE, Reading
from tailrace.cli.output import say
from tailrace.evaluation.formats import count

if TYPE_CHECKING:
    from tailrace.evaluation.fanout import Work
    from tailrace.evaluation.runner import Observer

#: Characters of a bar.
BAR = 16
#: Scores that there is room for in a line.
SCORES = 3


class Row:
    """One arm or judge: its rows that were answered before, and its batch."""

    def __init__(self, work: Work) -> None:
        self.label = work.label
        self.total = len(work.asked)
        self.means: Mapping[str, float] = {}
        self._batch: str | None = None
        self._begin(work)

    def _begin(self, work: Work) -> None:
        self.before = self.total - len(work.pending())
        self.reading = Reading()

    def add(self, work: Work, now: dict[str, Any]) -> None:
        if self._batch is not None and now["id"] != self._batch:
            self._begin(work)
        self._batch = now["id"]
        self.reading.add(now)

    @property
    def done(self) -> int:
        return min(self.total, self.before + self.reading.done)

    @property
    def status(self) -> str:
        if self.before == self.total:
            return "answered"
        return self.reading.status if self.reading.total else "waiting"

    def scores(self) -> str:
        shown = list(self.means.items())[:SCORES]
        return "  ".join(f"{name} {mean:.3f}" for name, mean in shown)

    def cells(self) -> list[str]:
        reading = self.reading
        left = reading.left
        filled = round(BAR * self.done / self.total) if self.total else BAR
        return [
            self.label,
            "━" * filled + "╺" * (BAR - filled),
            f"{self.done:,}/{self.total:,}",
            f"{reading.failed:,}" if reading.failed else "",
            self.scores(),
            f"{reading.tokens_per_second:,.0f}" if reading.tokens else "",
            money(reading.cost) if reading.total else "",
            "" if left is None or self.done >= self.total else span(left),
        ]


class _Board:
    """What all of them share: rows by name."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def begin(self, works: list[Work]) -> None:
        for work in works:
            self.rows[work.name] = Row(work)

    def batch(self, work: Work, now: dict[str, Any]) -> None:
        self.rows[work.name].add(work, now)

    def scores(self, work: Work, means: Mapping[str, float]) -> None:
        self.rows[work.name].means = means

    def ended(self, work: Work) -> None:
        """For those who tell of it."""


class _Quiet(_Board):
    def told(self, line: str) -> None:
        pass


class _Lines(_Board):
    """A line for each batch that ends, and for all that run after a while, if something was done."""

    def __init__(self) -> None:
        super().__init__()
        self._pause, self._done = FIRST_PAUSE, 0
        self._next = time.monotonic() + self._pause

    def told(self, line: str) -> None:
        say(line)

    def begin(self, works: list[Work]) -> None:
        super().begin(works)
        for work in works:
            row = self.rows[work.name]
            already = f", {row.before:,} answered already" if row.before else ""
            say(f"{row.label}: {count(row.total, 'request')}{already}")

    def batch(self, work: Work, now: dict[str, Any]) -> None:
        super().batch(work, now)
        if time.monotonic() >= self._next:
            done = sum(row.done for row in self.rows.values())
            if done != self._done:
                for other in self.rows.values():
                    if other.status == "in_progress":
                        say(self._line(other))
            self._done = done
            self._next = time.monotonic() + self._pause
            self._pause = min(LONGEST_PAUSE, self._pause * 1.5)

    def ended(self, work: Work) -> None:
        say(self._line(self.rows[work.name]))

    def _line(self, row: Row) -> str:
        words = [f"{row.done:,} of {row.total:,}", *row.reading.words()]
        if row.means:
            words.append(row.scores())
        return f"{row.label}: {row.reading.status}, " + ", ".join(words)


class _Table(_Board):
    """Drawn anew four times a second."""

    def __init__(self) -> None:
        import rich.console
        import rich.live

        super().__init__()
        self._console = rich.console.Console(highlight=False, markup=False)
        self._live = rich.live.Live(console=self._console, refresh_per_second=4, get_renderable=self._draw)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def told(self, line: str) -> None:
        self._console.print(line)

    def _draw(self) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("model", overflow="fold")
        table.add_column("", no_wrap=True)
        for name in ("done", "failed"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("running score", overflow="fold")
        for name in ("tokens/s", "cost", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows.values():
            cells = [Text(cell) for cell in row.cells()]
            cells[1].stylize("green" if row.done >= row.total else "cyan")
            if row.reading.failed:
                cells[3].stylize("red")
            table.add_row(*cells)
        return table


def live(*, quiet: bool) -> AbstractContextManager[Observer]:
    """What suits standard output."""
    if quiet:
        return nullcontext(_Quiet())
    return _Table() if sys.stdout.isatty() else nullcontext(_Lines())
