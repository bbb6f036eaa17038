"""The stack as a context manager: whoever needs a whole Tailrace has one for as long as the block lasts."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tailrace import connection
from tailrace.connection import Connection
from tailrace.embedded import checks, home, local_model, ports, providers, valkey
from tailrace.embedded.options import Options, StackError
from tailrace.embedded.parts import BULK_CONCURRENCY, FLOWER_USER, Parts
from tailrace.embedded.process import Guardian, Part
from tailrace.embedded.supervisor import Supervisor, together
from tailrace.errors import NotConfigured


class EmbeddedStack:
    """Everything that is not configured elsewhere, from Valkey to Flower, as child processes.

        async with EmbeddedStack(Options(...)) as stack:
            async with tailrace.Client(stack.connection.url, stack.connection.api_key) as client: ...

    Entering returns when all of it is ready and raises StackError when it can't be. ``TAILRACE_REDIS_URL``,
    ``TAILRACE_BROKER_URL``, ``TAILRACE_DATABASE_URL``, ``TAILRACE_FILES`` and ``TAILRACE_PROVIDERS`` each replace their
    part.
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
        options, given = self._options, self._options.environment
        home.prepare(self.home)
        lock = await self._exit.enter_async_context(home.locked(self.home))
        last = _last_connection(self.home)
        ports.check(options.host, options.port)
        port = options.port or ports.pick(None, set(), options.host)
        taken = {port}
        model_port = self._model_port(taken)
        self.providers = providers.choose(self.home, given.get("TAILRACE_PROVIDERS"), model_port)
        redis_url, broker_url = given.get("TAILRACE_REDIS_URL"), given.get("TAILRACE_BROKER_URL")
        checks.settings()
        checks.files(self._files())
        if redis_url:
            await checks.redis(redis_url)
        if broker_url:
            await checks.broker(broker_url)

        supervisor = self._supervisor = await self._supervise(lock)
        url = f"http://{_reachable(options.host)}:{port}"
        own_redis_url = None if redis_url else self._own_redis_url(taken)
        redis_url = redis_url or own_redis_url or ""
        here = Connection(
            url=url,
            api_key=last.api_key if last else "",
            redis_url=redis_url,
            broker_url=broker_url or redis_url,
            database_url=self._database_url(),
            flower_url=self._flower_url(last, taken) if options.flower else "",
            providers=str(self.providers),
            files=self._files(),
        )
        parts = Parts(self.home, self._environment(here, broker_url))
        foundation = [parts.local_model(model_port)] if model_port else []
        if own_redis_url:
            foundation.append(parts.valkey(own_redis_url))
        _, api_key = await together(
            supervisor.start(*foundation), asyncio.to_thread(checks.database, here.database_url, here.api_key)
        )
        options.say("database ready: " + checks.without_password(here.database_url))
        await supervisor.start(*self._house(parts, here, port))
        self.connection = dataclasses.replace(here, api_key=api_key)
        try:
            connection.write(self.home, self.connection)
        except OSError as error:
            raise StackError(f"{self.home / connection.FILE} can't be written: {error.strerror}") from None

    def _model_port(self, taken: set[int]) -> int | None:
        """Where the local model will be, if it was asked for. Raises StackError where it isn't installed."""
        if not self._options.local_model:
            return None
        local_model.model_file()
        return ports.pick(providers.local_port(self.home), taken)

    async def _supervise(self, lock: int) -> Supervisor:
        """A supervisor, and a guardian for it; both are stopped with the stack."""
        guardian = Guardian(lock, self.home / "logs" / "guardian.log")
        await guardian.start()
        self._exit.push_async_callback(guardian.stop)
        keeper = asyncio.create_task(guardian.keep())
        self._exit.callback(keeper.cancel)
        supervisor = Supervisor(guardian, self._options.say, self._options.warn)
        self._exit.push_async_callback(supervisor.stop)
        return supervisor

    def _environment(self, here: Connection, broker_url: str | None) -> dict[str, str]:
        """What every process of Tailrace is told."""
        told = {
            "TAILRACE_HOME": str(self.home),
            "TAILRACE_PROVIDERS": str(self.providers),
            "TAILRACE_REDIS_URL": here.redis_url,
            "TAILRACE_DATABASE_URL": here.database_url,
            "TAILRACE_FILES": here.files,
        }
        if broker_url:
            told["TAILRACE_BROKER_URL"] = broker_url
        return {**self._options.environment, **told}

    def _house(self, parts: Parts, here: Connection, port: int) -> list[Part]:
        """The processes of Tailrace itself."""
        options = self._options
        found = [parts.gateway(options.host, port, here.url)]
        for number in range(1, options.workers + 1):
            name = f"interactive{number}"
            found.append(parts.worker(name, "interactive", options.concurrency, here.broker_url))
        found.append(parts.worker("bulk", "bulk", BULK_CONCURRENCY, here.broker_url))
        found.append(parts.beat())
        if here.flower_url:
            found.append(parts.flower(here.flower_url))
        return found

    def _own_redis_url(self, taken: set[int]) -> str:
        """The bundled Valkey's URL; port and password are those of the last time where that is possible."""
        old = valkey.read_config(self.home)
        port = ports.pick(int(old["port"]) if old.get("port", "").isdigit() else None, taken)
        return f"redis://:{old.get('requirepass') or secrets.token_urlsafe(24)}@127.0.0.1:{port}/0"

    def _flower_url(self, last: Connection | None, taken: set[int]) -> str:
        old = urlsplit(last.flower_url if last else "")
        port = ports.pick(old.port, taken)
        return f"http://{FLOWER_USER}:{old.password or secrets.token_urlsafe(16)}@127.0.0.1:{port}"

    def _database_url(self) -> str:
        """Where the books are; a relative SQLite path is relative to the caller, not to the processes."""
        url = (
            self._options.environment.get("TAILRACE_DATABASE_URL") or f"sqlite:///{self.home / 'tailrace.db'}"
        )
        scheme, separator, path = url.partition(":///")
        if scheme.startswith("sqlite") and separator and not path.startswith(("/", ":", "file:")) and path:
            return f"{scheme}:///{Path.cwd() / path}"
        return url

    def _files(self) -> str:
        """Where files are; a relative folder is relative to the caller, not to the processes."""
        given = self._options.environment.get("TAILRACE_FILES")
        if given and "://" in given:
            return given
        return str(Path(given).expanduser().absolute() if given else self.home / "files")


def _last_connection(home: Path) -> Connection | None:
    try:
        return connection.read(home)
    except NotConfigured:  # unreadable: it is about to be written anew
        return None


def _reachable(host: str) -> str:
    """The name under which this machine finds what listens on ``host``."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
