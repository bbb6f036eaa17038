"""The Celery app: ``celery -A workers.app worker``.

Celery carries dispatch, routing, scaling and Flower's view. A task lasts as long as its generation streams, or the
rows of its slice do; the bytes flow on the process's own asyncio loop (``workers/runtime.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from celery import Celery

from schemas.batches import FINALIZE, SLICE, VALIDATE
from schemas.messaging import GENERATE, HOUSEKEEPING, Job, WakeUp, celery_config
from schemas.records import VERSION
from schemas.settings import Settings
from schemas.states import Queue
from stores.batches import Batches
from stores.files import Files
from stores.retention import prune, prune_batches
from stores.storage import open_storage
from workers.steps import AcknowledgeStep, QuietConsumerStep, RuntimeStep, StandstillStep

if TYPE_CHECKING:
    from workers.runtime import Runtime

log = logging.getLogger("tailrace.worker")

DAY_MS = 24 * 3600 * 1000
#: Between runs of the periodic house-keeping, in seconds.
HOUSEKEEPING_PERIOD = 600.0

app = Celery("tailrace")
app.conf.update(celery_config(Settings()))
# Remote control takes two connections from the pool, one after the other: as many threads as the pool is large, each
# with one in hand, wait for each other for ever. Flower asks with up to 32 threads. A worker itself needs no pool.
app.conf.broker_pool_limit = None
app.conf.beat_schedule = {
    "housekeeping": {
        "task": HOUSEKEEPING,
        "schedule": HOUSEKEEPING_PERIOD,
        "options": {"queue": Queue.BULK.value, "expires": HOUSEKEEPING_PERIOD},
    }
}
app.steps["worker"].add(RuntimeStep)
app.steps["consumer"].update((QuietConsumerStep, StandstillStep, AcknowledgeStep))


@app.task(name=GENERATE)
def generate(message: WakeUp) -> str:
    """One attempt at one generation. It has no body here: the pool puts it on the loop of the streams."""
    raise RuntimeError(f"{message['id']} needs the pool workers.pool:TaskPool")


@app.task(name=SLICE)
def run_slice(job: Job) -> str:
    """Some rows of a batch. It has no body here: the pool puts it on the loop of the streams."""
    raise RuntimeError(f"{job['batch']} needs the pool workers.pool:TaskPool")


@app.task(name=VALIDATE)
def validate_batch(job: Job) -> str:
    """The lines of a batch's file become its rows."""
    from workers.bulk.validate import validate  # beat and Flower load this app too, and need none of it

    return _batch_job(job, validate)


@app.task(name=FINALIZE)
def finalize_batch(job: Job) -> str:
    """What became of a batch's rows becomes its output and error files."""
    from workers.bulk.finalize import finalize

    return _batch_job(job, finalize)


def _batch_job(job: Job, do: Callable[[Runtime, str, str], object]) -> str:
    if job["v"] > VERSION:
        log.error("a message of version %s: update this worker", job["v"])
        return "newer"
    token = _runtime().take_job(job["batch"], job["token"])
    return "stale" if token is None else str(do(_runtime(), job["batch"], token))


@app.task(name=HOUSEKEEPING)
def housekeeping() -> int:
    """Drops texts that no stored completion points to, files that expired, and completions, batches and files beyond
    TAILRACE_RETENTION_DAYS; returns how many of all of them."""
    runtime = _runtime()
    books, days = runtime.books(), runtime.settings.retention_days
    before_ms = None if days is None else int(time.time() * 1000 - days * DAY_MS)
    dropped = books.drop_orphaned_results(runtime.uncache) + Batches(books.engine).drop_unused_rows()
    if before_ms is not None:
        dropped += prune(books.engine, before_ms, runtime.uncache) + prune_batches(books.engine, before_ms)
    try:
        return dropped + Files(books.engine).clean(open_storage(runtime.settings), before_ms)
    except OSError as error:
        log.warning("the storage of files failed: %s", error)
        return dropped


def _runtime() -> Runtime:
    return cast("Runtime", app.runtime)  # type: ignore[attr-defined]
