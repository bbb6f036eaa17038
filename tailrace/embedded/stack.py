"""The stack as a context manager: whoever needs a whole Tailrace has one for as long as the block lasts."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tailrace import connection
from tailrace.connection import Connection
from tailrace.embedded import checks, home, local_model, ports, providers
from tailrace.embedded.options import Options, StackError
from tailrace.embedded.parts import BULK_CONCURRENCY, Parts
from tailrace.embedded.process import Guardian, Part
from tailrace.embedded.supervisor import Supervisor, together

#: Where the search for a free port begins.
VALKEY_PORT, MODEL_PORT, FLOWER_PORT = 6390, 8081, 5555
FLOWER_USER = "tailrace"


class EmbeddedStack:
    """Everything that is not configured elsewhere, from Valkey to Flower, as child processes.

        async with EmbeddedStack(Options(...)) as stack:
            async with tailrace.Client(stack.connection.url, stack.connection.api_key) as client: ...

    Entering returns when all of it is ready and raises StackError when it can't be. ``TAILRACE_REDIS_URL``,
    ``TAILRACE_BROKER_URL``, ``TAILRACE_DATABASE_URL`` and ``TAILRACE_PROVIDERS`` each replace their part.
    """

    connection: Connection
    #: The providers.toml in use.
    providers: Path

    def __init__(self, options: Options) -> None:
        self._options = options
        self.home = options.home
        self._exit = AsyncExitStack()
        self._supervisor: Supervisor | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    async def wait(self) -> None:
        """As long as all is well. Raises StackError when a part can't be kept running."""
        assert self._supervisor
        await asyncio.shield(self._supervisor.broken)

    def hurry(self) -> None:
        """Cut a stop short that is under way."""
        if self._supervisor:
            self._supervisor.hurry()

    async def _start(self) -> None:
        options = self._options
        home.prepare(self.home)
        lock = await self._exit.enter_async_context(home.locked(self.home))
        last = connection.read(self.home)
        ports.check(options.host, options.port)
        taken = {options.port}
        port = options.port or ports.pick(0, taken, options.host)
        model_port = None
        if options.local_model:
            local_model.model_file()
            model_port = ports.pick(providers.local_port(self.home) or MODEL_PORT, taken)
        self.providers = providers.choose(self.home, model_port)
        redis_url = os.environ.get("TAILRACE_REDIS_URL")
        if redis_url:
            await checks.redis(redis_url)

        guardian = Guardian(lock, self.home / "logs" / "guardian.log")
        await guardian.start()
        self._exit.push_async_callback(guardian.stop)
        keeper = asyncio.create_task(guardian.keep())
        self._exit.callback(keeper.cancel)
        supervisor = self._supervisor = Supervisor(guardian, options.say, options.warn)
        self._exit.push_async_callback(supervisor.stop)

        environment = {"TAILRACE_HOME": str(self.home), "TAILRACE_PROVIDERS": str(self.providers)}
        parts = Parts(self.home, environment)
        first: list[Part] = [parts.local_model(model_port)] if model_port else []
        if not redis_url:
            redis_url = self._own_redis_url(last, taken)
            at = urlsplit(redis_url)
            first.append(parts.valkey(at.port or 0, at.password or ""))
        broker_url = os.environ.get("TAILRACE_BROKER_URL")
        if broker_url:
            await checks.broker(broker_url)
            environment["TAILRACE_BROKER_URL"] = broker_url
        database_url = self._database_url()
        environment |= {"TAILRACE_REDIS_URL": redis_url, "TAILRACE_DATABASE_URL": database_url}
        _, api_key = await together(
            supervisor.start(*first),
            asyncio.to_thread(checks.database, database_url, last.api_key if last else None),
        )
        options.say("database ready: " + checks.without_password(database_url))

        url = f"http://{_reachable(options.host)}:{port}"
        parts = Parts(self.home, environment)
        rest = [parts.gateway(options.host, port, url)]
        rest += [
            parts.worker(
                f"interactive{number + 1}", "interactive", options.concurrency, broker_url or redis_url
            )
            for number in range(options.workers)
        ]
        rest += [parts.worker("bulk", "bulk", BULK_CONCURRENCY, broker_url or redis_url), parts.beat()]
        flower_url = ""
        if options.flower:
            flower_url = self._flower_url(last, taken)
            at = urlsplit(flower_url)
            rest.append(parts.flower(at.port or 0, at.username or "", at.password or ""))
        await supervisor.start(*rest)
        self.connection = Connection(
            url, api_key, redis_url, broker_url or redis_url, database_url, flower_url
        )
        try:
            connection.write(self.home, self.connection)
        except OSError as error:
            raise StackError(f"{self.home / connection.FILE} can't be written: {error.strerror}") from None

    def _own_redis_url(self, last: Connection | None, taken: set[int]) -> str:
        """The bundled Valkey's URL; port and password are those of the last time where that is possible."""
        old = urlsplit(last.redis_url if last else "")
        port = ports.pick(old.port or VALKEY_PORT, taken)
        return f"redis://:{old.password or secrets.token_urlsafe(24)}@127.0.0.1:{port}/0"

    def _flower_url(self, last: Connection | None, taken: set[int]) -> str:
        old = urlsplit(last.flower_url if last else "")
        port = ports.pick(old.port or FLOWER_PORT, taken)
        return f"http://{FLOWER_USER}:{old.password or secrets.token_urlsafe(16)}@127.0.0.1:{port}"

    def _database_url(self) -> str:
        """Where the books are; a relative SQLite path is relative to the caller, not to the processes."""
        url = os.environ.get("TAILRACE_DATABASE_URL") or f"sqlite:///{self.home / 'tailrace.db'}"
        scheme, separator, path = url.partition(":///")
        if scheme.startswith("sqlite") and separator and not path.startswith(("/", ":", "file:")) and path:
            return f"{scheme}:///{Path.cwd() / path}"
        return url


def _reachable(host: str) -> str:
    """The name under which this machine finds what listens on ``host``."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
