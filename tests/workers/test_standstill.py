"""Celery's thread of a worker process: nothing that befalls its connections makes it stand still, and if something
does, the process ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from celery import Celery
from celery.utils.nodenames import gethostname

from schemas.messaging import celery_config
from schemas.settings import Settings
from tests.support.api import asking
from tests.support.bulk import submitted
from tests.support.stack import ROOT, Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

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


def test_a_worker_whose_main_thread_stands_still_is_ended(stack: Stack) -> None:
    """It tells where, and whoever supervises it starts another one."""
    part = stack.add_worker("standing", "bulk", 1, app="tests.support.standing_worker")
    celery = Celery()
    celery.conf.update(celery_config(Settings(redis_url=stack.valkey.url)))
    with celery.connection_for_write() as connection:
        celery.control.broadcast("stand", destination=[f"standing@{gethostname()}"], connection=connection)
    process = stack.parts.pop("standing").process
    assert process is not None
    assert process.wait(PATIENCE) == 1
    told = part.log.read_text()
    assert "stands still" in told
    assert "standing_worker.py" in told


HUB = """
import os, time
from kombu.asynchronous import Hub
from workers.ending import StandstillWatch

hub = Hub()
watch = StandstillWatch(hub, pause=0.02, looks=10)
watch.start()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HUB + code], cwd=ROOT, capture_output=True, text=True, timeout=50
    )


def test_a_hub_that_turns_seldom_is_left_alone() -> None:
    done = run(
        "hub.call_later(1.5, hub.stop)\n"
        "hub.call_repeatedly(0.05, lambda: None)\n"
        "hub.add_reader(os.pipe()[0], print)\n"
        "hub.run_forever()\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_hub_that_need_not_turn_is_left_alone() -> None:
    """While Celery waits for a broker that is away."""
    done = run("hub.run_once()\nwatch.stop()\ntime.sleep(0.6)\n")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_was_stopped_for_long_is_left_alone() -> None:
    code = f"{HUB}hub.call_repeatedly(0.01, lambda: None)\nhub.add_reader(os.pipe()[0], print)\nhub.run_forever()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    turning = psutil.Process(process.pid)
    try:
        wait_until(lambda: turning.num_threads() > 1, what="watch")
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    finally:
        process.kill()
        process.wait()


def test_a_hub_that_is_stuck_ends_its_process() -> None:
    done = run("hub.call_soon(time.sleep, 40)\nhub.run_forever()\n")
    assert done.returncode == 1
    assert "most recent call first" in done.stderr
