"""The parts that a stack does not start itself: whether they can be used, and what to change where they can't."""

from __future__ import annotations

import asyncio
import re

from tailrace.embedded.options import StackError

#: Seconds that a server gets to answer.
PATIENCE = 3.0
#: What the key made by the first start is called.
KEY_NAME, TENANT = "embedded", "default"


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    return re.sub("//[^/@]*@", "//***@", url)


def settings() -> None:
    """Raises StackError for a ``TAILRACE_*`` variable with a value that can't be used."""
    from pydantic import ValidationError

    from schemas.settings import Settings

    try:
        Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StackError(f"TAILRACE_{str(first['loc'][0]).upper()}: {first['msg']}") from None


def files(where: str) -> None:
    """Raises StackError for a storage of files that can't be used."""
    from schemas.errors import TailraceError
    from schemas.settings import Settings
    from stores.storage import open_storage

    try:
        open_storage(Settings(files=where)).prepare()
    except TailraceError as error:
        raise StackError(error.message) from None


async def redis(url: str) -> None:
    """Raises StackError unless a Redis or Valkey that we can work with answers there."""
    from schemas.errors import TailraceError
    from schemas.settings import Settings
    from stores.redis import Redis

    try:
        opened = await Redis.open(url, partitions=Settings().partitions, patience=PATIENCE)
    except TailraceError as error:
        raise StackError(error.message) from None
    opened.close()


async def broker(url: str) -> None:
    """Raises StackError unless Celery can connect there."""
    from kombu import Connection

    def connect() -> None:
        with Connection(
            url, connect_timeout=PATIENCE, transport_options={"socket_connect_timeout": PATIENCE}
        ) as it:
            it.connect()

    try:
        await asyncio.wait_for(asyncio.to_thread(connect), PATIENCE * 2)
    except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StackError(f"TAILRACE_BROKER_URL: no broker at {without_password(url)}: {reason}") from None


def database(url: str, known_key: str) -> str:
    """Migrate, and give an API key that works: the known one, or a new one. Raises StackError."""
    from schemas.errors import TailraceError, Unauthenticated
    from stores.apikeys import ApiKeys, KeyRing
    from stores.migration import migrate
    from stores.sql import make_engine

    try:
        engine = make_engine(url)
        try:
            migrate(engine)
            if known_key:
                try:
                    KeyRing(engine, 0).verify(known_key)
                except Unauthenticated:
                    pass
                else:
                    return known_key
            return ApiKeys(engine).create(KEY_NAME, TENANT, admin=True)[1]
        finally:
            engine.dispose()
    except TailraceError as error:
        raise StackError(f"TAILRACE_DATABASE_URL: {error.message}") from None
