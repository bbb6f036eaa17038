"""A house for each test of the consumers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from tests.support.house import House
from tests.support.house import house as made


@pytest.fixture
async def house(redis_url: str, redis_client: redis.Redis, sqlite_url: str) -> AsyncIterator[House]:
    """With its books in SQLite."""
    async with made(redis_url, redis_client, sqlite_url) as house:
        yield house


@pytest.fixture
async def each_house(redis_url: str, redis_client: redis.Redis, database_url: str) -> AsyncIterator[House]:
    """The test runs twice, with the books in SQLite and in PostgreSQL."""
    async with made(redis_url, redis_client, database_url) as house:
        yield house
