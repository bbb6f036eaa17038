"""Connections to a PostgreSQL that may go away, or stop answering without a word.

libpq waits without bound for an answer, and a server that hangs still acknowledges what it is sent. So a connection
here has a bound of its own on silence; and while the server is known to be away, one caller at a time finds out
whether it still is, and the others are told so at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from typing import Any, cast

import psycopg
from sqlalchemy import URL, Connection, Engine, event

#: How long opening a connection may take, and how long its socket may stay unacknowledged, seconds.
CONNECT_SECONDS = 5
#: How long a transaction of ours may do nothing, seconds: one that is stopped must not hold its locks for ever.
IDLE_SECONDS = 10
#: How much longer than its longest statement the server may be silent, seconds.
SILENCE_MARGIN = 1.0
#: How long it may be silent while it is known to be away, seconds.
SILENCE_AWAY = 1.0


class Outage:
    """What one engine knows of its server's absence."""

    def __init__(self) -> None:
        self.away = False
        self._probe = threading.Lock()

    def connect(self, *arguments: Any, silence: float | None, **options: Any) -> PatientConnection:
        """Raises psycopg's errors; OperationalError at once where another caller is trying already."""
        probing = self.away
        if probing and not self._probe.acquire(blocking=False):
            raise psycopg.OperationalError("the server did not answer last time, and is being tried again")
        try:
            connection = PatientConnection.connect(*arguments, **options)
        except psycopg.OperationalError:
            self.away = True
            raise
        finally:
            if probing:
                self._probe.release()
        self.away = False
        connection.outage, connection.silence = self, silence
        return connection


class PatientConnection(psycopg.Connection[Any]):
    """``silence`` is how long the server may say nothing, in seconds; None: for ever."""

    outage: Outage
    silence: float | None = None

    def wait(self, gen: Generator[Any, Any, Any], *arguments: Any, **options: Any) -> Any:
        if self.silence is not None:
            gen = self._bounded(gen, self.silence)
        return super().wait(cast("Any", gen), *arguments, **options)

    def _bounded(self, gen: Generator[Any, Any, Any], silence: float) -> Generator[Any, Any, Any]:
        """Steps of libpq's conversation; psycopg goes on with a step some ten times a second, ready or not."""
        bound = min(silence, SILENCE_AWAY) if self.outage.away else silence
        since = time.monotonic()
        try:
            step = next(gen)
            while True:
                ready = yield step
                if ready:
                    since = time.monotonic()
                    self.outage.away = False
                elif time.monotonic() - since > bound:
                    self.outage.away = True
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server has not answered for {bound:g} s")
                step = gen.send(ready)
        except StopIteration as end:
            return end.value


def arguments(url: URL, statement_seconds: float) -> dict[str, Any]:
    """libpq's parameters, but for those that the URL has."""
    server = {
        "statement_timeout": statement_seconds,
        "idle_in_transaction_session_timeout": IDLE_SECONDS,
    }
    found: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": CONNECT_SECONDS * 1000,
        "keepalives_idle": CONNECT_SECONDS,
        "keepalives_interval": CONNECT_SECONDS,
        "application_name": "tailrace",
        "options": " ".join(f"-c {name}={int(seconds * 1000)}ms" for name, seconds in server.items()),
    }
    return {name: value for name, value in found.items() if name not in url.query}


def make_patient(engine: Engine, statement_seconds: float) -> None:
    """Every connection of the engine is a PatientConnection."""
    outage = Outage()
    silence = statement_seconds + SILENCE_MARGIN

    def connect(_dialect: object, _record: object, arguments: Any, options: Any) -> PatientConnection:
        return outage.connect(*arguments, silence=silence, **options)

    event.listen(engine, "do_connect", connect)


def wait_for_ever(connection: Connection) -> None:
    """A migration's statement may take as long as it takes."""
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, PatientConnection)
    driver.silence = None
