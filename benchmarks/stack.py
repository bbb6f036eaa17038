"""The servers of a benchmark: the fake backend, and Tailrace as ``tailrace up`` starts it. They have free ports, and a
folder of their own that goes with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import redis

from benchmarks.jobs import Target
from stores import sql
from stores.apikeys import ApiKeys
from stores.migration import migrate
from tailrace.embedded import home
from tailrace.embedded.options import CONCURRENCY
from tailrace.embedded.parts import Parts
from tailrace.embedded.process import Part
from tests.support.ports import free_port
from tests.support.providers import write_providers

#: The project's folder, where the modules of the child processes are found.
ROOT = Path(__file__).resolve().parent.parent
#: How long a server may take to start and to stop, in seconds.
START, STOP = 120.0, 10.0
#: A second provider, the same backend, and the calls that it takes at once.
LIMITED, LIMIT = "limited", 8


class Server:
    """A child process in a session of its own; Ctrl-C goes past it."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._stopped = False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> Self:
        """Raises RuntimeError with what it said last."""
        until = time.monotonic() + START
        while not ready():
            code = self._process.poll()
            if code is not None or time.monotonic() > until:
                why = "did not get ready" if code is None else f"ended with {code}"
                raise RuntimeError(f"{self.name} {why}: {self.last_words}")
            time.sleep(0.05)
        return self

    @property
    def last_words(self) -> str:
        """The last line that it wrote."""
        lines = self.log.read_text("utf-8", "replace").split("\n")
        return next((line.strip()[:400] for line in reversed(lines) if line.strip()), "it said nothing")

    def stop(self) -> None:
        """End it and whatever it started."""
        if self._stopped:
            return
        self._stopped = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
            try:
                self._process.wait(STOP)
            except subprocess.TimeoutExpired:
                print(f"{self.name} had to be killed", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def kept_folder() -> Path:
    """What benchmarks leave behind: environments for the next run, and profiles. Git does not see it."""
    folder = ROOT / ".bench"
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def clean_environment() -> dict[str, str]:
    """This process's environment without anybody's settings, keys and proxies."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TAILRACE_", "OPENAI_", "CELERY_", "LITELLM_"))
        and not name.lower().endswith("_proxy")
    } | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Stack:
    """Everything that is measured but LiteLLM; started by ``with``, stopped at its end."""

    backend: Server
    valkey: Server
    gateway: Server
    worker: Server
    direct: Target
    tailrace: Target
    redis_url: str
    key_id: str
    backend_url: str
    folder: Path
    tenant = "bench"

    def __init__(self) -> None:
        self._exit = ExitStack()
        self.environment = clean_environment()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def url(self) -> str:
        """Tailrace's, without a path."""
        return self.tailrace.url.partition("/api/")[0]

    @property
    def pids(self) -> dict[str, int]:
        servers = {
            "worker": self.worker,
            "bulk": self.bulk,
            "gateway": self.gateway,
            "valkey": self.valkey,
            "backend": self.backend,
        }
        return {name: server.pid for name, server in servers.items()}

    def client(self) -> redis.Redis:
        """A new client of the stack's Valkey, for looking at it; close it."""
        return redis.Redis.from_url(self.redis_url)

    def server(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Server:
        """Start one more; it is stopped before those that stand already."""
        server = Server(name, command, environment, self.folder / "logs" / f"{name}.log")
        self._exit.callback(server.stop)
        return server

    def _start(self) -> None:
        self.folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="tr-bench-")))
        home.prepare(self.folder)
        self.backend = self.server("backend", [sys.executable, "-m", "benchmarks.backend"], self.environment)
        said = self.folder / "logs" / "backend.log"
        self.backend.wait_until(lambda: said.read_text().endswith("\n"))
        self.backend_url = said.read_text().strip()
        self.direct = Target("direct", f"{self.backend_url}/chat/completions", "fake")

        password, port = secrets.token_urlsafe(16), free_port()
        self.redis_url = f"redis://:{password}@127.0.0.1:{port}/0"
        database = f"sqlite:///{self.folder / 'tailrace.db'}"
        providers = self.folder / "providers.toml"
        limited = {"base_url": self.backend_url, "max_concurrency": LIMIT}
        write_providers(providers, {"fake": {"base_url": self.backend_url}, LIMITED: limited})
        self.environment |= {
            "TAILRACE_HOME": str(self.folder),
            "TAILRACE_PROVIDERS": str(providers),
            "TAILRACE_REDIS_URL": self.redis_url,
            "TAILRACE_DATABASE_URL": database,
        }
        self.valkey = self._part(Parts(self.folder, self.environment).valkey(self.redis_url))
        migrate(database)
        engine = sql.make_engine(database)
        key, plaintext = ApiKeys(engine).create("bench", self.tenant)
        engine.dispose()
        self.key_id = key.id

        port = free_port()
        url = f"http://127.0.0.1:{port}"
        parts = Parts(self.folder, self.environment)
        self.worker = self._part(parts.worker("interactive", "interactive", CONCURRENCY, self.redis_url))
        self.bulk = self._part(parts.worker("bulk", "bulk", CONCURRENCY, self.redis_url))
        self.gateway = self._part(parts.gateway("127.0.0.1", port, url))
        self.tailrace = Target(
            "tailrace",
            f"{url}/api/v1/llm/chat/completions/stream",
            "fake:fake",
            {"authorization": f"Bearer {plaintext}"},
        )

    def _part(self, part: Part) -> Server:
        """A part of ``tailrace up``, in our hands."""
        server = self.server(part.name, part.command, part.environment)

        async def ready() -> bool:
            return await part.ready()

        return server.wait_until(lambda: asyncio.run(ready()))
