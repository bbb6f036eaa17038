"""Putting Celery messages on RabbitMQ.

The broker confirms a message once it would survive a restart, which takes 0.8 ms at best and much longer on a slow
disk. One at a time, a gateway could accept no faster than that; so all that wait go out together and their confirms are
read afterwards: 300 took 16 ms, for 0.03 ms of CPU each. py-amqp blocks, so this is a thread's work, and the connection
is that thread's alone.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from producers.message import Message, Messages, producing_app
from schemas.errors import Unavailable
from schemas.messaging import HEARTBEAT, Job, on_rabbitmq, probe, wake_up
from schemas.settings import Settings
from stores.redis import PATIENCE, RETRY_FIRST, RETRY_LAST

log = logging.getLogger("tailrace.publish")

#: How long a broker that was reached may be silent where it should answer, in seconds: less than half of PATIENCE, so
#: that a connection that died unnoticed leaves time for another one.
ANSWER_SECONDS = 2
#: Messages that are sent before their confirms are read.
MOST_UNCONFIRMED = 500


@dataclass(frozen=True)
class _Order:
    """A message that somebody waits for, until ``until`` on the monotonic clock."""

    queue: str
    message: Message
    until: float
    done: Future[None] = field(default_factory=Future[None])


class RabbitPublisher:
    """Each message is confirmed, or refused with Unavailable after PATIENCE. It may arrive all the same, or twice."""

    def __init__(self, settings: Settings) -> None:
        assert on_rabbitmq(settings)
        self._messages = Messages(settings)
        self._app = producing_app(settings)
        self._inbox: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._waiting: list[_Order] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)
        self._thread.start()

    async def publish(self, generation: str, queue: str, seq: int) -> None:
        await self._put(queue, self._messages.message(wake_up(generation, queue, seq)))

    async def probe(self, partition: int, queue: str, seq: int) -> None:
        await self._put(queue, self._messages.message(probe(partition, queue, seq)))

    async def send(self, task: str, job: Job, queue: str) -> None:
        await self._put(queue, self._messages.job(task, job, queue))

    async def _put(self, queue: str, message: Message) -> None:
        order = _Order(queue, message, until=time.monotonic() + PATIENCE)
        self._inbox.put(order)
        await asyncio.wrap_future(order.done)

    async def close(self) -> None:
        """Messages on their way go out first."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)
        self._app.close()

    def _run(self) -> None:
        link: _Link | None = None
        pause = RETRY_FIRST
        while True:
            self._gather()
            if self._closing and not self._waiting:
                break
            try:
                if link is None:
                    if not self._waiting:
                        continue
                    link = _Link(self._app)
                if self._waiting:
                    link.put(self._waiting)
                else:
                    link.idle()
                pause = RETRY_FIRST
            except Exception as error:  # noqa: BLE001 (py-amqp's own errors, the socket's, and what it trips over)
                if link is not None:
                    link.drop()
                    link = None
                self._refuse(error, time.monotonic() + pause)
                if self._waiting:
                    time.sleep(pause)
                    pause = min(pause * 2, RETRY_LAST)
        if link is not None:
            link.close()

    def _gather(self) -> None:
        """Take what came in meanwhile; with nothing to do, wait for it, but no longer than a connection may idle."""
        try:
            order = self._inbox.get(timeout=0 if self._waiting else HEARTBEAT / 3)
            while True:
                if order is None:
                    self._closing = True
                elif order.done.set_running_or_notify_cancel():
                    self._waiting.append(order)
                order = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _refuse(self, error: Exception, now: float) -> None:
        """Answer those who would wait too long."""
        late = [order for order in self._waiting if order.until <= now]
        self._waiting = [order for order in self._waiting if order.until > now]
        reason = " ".join(str(error).split()) or type(error).__name__
        for order in late:
            order.done.set_exception(Unavailable(f"The broker does not take messages: {reason}"))
        if late:
            log.warning("%d messages refused: the broker does not take them: %s", len(late), reason)


class _Link:
    """A connection with a channel that confirms. What it raises, the connection is no more to be used."""

    def __init__(self, app: Celery) -> None:
        options = {"read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS}
        self._connection: Any = app.connection(
            transport_options=options, heartbeat=HEARTBEAT, connect_timeout=ANSWER_SECONDS
        )
        self._unconfirmed: dict[int, _Order] = {}
        self._sent = 0
        try:
            # Each host of a URL that names several, and once more.
            self._connection.ensure_connection(
                max_retries=len(self._connection.alt) or 1, interval_start=RETRY_FIRST, interval_step=0
            )
            self._channel: Any = self._connection.channel()
            # Declared as the workers do, so that the queue is there before the first worker is.
            queues: Any = app.amqp.queues
            for declared in queues.values():
                declared(self._channel).declare()
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(self._confirmed)
            self._channel.events["basic_nack"].add(self._refused)
        except BaseException:
            self.drop()
            raise

    def put(self, orders: list[_Order]) -> None:
        """Send, and wait until all are confirmed. A confirmed one is taken from ``orders`` and its caller told."""
        batch = orders[:MOST_UNCONFIRMED]
        for order in batch:
            message = order.message
            self._sent += 1
            self._unconfirmed[self._sent] = order
            prepared = self._channel.prepare_message(
                message.body,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                headers=message.headers,
                properties={
                    "delivery_mode": 2,
                    "correlation_id": message.properties["correlation_id"],
                    "reply_to": message.properties["reply_to"],
                },
            )
            # A queue that somebody deleted: the message comes back, which is an error that makes us declare it again.
            self._channel.basic_publish(prepared, exchange="", routing_key=order.queue, mandatory=True)
        try:
            while self._unconfirmed:
                self._connection.drain_events(timeout=ANSWER_SECONDS)
        finally:
            orders[: len(batch)] = self._unconfirmed.values()

    def idle(self) -> None:
        """Say that we live, and hear whether the broker does."""
        self._connection.heartbeat_check()
        try:
            self._connection.drain_events(timeout=0.001)
        except TimeoutError:
            pass

    def close(self) -> None:
        try:
            self._connection.release()
        except Exception:  # noqa: BLE001 (a broker that is away hears no goodbye)
            self.drop()

    def drop(self) -> None:
        """Close without a word to the broker."""
        self._connection.collect()

    def _confirmed(self, tag: int, multiple: bool) -> None:
        for number in [n for n in self._unconfirmed if n <= tag] if multiple else [tag]:
            order = self._unconfirmed.pop(number, None)
            if order is not None:
                order.done.set_result(None)

    def _refused(self, tag: int, multiple: bool) -> None:
        raise OSError("the broker refused a message; see its log")
