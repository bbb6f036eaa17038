"""What producers and workers agree on about Celery: task names, queues, the message, the broker's settings.

A message carries ids only: the work itself is in Redis, or in SQL for the jobs of a batch, and a message is a wake-up
for it.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from kombu import Queue as BrokerQueue

from schemas.records import VERSION
from schemas.settings import Settings
from schemas.states import Queue

#: One generation's attempt.
GENERATE = "tailrace.generate"
#: Periodic house-keeping, sent by Celery beat.
HOUSEKEEPING = "tailrace.housekeeping"
#: The outcome of a generate task that came to a process that is to stop: the message is for another one.
STOPPING = "stopping"

#: What a Redis broker's keys begin with.
BROKER_PREFIX = "tailrace:{p0}:broker:"

#: Seconds after which a broker socket that says nothing is given up; kombu's own default waits for ever.
SOCKET_TIMEOUT = 15
CONNECT_TIMEOUT = 4
#: Between the heartbeats of a connection to RabbitMQ, in seconds; either side gives up after two that are missing.
HEARTBEAT = 10


class WakeUp(TypedDict):
    """The one argument of the generate task. ``seq`` numbers the message on its queue and partition.

    A message with a ``partition`` is a probe: there is no generation of its id, and taking it is all that it is for.
    """

    v: int
    id: str
    queue: str
    seq: int
    partition: NotRequired[int]


def wake_up(generation: str, queue: str, seq: int) -> WakeUp:
    return {"v": VERSION, "id": generation, "queue": queue, "seq": seq}


def probe(partition: int, queue: str, seq: int) -> WakeUp:
    id = f"probe-{partition}-{queue}-{seq}"
    return {"v": VERSION, "id": id, "queue": queue, "seq": seq, "partition": partition}


class Job(TypedDict):
    """The one argument of the tasks of a batch (``schemas/batches.py``): for whoever finds the ``token`` in SQL.
    ``first`` names one of its slices, which somebody had before where ``again`` is said."""

    v: int
    batch: str
    token: str
    first: NotRequired[int]
    again: NotRequired[bool]


def job(batch: str, token: str) -> Job:
    return {"v": VERSION, "batch": batch, "token": token}


def slice_job(batch: str, token: str, first: int, *, again: bool) -> Job:
    return {"v": VERSION, "batch": batch, "token": token, "first": first, "again": again}


def job_id(task: str, job: Job) -> str:
    """Celery's id of a job: no two messages that were dealt share one."""
    what = f"{job['first']}" if "first" in job else task.removeprefix("tailrace.")
    return f"{job['batch']}-{what}-{job['token']}"


def on_rabbitmq(settings: Settings) -> bool:
    """Whether Celery's broker is RabbitMQ."""
    return settings.effective_broker_url.startswith(("amqp:", "amqps:", "pyamqp:"))


def celery_config(settings: Settings) -> dict[str, Any]:
    """Celery's settings, the same for whoever sends and whoever works."""
    config: dict[str, Any] = {
        "broker_url": settings.effective_broker_url,
        "result_backend": None,
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": Queue.INTERACTIVE.value,
        "task_create_missing_queues": True,
        "task_acks_late": False,
        "task_send_sent_event": False,
        "worker_send_task_events": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_limit": 4,
        "worker_hijack_root_logger": False,
        "enable_utc": True,
        "timezone": "UTC",
    }
    if settings.effective_broker_url.startswith(("redis", "rediss", "unix", "valkey")):
        config |= {
            "broker_transport_options": {
                "global_keyprefix": BROKER_PREFIX,
                "socket_timeout": SOCKET_TIMEOUT,
                "socket_connect_timeout": CONNECT_TIMEOUT,
                "socket_keepalive": True,
                "health_check_interval": 10,
                # Else redis-py connects again by itself where a worker waits for what is told to all workers, does not
                # subscribe again, and waits for ever: the worker is alive and takes no message.
                "retry_on_timeout": False,
                "priority_steps": [0],
                "queue_order_strategy": "round_robin",
                "visibility_timeout": 3600 * 24,
            },
            "worker_disable_prefetch": True,
            # Taken is gone: a message that its worker loses is published again by its sequence number, and kombu's
            # notes of unacknowledged messages would cost two transactions each.
            "task_queues": [BrokerQueue(q.value, routing_key=q.value, no_ack=True) for q in Queue],
        }
    if on_rabbitmq(settings):
        config |= {
            # An unacknowledged message is a slot that is taken: a worker is sent as many as it has slots, and begins
            # each at once. Should it die, they go to another one, who finds a lease or an end and does nothing.
            "task_acks_late": True,
            "worker_prefetch_multiplier": 1,
            "broker_heartbeat": HEARTBEAT,
            "broker_connection_timeout": CONNECT_TIMEOUT,
            # A channel that the broker closes costs a new connection, not the worker and all its streams.
            "broker_channel_error_retry": True,
            # No confirms here: wake-ups are confirmed by their publisher, and a worker that waited for those of its
            # events would not notice that the broker is gone.
            "broker_transport_options": {
                "read_timeout": SOCKET_TIMEOUT,
                "write_timeout": SOCKET_TIMEOUT,
                "max_retries": 3,
                "interval_start": 0,
                "interval_step": 0.2,
                "interval_max": 0.5,
            },
            # Classic whatever the virtual host's default is: on disk, so that a restart of the broker loses nothing.
            # Replicas are not worth their price for wake-ups, which are published again by their sequence number, and
            # workers would need another kind of prefetch for quorum queues.
            "task_queues": [
                BrokerQueue(
                    q.value, routing_key=q.value, durable=True, queue_arguments={"x-queue-type": "classic"}
                )
                for q in Queue
            ],
        }
    return config
