"""What the system tests have beyond the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.rabbitmq import RabbitServer


@pytest.fixture(scope="session")
def rabbit() -> Iterator[RabbitServer]:
    """The session's RabbitMQ. A test that stops it starts it again."""
    with RabbitServer() as server:
        yield server
