"""What all slices of a process share, and patience with what is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from producers.catalog import Catalog
from producers.sharing import Sharing
from schemas.errors import ModelNotFound, Unavailable
from schemas.providers import Resolved
from stores.admission import Admission
from stores.answers import Answers
from stores.books import Books
from stores.cache import Cache
from stores.chunklog import ChunkLog
from stores.flights import Flights
from stores.redis import Redis
from stores.scripts import Scripts
from stores.slices import Slices
from workers.bulk.budgets import Budgets
from workers.bulk.ends import Ends
from workers.generate import Generator

log = logging.getLogger("tailrace.batches")

#: After a failure of SQL or Redis, in seconds; and how often what must be said is said again.
FAILURE_PAUSE, FAILURE_TRIES = 1.0, 30

T = TypeVar("T")


@dataclass(frozen=True)
class Tools:
    """What all slices of a process share."""

    redis: Redis
    scripts: Scripts
    log: ChunkLog
    flights: Flights
    generator: Generator
    catalog: Catalog
    sharing: Sharing
    cache: Cache
    books: Books
    table: Slices
    answers: Answers
    ends: Ends
    budgets: Budgets
    admission: Admission
    streams: asyncio.Semaphore
    #: Pages that the cache answers are written one after the other.
    answering: asyncio.Lock

    async def resolve(self, model: str) -> Resolved:
        try:
            return await self.catalog.resolve(model)
        except ModelNotFound:  # it was there when the batch was checked: its provider will say what it is
            return self.catalog.providers.resolve(model)


async def persist(do: Callable[[], Awaitable[T]], what: str) -> T | None:
    """Do it, again and again where SQL or Redis is away for a while; None where it stays away."""
    for _ in range(FAILURE_TRIES):
        try:
            return await do()
        except (Unavailable, SQLAlchemyError) as error:
            log.warning("%s: %s", what, error)
            await asyncio.sleep(FAILURE_PAUSE)
    return None
