"""Celery's thread of a worker process: nothing that befalls its connections makes it stand still."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.api import asking
from tests.support.bulk import submitted
from tests.support.stack import Stack
from tests.support.valkey import wait_until

#: Until a worker has built its connections again, in seconds. Celery waits 2 s where the broker is not there at once.
PATIENCE = 15.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One worker for each queue, and a Valkey that may be killed."""
    with Stack(appendonly=True) as stack:
        yield stack


def control_channels(stack: Stack) -> set[str]:
    """The ids of the connections by which workers listen to Celery's remote control."""
    return {client["id"] for client in stack.redis.client_list(_type="pubsub") if client["psub"] != "0"}


def cut_control_channels(stack: Stack) -> None:
    """The server closes them and no others."""
    before = control_channels(stack)
    for id in before:
        stack.redis.client_kill_filter(_id=id)
    wait_until(lambda: not before & control_channels(stack), what="cut")


def restart_while_workers_stand_still(stack: Stack) -> None:
    """They find all of their connections closed at once, and a server that takes new ones."""
    with stack.paused("bulk"), stack.paused("interactive0"):
        stack.valkey.kill()
        stack.valkey.start()


@pytest.mark.parametrize("harm", [cut_control_channels, restart_while_workers_stand_still])
def test_workers_whose_connections_were_cut_take_messages(
    stack: Stack, harm: Callable[[Stack], None]
) -> None:
    harm(stack)
    wait_until(lambda: len(control_channels(stack)) == 2, PATIENCE, "workers that listen again")
    with stack.api() as api:
        ids = [api.background(), submitted(stack, asking())]
    assert {row.status.value for row in stack.settled(*ids)} == {"completed"}
