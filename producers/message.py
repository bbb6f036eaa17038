"""Wake-ups and jobs as Celery's workers want them, made without Celery.

Through Celery a message costs 0.3 to 1.3 ms of CPU. So Celery makes one for each queue at the start, and every later
one is that sample with other ids put in.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgspec
from celery import Celery
from kombu import Connection

from schemas.messaging import GENERATE, Job, WakeUp, celery_config, job_id, wake_up
from schemas.settings import Settings
from schemas.states import Queue


@dataclass(frozen=True)
class Message:
    """The parts of a message in kombu's terms; ``body`` is JSON."""

    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str
    content_encoding: str


class Messages:
    """Makes them for one broker's settings."""

    def __init__(self, settings: Settings) -> None:
        app = producing_app(settings)
        self._samples = {queue.value: _sample(app, queue.value) for queue in Queue}
        app.close()

    def message(self, wake: WakeUp) -> Message:
        return self._made(wake["queue"], GENERATE, wake["id"], wake, "")

    def job(self, task: str, job: Job, queue: str) -> Message:
        return self._made(queue, task, job_id(task, job), job, repr((job,)))

    def _made(self, queue: str, task: str, id: str, argument: WakeUp | Job, shown: str) -> Message:
        """``shown`` is what Flower tells of the argument."""
        sample = self._samples[queue]
        _, options, embed = msgspec.json.decode(sample.body)
        return Message(
            body=msgspec.json.encode([[argument], options, embed]),
            headers=sample.headers
            | {"task": task, "id": id, "root_id": id, "argsrepr": shown, "kwargsrepr": ""},
            properties=sample.properties | {"correlation_id": id},
            content_type=sample.content_type,
            content_encoding=sample.content_encoding,
        )


def producing_app(settings: Settings) -> Celery:
    """An app for whoever only sends."""
    app = Celery("tailrace-producer", set_as_current=False)
    app.conf.update(celery_config(settings))
    return app


def _sample(app: Celery, queue: str) -> Message:
    """Celery's own message, taken from a queue in memory."""
    wake = wake_up("sample", queue, 0)
    with Connection("memory://") as connection:
        app.send_task(
            GENERATE, args=[wake], queue=queue, task_id=wake["id"], ignore_result=True, connection=connection
        )
        channel: Any = connection.default_channel
        put: dict[str, Any] = channel._get(queue)
        channel._purge(queue)
    return Message(
        body=base64.b64decode(put["body"]),
        headers=put["headers"],
        properties=put["properties"],
        content_type=put["content-type"],
        content_encoding=put["content-encoding"],
    )
