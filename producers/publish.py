"""Putting Celery messages, from an asyncio process.

Celery's and kombu's publishing blocks, so it has a thread of its own; one is enough, for a message costs some 0.3 ms.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from schemas.errors import Unavailable
from schemas.messaging import GENERATE, celery_config, wake_up
from schemas.settings import Settings

#: How often and how long a message is tried to be put while the broker is away, in seconds.
RETRY_POLICY = {"max_retries": 3, "interval_start": 0.05, "interval_step": 0.2, "interval_max": 0.5}


class Publisher:
    """Sends wake-ups by task name; knows nothing of the workers."""

    def __init__(self, settings: Settings) -> None:
        self._app = Celery("tailrace-producer", set_as_current=False)
        self._app.conf.update(celery_config(settings))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")

    async def publish(self, generation: str, queue: str, seq: int) -> None:
        """Returns once the broker has the message. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._send, generation, queue, seq)

    def _send(self, generation: str, queue: str, seq: int) -> None:
        options: dict[str, Any] = {"retry": True, "retry_policy": RETRY_POLICY}
        try:
            self._app.send_task(
                GENERATE,
                args=[wake_up(generation, queue, seq)],
                queue=queue,
                task_id=generation,
                ignore_result=True,
                **options,
            )
        except (OperationalError, OSError) as error:
            raise Unavailable(f"The broker does not take messages: {error}") from error

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._app.close()
