"""Which rows have their end in the books: one look for all slices of a process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from stores.slices import RowEnd, Slices

log = logging.getLogger("tailrace.batches")

#: Between looks, in seconds; and after one that failed.
PAUSE, FAILURE_PAUSE = 0.25, 1.0
#: Rows of one look.
ROWS = 2000

OnEnd = Callable[[RowEnd], None]


class Ends:
    """Everything here happens on one loop."""

    def __init__(self, slices: Slices) -> None:
        self._slices = slices
        self._waiting: dict[str, tuple[bool, OnEnd]] = {}
        self._looking: asyncio.Task[None] | None = None

    def wait(self, completion: str, on_end: OnEnd, *, early: bool) -> None:
        """``on_end`` is called once it has an end; ``early``: also one that comes before its usage record."""
        self._waiting[completion] = (early, on_end)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())

    def forget(self, completion: str) -> None:
        self._waiting.pop(completion, None)

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self) -> None:
        failing = False
        while self._waiting:
            await asyncio.sleep(FAILURE_PAUSE if failing else PAUSE)
            try:
                for early in (False, True):
                    ids = [id for id, (mode, _) in self._waiting.items() if mode is early]
                    for first in range(0, len(ids), ROWS):
                        await self._some(ids[first : first + ROWS], early)
                failing = False
            except SQLAlchemyError as error:
                if not failing:
                    log.warning("the ends of rows can't be looked up: %s", error)
                failing = True

    async def _some(self, ids: list[str], early: bool) -> None:
        found = await asyncio.to_thread(self._slices.ended, ids, early=early)
        for id, end in found.items():
            waiting = self._waiting.pop(id, None)
            if waiting is not None:
                waiting[1](end)
