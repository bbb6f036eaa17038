"""Putting Celery messages, from an asyncio process: on our own connection to Redis, or by a thread to RabbitMQ."""

from __future__ import annotations

import asyncio
import base64
import uuid
from typing import Protocol

import hiredis
import msgspec

from producers.message import Message, Messages
from producers.rabbitmq import RabbitPublisher
from schemas.errors import ConfigurationError, Unavailable
from schemas.messaging import BROKER_PREFIX, Job, on_rabbitmq, probe, wake_up
from schemas.settings import Settings
from stores.redis import PATIENCE, RETRY_FIRST, RETRY_LAST, Node
from stores.wire import Address, WireError


class Publisher(Protocol):
    """Sends wake-ups and jobs by task name; knows nothing of the workers."""

    async def publish(self, generation: str, queue: str, seq: int) -> None:
        """Returns once the broker has the message. Raises Unavailable."""
        ...

    async def probe(self, partition: int, queue: str, seq: int) -> None:
        """As ``publish``, a message without work: it tells that those before it have been taken."""
        ...

    async def send(self, task: str, job: Job, queue: str) -> None:
        """As ``publish``, a job of a batch."""
        ...

    async def close(self) -> None: ...


def make_publisher(settings: Settings) -> Publisher:
    """The one for the broker that the settings name. Raises ConfigurationError."""
    if on_rabbitmq(settings):
        return RabbitPublisher(settings)
    try:
        return RedisPublisher(settings, Address.from_url(settings.effective_broker_url))
    except ValueError as error:
        raise ConfigurationError(
            f"TAILRACE_BROKER_URL: {error}; RabbitMQ's with amqp:// or amqps://"
        ) from None


class RedisPublisher:
    """A Redis broker: kombu's queue is a list, and a message an element that is pushed to it, for 0.05 ms of CPU."""

    def __init__(self, settings: Settings, address: Address) -> None:
        self._node = Node(address)
        self._messages = Messages(settings)

    async def publish(self, generation: str, queue: str, seq: int) -> None:
        await self._put(queue, self._messages.message(wake_up(generation, queue, seq)))

    async def probe(self, partition: int, queue: str, seq: int) -> None:
        await self._put(queue, self._messages.message(probe(partition, queue, seq)))

    async def send(self, task: str, job: Job, queue: str) -> None:
        await self._put(queue, self._messages.job(task, job, queue))

    async def _put(self, queue: str, message: Message) -> None:
        element = _element(message)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        pause = RETRY_FIRST
        while True:
            try:
                await (await self._node.wire()).call("LPUSH", BROKER_PREFIX + queue, element)
                return
            except hiredis.ReplyError as error:
                raise Unavailable(f"The broker does not take messages: {error}") from error
            except WireError as error:
                if loop.time() + pause > deadline:
                    raise Unavailable(f"The broker does not take messages: {error}") from error
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_LAST)

    async def close(self) -> None:
        self._node.close()


def _element(message: Message) -> bytes:
    """A message as kombu's Redis transport has it in its lists."""
    return msgspec.json.encode(
        {
            "body": base64.b64encode(message.body).decode(),
            "content-encoding": message.content_encoding,
            "content-type": message.content_type,
            "headers": message.headers,
            "properties": message.properties | {"delivery_tag": str(uuid.uuid4())},
        }
    )
