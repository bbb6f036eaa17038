"""Bulk work without a batch around it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from producers.catalog import Catalog
from producers.publish import make_publisher
from producers.submit import Caller, Submitter
from schemas.caching import BYPASS, CachePolicy
from schemas.request import parse_request
from schemas.settings import Settings
from schemas.states import Queue
from stores.config import read_providers
from stores.redis import Redis
from tests.support.api import dump
from tests.support.stack import Stack


def submitted(
    stack: Stack,
    body: dict[str, Any],
    *,
    caller: Caller = Caller("bulk", "key_bulk"),
    policy: CachePolicy = BYPASS,
) -> str:
    """The id of a completion on the bulk queue."""

    async def submit() -> str:
        settings = Settings(redis_url=stack.valkey.url, providers=stack.folder / "providers.toml")
        redis = await Redis.open(settings.redis_url)
        publisher = make_publisher(settings)
        async with httpx.AsyncClient() as http:
            catalog = Catalog(read_providers(settings), http)
            submitter = Submitter(redis, catalog, publisher, stack.books)
            request = parse_request(dump(body))
            accepted = await submitter.submit(request, caller, queue=Queue.BULK, policy=policy)
        await publisher.close()
        redis.close()
        return accepted.id

    return asyncio.run(submit())
