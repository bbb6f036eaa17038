"""Attempts in a process of their own, for generations that were there when workers died, and may be what kills them.

``python -m workers.solo`` is the nursery: it has everything imported, and forks a child for each generation that it is
told of on standard input (an id a line); when a child is over it says so on standard output. Whatever happens in a
child harms nobody else. When the worker that started it is gone, the nursery sees its children off and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import uuid

import uvloop

from consumers.hub import Hub
from schemas.errors import TailraceError
from schemas.settings import Settings
from schemas.states import Queue
from stores.config import read_providers
from stores.outcomes import Crashes, Renewal
from stores.redis import Redis
from stores.scripts import Scripts
from stores.wire import WireError
from workers.generate import Generator

log = logging.getLogger("tailrace.worker")

#: How long the end of a child may go unnoticed, in seconds.
LOOK = 0.2


class Nursery:
    """The worker's end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""

    def start(self, generation: str) -> None:
        """Raises OSError where no process can be had."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.solo"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            self._said = b""
        assert process.stdin is not None
        process.stdin.write(generation.encode() + b"\n")
        process.stdin.flush()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def finished(self) -> list[str]:
        """The generations whose child is over since the last time."""
        if self._process is None or self._process.stdout is None:
            return []
        with contextlib.suppress(BlockingIOError):
            self._said += os.read(self._process.stdout.fileno(), 65536)
        *ids, self._said = self._said.split(b"\n")
        return [id.decode() for id in ids]

    def stop(self, timeout: float) -> None:
        """Let the children hand their generations on, and end."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


async def attempt(settings: Settings, generation: str) -> str:
    """One attempt, in a process that does nothing else; on SIGTERM it is handed on."""
    loop = asyncio.get_running_loop()
    redis = await Redis.open(settings.redis_url, partitions=settings.partitions, patience=30.0)
    scripts = Scripts(redis)
    generator = Generator(
        scripts,
        read_providers(settings),
        worker=f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}",
        lease_ms=int(settings.lease_seconds * 1000),
        crashes=Crashes(settings.max_crashes),
        window_ms=int(settings.limit_window_seconds * 1000),
    )
    loop.add_signal_handler(signal.SIGTERM, generator.release)
    partition = redis.partition(generation)

    def told(payload: bytes) -> None:
        verb, *rest = payload.decode().split(" ")
        if verb == "cancel" and rest[0] == generation:
            generator.cancel(generation, rest[1])

    hub = Hub(redis)
    await hub.listen(partition, redis.keys(generation).control, told)
    renewing = asyncio.create_task(_renew(settings, scripts, generator, partition))
    try:
        return await generator.run(generation, Queue.INTERACTIVE.value, 0)
    finally:
        renewing.cancel()
        await hub.close()
        await generator.close()
        redis.close()


async def _renew(settings: Settings, scripts: Scripts, generator: Generator, partition: int) -> None:
    while True:
        await asyncio.sleep(settings.renew_seconds)
        held = dict(generator.held)
        with contextlib.suppress(Exception):  # a lease may be renewed after it ran out, too
            renewed = await scripts.renew(partition, held, lease_ms=int(settings.lease_seconds * 1000))
            for generation, renewal in renewed.items():
                if renewal is Renewal.CANCEL_ASKED:
                    generator.cancel(generation, held[generation])
                elif renewal is Renewal.LOST:
                    generator.lost(generation, held[generation])


def _fork(settings: Settings, generation: str) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        uvloop.run(attempt(settings, generation))
        status = 0
    except (WireError, TailraceError) as error:
        log.warning("%s: its attempt was not made: %s", generation, error)
    except Exception:
        log.exception("%s: its attempt failed", generation)
    finally:
        os._exit(status)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings()
    children: dict[int, str] = {}
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker's to decide
    pending, open_ = b"", True
    while open_ or children:
        if open_:
            ready, _, _ = select.select([0], [], [], LOOK)
            if ready:
                data = os.read(0, 65536)
                open_ = bool(data)
                *ids, pending = (pending + data).split(b"\n")
                for id in ids:
                    if not stopping:
                        children[_fork(settings, id.decode())] = id.decode()
        else:
            select.select([], [], [], LOOK)
        while children:
            child, _ = os.waitpid(-1, os.WNOHANG)
            if not child:
                break
            with contextlib.suppress(OSError):
                os.write(1, (children.pop(child) + "\n").encode())


if __name__ == "__main__":
    main()
