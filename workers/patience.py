"""The timeouts of one attempt at a provider, whatever its kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from schemas.errors import DeadlineExceeded, ProviderError, TailraceError
from schemas.providers import Provider


class Patience:
    """The timeouts of one attempt: to the first chunk, between chunks, in all. A timer cancels the task that waits.

    ``left`` is what the request's own deadline leaves, in seconds. ``on_first`` is called at the first chunk.

    A chunk only notes the time; the timer looks at the note when it fires, so a chunk costs no timer.
    """

    def __init__(
        self, provider: Provider, left: float | None = None, *, on_first: Callable[[], None] | None = None
    ) -> None:
        self._on_first = on_first
        self._limits = provider.timeout
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._started = self._heard = self._loop.time()
        self._limit = self._limits.first_chunk
        self._total = self._limits.total if left is None else min(left, self._limits.total)
        self._deadline = left is not None and left <= self._limits.total
        self._timer: asyncio.TimerHandle | None = None
        self._begun = False
        self.expired: str | None = None

    def heard(self) -> None:
        self._heard = self._loop.time()
        if not self._begun:
            self._begun = True
            self._limit = self._limits.between_chunks
            self.__exit__()
            self._arm()  # the first chunk's limit may be much the longer one
            if self._on_first is not None:
                self._on_first()

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def error(self) -> TailraceError:
        limits = self._limits
        if self.expired == "total":
            if self._deadline:
                return DeadlineExceeded("The request's 'timeout' ran out before the answer was whole.")
            return ProviderError(
                f"The answer took longer than {limits.total:g} s in all.", code="provider_timeout", final=True
            )
        if self._begun:
            return ProviderError(
                f"The provider sent nothing for {limits.between_chunks:g} s.", code="provider_stalled"
            )
        return ProviderError(
            f"The provider's first chunk did not come within {limits.first_chunk:g} s.",
            code="provider_timeout",
        )

    def _arm(self) -> None:
        at = min(self._heard + self._limit, self._started + self._total)
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._started + self._total:
            self.expired = "total"
        elif now >= self._heard + self._limit:
            self.expired = "silence"
        else:
            self._arm()
            return
        assert self._task is not None
        self._task.cancel()
