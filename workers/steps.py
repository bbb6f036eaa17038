"""What we add to Celery's worker: the runtime, and a consumer that talks less to its broker.

Measured per task on a Redis broker: of 2.9 ms that Celery's thread took, 0.6 ms went into acknowledging messages that
were never to be redelivered and 1.1 ms into publishing each task event by itself.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from types import MethodType
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.worker.state import active_requests

from schemas.errors import TailraceError
from schemas.settings import Settings
from schemas.states import Queue

if TYPE_CHECKING:
    from workers.runtime import Runtime

log = logging.getLogger("tailrace.worker")

#: How long task events are gathered before they are published, in seconds.
EVENTS_PAUSE = 0.25
#: After so long a running task's message is acknowledged, in seconds, and how often that is looked at. RabbitMQ closes
#: the channel of whoever keeps one for 30 minutes (its ``consumer_timeout``).
ACKNOWLEDGE_AFTER, ACKNOWLEDGE_PERIOD = 600.0, 60.0

#: How long a worker may take to end after SIGTERM, in seconds. Its streams are handed on long before that.
EXIT_SECONDS = 25.0
#: The file descriptor: Celery puts an object that has none in the place of sys.stderr.
STDERR = 2


def end_within(seconds: float) -> None:
    """End the process if it is still there then, and tell where its threads stood."""

    def end() -> None:
        time.sleep(seconds)
        log.error("the worker had not stopped within %g s: it is ended", seconds)
        try:
            faulthandler.dump_traceback(file=STDERR, all_threads=True)
        finally:
            os._exit(1)

    threading.Thread(target=end, name="exit", daemon=True).start()


class RuntimeStep(bootsteps.StartStopStep):
    """Starts the loop and the control thread before the worker takes its first message."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._runtime: Runtime | None = None

    def start(self, parent: Any) -> None:
        from workers.pool import TaskPool  # beat and Flower load this app too, and need none of it
        from workers.runtime import Runtime

        if not isinstance(parent.pool, TaskPool):
            sys.exit(
                "tailrace: start this worker with -P custom and CELERY_CUSTOM_WORKER_POOL=workers.pool:TaskPool"
            )
        try:
            bulk = Queue.INTERACTIVE not in parent.app.amqp.queues.consume_from
            self._runtime = Runtime(Settings(), slots=parent.concurrency, bulk=bulk)
            self._runtime.start()
        except TailraceError as error:
            sys.exit(f"tailrace: {error}")
        parent.app.runtime = self._runtime
        signals.worker_shutting_down.connect(self._on_shutdown, weak=False)

    def stop(self, parent: Any) -> None:
        if self._runtime is not None:
            self._runtime.stop()
            self._runtime = None

    terminate = stop

    def _on_shutdown(self, **_: Any) -> None:
        if self._runtime is not None:
            self._runtime.drain()
            end_within(EXIT_SECONDS)


class QuietConsumerStep(bootsteps.StartStopStep):
    """After each connection to the broker: no acknowledgement where none is kept, and events in bunches."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        channel = parent.task_consumer.channel
        if parent.connection.transport.driver_type == "redis" and all(
            queue.no_ack for queue in parent.task_consumer.queues
        ):
            # kombu's virtual channels send the acknowledgement of a message of a no_ack queue all the same.
            channel.qos.ack = MethodType(_forget, channel.qos)
        if parent.hub is not None and parent.event_dispatcher is not None:
            parent.event_dispatcher.on_send_buffered = _Bunching(parent)

    def stop(self, parent: Any) -> None:
        if parent.event_dispatcher is not None:
            parent.event_dispatcher.on_send_buffered = None


class AcknowledgeStep(bootsteps.StartStopStep):
    """Where messages are acknowledged when their task ends: what is different for some of them."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def include_if(self, parent: Any) -> bool:
        return bool(parent.app.conf.task_acks_late)

    def start(self, parent: Any) -> None:
        for request in tuple(active_requests):
            # It came by a connection that was lost, so it is the broker's again; whoever gets it finds the lease.
            request.acknowledged = True
        if parent.hub is not None:
            parent.hub.timer.call_repeatedly(ACKNOWLEDGE_PERIOD, _acknowledge_long_ones)


def _acknowledge_long_ones() -> None:
    """A message that begins its task needs no more care; it is kept for the slot that it stands for."""
    for request in tuple(active_requests):
        if request.time_start is not None and time.time() - request.time_start > ACKNOWLEDGE_AFTER:
            request.acknowledge()


def _forget(qos: Any, delivery_tag: str) -> None:
    """In place of kombu's ``QoS.ack``, which would remove a note that was never made."""


class _Bunching:
    """Publishes buffered events once in ``EVENTS_PAUSE``; the dispatcher itself does when its buffer is full."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._waiting = False

    def __call__(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._consumer.hub.call_later(EVENTS_PAUSE, self._flush)

    def _flush(self) -> None:
        self._waiting = False
        if self._consumer.event_dispatcher is not None:
            self._consumer.event_dispatcher.flush()
