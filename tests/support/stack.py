"""The whole pipeline as processes: Valkey, the fake backend, the books, a gateway, and Celery workers.

A session has one (the fixture ``stack``), and tests keep apart by tenants of their own. A test that harms its stack
starts one for itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import redis
from sqlalchemy import Engine, func, select

from schemas.keys import Keys
from schemas.tables import attempts, completions, usage
from stores.apikeys import ApiKeys
from stores.books import Books
from stores.migration import migrate
from stores.rows import CompletionRow
from stores.sql import make_engine
from tests.support.api import Api, anybody
from tests.support.backend import Backend
from tests.support.leaks import leaks
from tests.support.outcomes import SharedFault
from tests.support.ports import free_port
from tests.support.providers import write_providers
from tests.support.valkey import ValkeyServer, wait_until

ROOT = Path(__file__).parents[2]
#: Streams that the interactive worker carries at once.
CONCURRENCY = 320
#: What the provider ``keyed`` wants to be sent.
PROVIDER_KEY = "the-providers-own-key"
#: The page that may read answers (``TAILRACE_CORS_ORIGINS``).
ORIGIN = "http://app.example"
#: Names that the default provider lists.
MODELS = ("fake", "fake-b", "llama3:8b", "ft:gpt-4o:org::id", "org/model-1")
SETTINGS: Mapping[str, str] = {
    "KEEPALIVE_SECONDS": "0.3",
    "LEASE_SECONDS": "3",
    "RENEW_SECONDS": "0.5",
    "MAX_BODY_BYTES": str(4 * 1024 * 1024),
    "CORS_ORIGINS": ORIGIN,
}
#: What the provider ``priced`` takes, in dollars for a million tokens.
PRICES = {"fake": {"input": 0.5, "output": 2.0, "cached_input": 0.05}, "*": {"input": 1, "output": 1}}
#: Providers are asked once, but those that are there to be asked again.
ONCE = {"tries": 1}
AGAIN = {"tries": 4, "first": 0.1, "longest": 0.5, "total": 20}
START_SECONDS = 60.0
#: What is in Redis but not the keys of the pipeline itself.
NOT_OURS = ("broker:*",)


@dataclass
class Part:
    """One process and the file that it writes to."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, folder: Path) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self, number: int, seconds: float = 15.0) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def check(self) -> None:
        if not self.alive:
            raise RuntimeError(f"{self.name} ended:\n{self.log.read_text(errors='replace')[-4000:]}")


class Stack:
    """``settings`` are ``TAILRACE_*`` on top of SETTINGS; an empty value takes one away.

    ``appendonly``: Valkey's data survive its restart. ``providers``, on the fake backend where they don't say, and
    ``aliases`` come beside the stack's own, whose circuits never open; ``files`` are put beside them.
    """

    def __init__(
        self,
        *,
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
        interactive: int = 1,
        concurrency: int = CONCURRENCY,
        appendonly: bool = False,
        providers: Mapping[str, Mapping[str, Any]] | None = None,
        aliases: Mapping[str, list[str]] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="tr-stack-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self.database_url = database_url or f"sqlite:///{self.folder / 'books.db'}"
        self.valkey = ValkeyServer(appendonly=appendonly)
        self.backend = Backend(models=MODELS)
        #: A provider that lists no models, and a place where none is.
        self.silent = Backend(models=None)
        self.nowhere = free_port()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = {**SETTINGS, **(settings or {})}
        self._interactive = interactive
        self._providers, self._aliases, self._files = providers or {}, aliases or {}, files or {}
        self._concurrency = concurrency
        self._exit = ExitStack()
        self.parts: dict[str, Part] = {}
        self._tenants = 0

    # ------------------------------------------------------------------------------------------ start and end

    def start(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._exit.enter_context(self.valkey)
            self._exit.enter_context(self.backend)
            self._exit.enter_context(self.silent)
            self.redis: redis.Redis = self._exit.enter_context(self.valkey.client())
            self.engine: Engine = make_engine(self.database_url)
            self._exit.callback(self.engine.dispose)
            migrate(self.engine)
            self.books = Books(self.engine)
            self.keys = ApiKeys(self.engine)
            self.environment = self._environment()
            self._part("gateway", "gateway", "--port", str(self.port)).start(self.folder)
            # The bulk worker leads the ledger, so that tests can stop or kill the other one.
            self.add_worker("bulk", "bulk", 4, wait=False)
            wait_until(lambda: bool(self.redis.exists(Keys(0).lock("ledger"))), START_SECONDS, "leader")
            for number in range(self._interactive):
                self.add_worker(f"interactive{number}", "interactive", self._concurrency, wait=False)
            self._ready(1 + self._interactive)
            undo.pop_all()
        return self

    def _environment(self) -> dict[str, str]:
        own: dict[str, dict[str, Any]] = {
            "fake": {"base_url": self.backend.url, "retry": ONCE, "timeout": _timeouts()},
            "listed": {"base_url": self.backend.url, "retry": ONCE, "models": ["fake", "only-here"]},
            "silent": {"base_url": self.silent.url, "retry": ONCE},
            "again": {"base_url": self.backend.url, "timeout": _timeouts(), "retry": AGAIN},
            "prefills": {"base_url": self.backend.url, "retry": ONCE, "supports_prefill": True},
            "keyed": {"base_url": self.backend.url, "retry": ONCE, "api_key_env": "FAKE_API_KEY"},
            "priced": {"base_url": self.backend.url, "retry": ONCE, "prices": PRICES},
            "newer": {
                "base_url": self.backend.url,
                "retry": ONCE,
                "max_tokens_field": "max_completion_tokens",
            },
            "nowhere": {
                "base_url": f"http://127.0.0.1:{self.nowhere}/v1",
                "timeout": _timeouts(connect=1),
                "retry": ONCE,
            },
            "slow-to-begin": {
                "base_url": self.backend.url,
                "retry": ONCE,
                "timeout": _timeouts(first_chunk=0.4),
            },
            "stalls": {
                "base_url": self.backend.url,
                "retry": ONCE,
                "timeout": _timeouts(between_chunks=1),
            },
            "endless": {"base_url": self.backend.url, "retry": ONCE, "timeout": _timeouts(total=2)},
        }
        for name, text in self._files.items():
            (self.folder / name).write_text(text)
        write_providers(
            self.folder / "providers.toml",
            {name: {"circuit": {"failures": 0}, **fields} for name, fields in own.items()}
            | {
                name: dict(fields) if "kind" in fields else {"base_url": self.backend.url, **fields}
                for name, fields in self._providers.items()
            },
            aliases={
                "auto": ["fake:fake"],
                "team/best": ["fake:org/model-1", "fake:fake"],
                **self._aliases,
            },
        )
        ours = {
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self.database_url,
            "PROVIDERS": str(self.folder / "providers.toml"),
            "HOME": str(self.folder / "home"),
            **self._settings,
        }
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "FAKE_API_KEY": PROVIDER_KEY,
            **{f"TAILRACE_{name}": value for name, value in ours.items() if value},
        }

    def _part(self, name: str, *arguments: str, **environment: str) -> Part:
        command = [sys.executable, "-P", "-m", *arguments]
        part = Part(name, command, {**self.environment, **environment}, self.folder / f"{name}.log")
        self.parts[name] = part
        return part

    def add_gateway(self, name: str, port: int, **environment: str) -> Part:
        """One more gateway process, on a port of its own; returns when it is ready."""
        part = self._part(name, "gateway", "--port", str(port), **environment)
        part.start(self.folder)
        with anybody(f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: _is_ready(client, part), START_SECONDS, f"{name} that is ready")
        return part

    def remove(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a process that was added."""
        self.parts.pop(name).end(number)

    def add_worker(
        self, name: str, queue: str, concurrency: int, *, wait: bool = True, app: str = "workers.app"
    ) -> Part:
        """One more worker process; ``wait`` until it takes work."""
        before = self.workers_up()
        part = self._part(
            name,
            *("celery", "-A", app, "worker", "-P", "custom", "-Q", queue),
            *("-c", str(concurrency), "-n", f"{name}@%h", "-E", "--without-mingle", "--without-gossip"),
            *("-l", "WARNING"),
            CELERY_CUSTOM_WORKER_POOL="workers.pool:TaskPool",
        )
        part.start(self.folder)
        if wait:
            self._ready(before + 1)
        return part

    @contextmanager
    def worker(self, name: str, queue: str, concurrency: int) -> Generator[Part]:
        """One more worker process, killed at the end if it still lives."""
        part = self.add_worker(name, queue, concurrency)
        try:
            yield part
        finally:
            self.remove(name, signal.SIGKILL)

    def workers_up(self) -> int:
        """Worker processes that take messages: just before, Celery subscribes to its own control channel."""
        clients: Any = self.redis.client_list(_type="pubsub")
        return sum(client["psub"] != "0" for client in clients)

    def _ready(self, workers: int) -> None:
        def ready() -> bool:
            for part in self.parts.values():
                part.check()
            return self.workers_up() >= workers and _is_ready(client, self.parts["gateway"])

        with anybody(self.url) as client:
            wait_until(ready, START_SECONDS, "gateway and workers that are ready")

    def close(self) -> None:
        """End every process, servers last."""
        for part in self.parts.values():
            if part.process is not None and part.alive:
                part.process.send_signal(signal.SIGTERM)
        for part in self.parts.values():
            part.end(signal.SIGTERM)
        self._exit.close()
        self.valkey.close()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------- who calls

    def tenant(self, name: str | None = None) -> str:
        """A tenant's name that nobody has had."""
        self._tenants += 1
        return f"{name or 'tenant'}-{self._tenants}"

    def key(self, tenant: str, name: str = "test") -> tuple[str, str]:
        """A new key: its id and the key itself."""
        row, plaintext = self.keys.create(name, tenant)
        return row.id, plaintext

    def api(self, tenant: str | None = None, *, admin: bool = False) -> Api:
        """A client with a new key, of a new tenant where none is named. Close it, or use it in a ``with``."""
        tenant = tenant or self.tenant()
        _, plaintext = self.keys.create("test", tenant, admin)
        return Api(self.url, plaintext, tenant=tenant, backend=self.backend)

    # ------------------------------------------------------------------------------------- inside the pipeline

    def state(self, completion_id: str) -> dict[str, str]:
        """The generation's hash, empty where Redis has none."""
        fields: Any = self.redis.hgetall(Keys(0).gen(completion_id))
        return fields

    def row(self, completion_id: str) -> CompletionRow | None:
        return self.books.completion(completion_id)

    def settled(self, *completion_ids: str) -> list[CompletionRow]:
        """Wait until the books have the ends of these completions; their rows."""
        rows: dict[str, CompletionRow] = {}

        def known() -> bool:
            for completion_id in completion_ids:
                row = None if completion_id in rows else self.row(completion_id)
                if row is not None and row.status.ended:
                    rows[completion_id] = row
            return len(rows) == len(set(completion_ids))

        wait_until(known, what="end in the books")
        return [rows[completion_id] for completion_id in completion_ids]

    def attempts(self, completion_id: str) -> list[tuple[int, str]]:
        """Number and state of each attempt that the books know of."""
        columns = (attempts.c.number, attempts.c.state)
        with self.engine.connect() as connection:
            rows = connection.execute(
                select(*columns).where(attempts.c.generation_id == completion_id).order_by(attempts.c.number)
            )
            return [(row.number, row.state) for row in rows]

    def forget(self, *completion_ids: str) -> None:
        """As when the chunk logs' time is over: wait for the settling to set it, then let it be over now."""
        self.settled(*completion_ids)
        keys = Keys(0)
        for completion_id in completion_ids:
            gen, ptr = keys.gen(completion_id), keys.ptr(completion_id)
            wait_until(lambda g=gen, p=ptr: -1 not in (self.redis.pttl(g), self.redis.pttl(p)), what="TTL")
            others = (keys.log(completion_id), keys.members(completion_id))
            assert -1 not in map(self.redis.pttl, others), "the log outlives its state"
            self.redis.delete(gen, ptr, *others)

    def flight_of(self, completion_id: str) -> str:
        """The key that says who fetches the answer to the completion's request."""
        row = self.row(completion_id)
        assert row is not None
        return Keys(0).flight(row.fingerprint)

    def forget_hot(self) -> None:
        """As when the time of every hot copy of a cached result is over."""
        for name in self.redis.scan_iter(Keys(0).hot("*")):
            self.redis.delete(name)

    def worker_of(self, completion_id: str) -> Part:
        """The worker that has the completion's lease."""
        pid = int(self.state(completion_id)["worker"].split(":")[1])
        return next(part for part in self.parts.values() if part.process and part.pid == pid)

    def readers(self) -> list[str]:
        """The chunk logs that somebody is subscribed to."""
        channels: Any = self.redis.execute_command("PUBSUB", "SHARDCHANNELS")
        return [name for name in channels if ":ch:" in name]

    def queue_length(self, queue: str) -> int:
        """Celery messages that no worker has taken yet."""
        return int(self.redis.llen(f"tailrace:{{p0}}:broker:{queue}"))

    @contextmanager
    def paused(self, name: str) -> Generator[None]:
        """The process stands still (SIGSTOP) for as long as the ``with`` lasts."""
        os.kill(self.parts[name].pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.parts[name].pid, signal.SIGCONT)

    # ------------------------------------------------------------------------------------------------ the books

    def admission(self) -> str:
        """``open``, or why new work is refused."""
        with anybody(self.url) as client:
            answer = client.get("/readyz")
            assert answer.status_code == 200, answer.text
            return answer.json()["parts"]["admission"]

    def check_balanced(self) -> None:
        """For a stack that several tests had. Raises SharedFault with what ``balanced`` finds."""
        if problems := self.balanced():
            raise SharedFault("\n".join(problems))

    def balanced(self) -> list[str]:
        """What is not as it must be once all work is done: each completion ended, and recorded once; no key left."""
        keys = Keys(0)
        with contextlib.suppress(TimeoutError):  # what still runs then is told below
            queues = (keys.queued("interactive"), keys.queued("bulk"))
            wait_until(lambda: not any(map(self.redis.zcard, (keys.lease, *queues))))
        wait_until(lambda: not self.redis.xlen(keys.ledger), what="empty ledger")
        wait_until(lambda: not self.readers(), what="end of all subscriptions")
        with self.engine.connect() as connection:
            open_ = connection.scalars(select(completions.c.id).where(completions.c.ended_ms.is_(None))).all()
            accepted = connection.scalar(select(func.count()).select_from(completions))
            recorded = connection.scalar(select(func.count()).select_from(usage))
        found = [f"no end in the books: {completion_id}" for completion_id in open_]
        if accepted != recorded:
            found.append(f"{accepted} completions and {recorded} usage records")
        return found + leaks(self.redis, allow=NOT_OURS, settled=True)

    # ------------------------------------------------------------------------------------------------- the logs

    def mark(self) -> dict[str, int]:
        """Where each log ends now."""
        return {name: part.log.stat().st_size for name, part in self.parts.items() if part.log.exists()}

    def told_since(self, mark: Mapping[str, int]) -> Iterator[tuple[str, str]]:
        """What each process has written since then."""
        for name, part in self.parts.items():
            if part.log.exists():
                with part.log.open("rb") as log:
                    log.seek(mark.get(name, 0))
                    text = log.read().decode(errors="replace")
                if text:
                    yield name, text


def _is_ready(client: httpx.Client, gateway: Part) -> bool:
    gateway.check()
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _timeouts(**changed: float) -> dict[str, float]:
    return {"connect": 5, "first_chunk": 30, "between_chunks": 30, "total": 60, **changed}
