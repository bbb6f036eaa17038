"""How to know that a part is ready to work."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

Check = Callable[[], Awaitable[bool]]


def answers(url: str) -> Check:
    """A GET is answered with 200."""

    opener = build_opener(ProxyHandler({}))  # no proxy stands before the own machine

    def get() -> bool:
        try:
            with opener.open(url, timeout=2) as response:
                return response.status == 200
        except OSError:
            return False

    return lambda: asyncio.to_thread(get)


def pings(host: str, port: int, password: str) -> Check:
    """A Redis server answers PING; while it loads its file it says something else."""

    async def check() -> bool:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            return False
        try:
            writer.write(f"AUTH {password}\r\nPING\r\n".encode())
            return await reader.readline() == b"+OK\r\n" and await reader.readline() == b"+PONG\r\n"
        except OSError:
            return False
        finally:
            writer.close()

    return check


def works(broker_url: str, worker: str) -> Check:
    """A Celery worker answers over the broker."""

    def ping() -> bool:
        try:
            app = _celery(broker_url)
            with app.connection_for_write() as connection:
                connection.connect()  # once; a ping without a connection would keep trying for long
                return bool(app.control.ping([worker], timeout=0.5, limit=1, connection=connection))
        except Exception:  # noqa: BLE001 - whatever the broker's library raises: not yet
            return False

    return lambda: asyncio.to_thread(ping)


_making = threading.Lock()


def _celery(broker_url: str) -> Any:
    """An app that can talk to workers and no more. Celery's lazy modules don't bear two threads importing them."""
    with _making:
        return _make_celery(broker_url)


@cache
def _make_celery(broker_url: str) -> Any:
    from celery import Celery

    from schemas.messaging import celery_config
    from schemas.settings import Settings

    app: Any = Celery("tailrace-stack", set_as_current=False)
    app.conf.update(celery_config(Settings(broker_url=broker_url)))
    return app


def writes(folder: Path) -> Check:
    """A file in the folder is written; for a part that nobody can ask."""
    since = time.time()

    def look() -> bool:
        return any(file.stat().st_mtime > since for file in folder.iterdir())

    return lambda: asyncio.to_thread(look)
