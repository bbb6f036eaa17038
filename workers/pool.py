"""Celery's threads pool, in which a generation takes no thread.

A generate task goes from Celery's thread straight onto the loop of the streams, and its end comes back through a pipe
that Celery's hub reads. On a thread of its own it would be handed over twice more each way; and with
``worker_disable_prefetch`` a worker that was full would notice a freed slot only when its hub wakes, up to a second
later. Other tasks have a thread.

Use: ``CELERY_CUSTOM_WORKER_POOL=workers.pool:TaskPool celery -A workers.app worker -P custom``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

import msgspec
from billiard.einfo import ExceptionInfo
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.exceptions import Reject

from schemas.messaging import GENERATE, STOPPING, WakeUp

if TYPE_CHECKING:
    from workers.runtime import Runtime

log = logging.getLogger("tailrace.worker")

_decode_body = msgspec.json.Decoder(tuple[tuple[WakeUp], Any, Any]).decode


class TaskPool(ThreadPool):
    """``limit`` is how many tasks there may be at once, with a thread or without."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._finished: deque[_Running] = deque()

    def register_with_event_loop(self, loop: Any) -> None:
        """Called by the worker each time it builds its hub."""
        loop.add_reader(self._read, self._woken)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **options: Any,
    ) -> Any:
        if args and args[0] == GENERATE and callback is not None:
            running = _Running(callback)
            if accept_callback is not None:
                accept_callback(os.getpid(), time.monotonic())
            try:
                ((running.message,), _, _) = _decode_body(args[3])
                cast("Runtime", self.app.runtime).begin(running.message, lambda end: self._end(running, end))
            except Exception as error:  # noqa: BLE001 (the task fails, whatever is wrong with its message)
                self._end(running, error)
            return running
        result: Any = super().on_apply(target, args, kwargs, callback, accept_callback, **options)
        result.f.add_done_callback(self._wake)
        return result

    def on_stop(self) -> None:
        super().on_stop()
        self._tell()
        os.close(self._read)
        write, self._write = self._write, -1
        os.close(write)

    def _end(self, running: _Running, end: str | BaseException) -> None:
        """On the loop of the streams: what became of a generate task."""
        running.end = end
        self._finished.append(running)
        self._wake()

    def _wake(self, _: Future[Any] | None = None) -> None:
        with contextlib.suppress(OSError):  # a full pipe wakes the hub all the same
            os.write(self._write, b"\0")

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)
        self._tell()

    def _tell(self) -> None:
        """On Celery's thread: tell it of the tasks that ended."""
        while self._finished:
            running = self._finished.popleft()
            end, message = running.end, running.message
            if end == STOPPING and message is not None:
                # It was taken from its queue just then, and is for the next worker.
                task = self.app.tasks[GENERATE]
                if task.acks_late:
                    end = Reject(STOPPING, requeue=True)
                else:
                    task.apply_async(args=(message,), queue=message["queue"], task_id=message["id"])
            seconds = time.monotonic() - running.since
            if isinstance(end, BaseException):
                try:
                    raise end
                except Reject:
                    running.callback((1, ExceptionInfo(), seconds))
                except BaseException:
                    log.exception("a generate task failed: %s", message)
                    running.callback((1, ExceptionInfo(), seconds))
            else:
                running.callback((0, repr(end), seconds))


class _Running:
    """A generate task under way. ``callback`` is Celery's, for (failed, result, seconds)."""

    def __init__(self, callback: Callable[[tuple[int, Any, float]], Any]) -> None:
        self.callback = callback
        self.since = time.monotonic()
        self.message: WakeUp | None = None
        self.end: str | BaseException = ""
