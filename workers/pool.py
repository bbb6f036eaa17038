"""Celery's threads pool, in which neither a generation nor a slice of a batch takes a thread.

A generate task goes from Celery's thread straight onto the loop of the streams, and its end comes back through a pipe
that Celery's hub reads. On a thread of its own it would be handed over twice more each way; and with
``worker_disable_prefetch`` a worker that was full would notice a freed slot only when its hub wakes, up to a second
later. A slice is the same with many generations. Other tasks have a thread.

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

from schemas.batches import SLICE
from schemas.messaging import GENERATE, STOPPING, Job, WakeUp, job_id
from schemas.states import Queue

if TYPE_CHECKING:
    from workers.runtime import Runtime

log = logging.getLogger("tailrace.worker")

_decode_wake = msgspec.json.Decoder(tuple[tuple[WakeUp], Any, Any]).decode
_decode_job = msgspec.json.Decoder(tuple[tuple[Job], Any, Any]).decode


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
        if args and args[0] in (GENERATE, SLICE) and callback is not None:
            running = _Running(args[0], callback)
            if accept_callback is not None:
                accept_callback(os.getpid(), time.monotonic())
            runtime = cast("Runtime", self.app.runtime)
            try:
                if running.task == GENERATE:
                    ((running.wake,), _, _) = _decode_wake(args[3])
                    runtime.begin(running.wake, lambda end: self._end(running, end))
                else:
                    ((running.job,), _, _) = _decode_job(args[3])
                    runtime.begin_slice(running.job, lambda end: self._end(running, end))
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
        """On the loop of the streams: what became of a task."""
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
            end = running.end
            if end == STOPPING and (address := running.address) is not None:
                # It was taken from its queue just then, and is for the next worker.
                message, queue, id = address
                task = self.app.tasks[running.task]
                if task.acks_late:
                    end = Reject(STOPPING, requeue=True)
                else:
                    task.apply_async(args=(message,), queue=queue, task_id=id)
            seconds = time.monotonic() - running.since
            if isinstance(end, BaseException):
                try:
                    raise end
                except Reject:
                    running.callback((1, ExceptionInfo(), seconds))
                except BaseException:
                    log.exception("%s failed: %s", running.task, running.wake or running.job)
                    running.callback((1, ExceptionInfo(), seconds))
            else:
                running.callback((0, repr(end), seconds))


class _Running:
    """A task under way without a thread. ``callback`` is Celery's, for (failed, result, seconds)."""

    def __init__(self, task: str, callback: Callable[[tuple[int, Any, float]], Any]) -> None:
        self.task = task
        self.callback = callback
        self.since = time.monotonic()
        self.wake: WakeUp | None = None
        self.job: Job | None = None
        self.end: str | BaseException = ""

    @property
    def address(self) -> tuple[WakeUp | Job, str, str] | None:
        """The message, its queue and its id; None for one that can't be read."""
        if self.wake is not None:
            return self.wake, self.wake["queue"], self.wake["id"]
        return None if self.job is None else (self.job, Queue.BULK.value, job_id(self.task, self.job))
