"""A key space for each test of the stores."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.generations import Room, room


@pytest.fixture
async def space(redis_url: str) -> AsyncIterator[Room]:
    async with room(redis_url) as made:
        yield made
