"""The stack under test: two interactive workers, one for bulk, a gateway, Valkey with its append-only file, PostgreSQL
and the fake backend, all processes of their own on free ports, with their files in one folder.

A ``Supervisor`` starts again what ended by itself, as an operating system's would.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil

from schemas.settings import Settings
from stores.apikeys import ApiKeys
from stores.migration import migrate
from stores.sql import make_engine
from tests.support.api import anybody
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.processes import left_behind
from tests.support.providers import write_providers
from tests.support.stack import ROOT, START_SECONDS, Part
from tests.support.valkey import ValkeyServer, wait_until

TENANT = "chaos"
INTERACTIVE = ("interactive0", "interactive1")
BULK = "bulk"
WORKERS = (*INTERACTIVE, BULK)
#: Slots of an interactive worker, and of the one for bulk.
SLOTS, BULK_SLOTS = 320, 32
#: How long a process may take to end after SIGTERM, in seconds.
STOP_SECONDS = 45.0
#: How long after its start a process may give up because Redis or the database is away, in seconds.
STARTING = 45.0
#: What a provider may keep us waiting for, in seconds: short, so that a backend that stands still is a fault.
TIMEOUT = {"connect": 3, "first_chunk": 6, "between_chunks": 4, "total": 180}
SETTINGS = {"LOG_TTL_INTERACTIVE": "60", "LOG_TTL_BULK": "5"}


class ChaosStack:
    """``close`` ends every process; ``remove`` takes the folder away too."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tailrace-chaos-"))
        # What survives a process's end has to be on disk by the time that it is acknowledged, not by the time of a
        # host's crash: nothing here is fsynced for PostgreSQL, and Valkey's file is each second.
        self.postgres = PostgresServer(config={"synchronous_commit": "on", "autovacuum": "on"})
        self.valkey = ValkeyServer(appendonly=True)
        self.journal = self.folder / "requests"
        self.port, self.backend_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.parts: dict[str, Part] = {}
        #: When each part was last started anew, on the monotonic clock.
        self.begun: dict[str, float] = {}
        #: Held by whoever does something to a part, so that two faults don't meet in it.
        self.locks: dict[str, asyncio.Lock] = {}

    # ------------------------------------------------------------------------------------------ start and end

    def start(self) -> None:
        self.postgres.start()
        self.valkey.start()
        self.database_url = self.postgres.create_database()
        self.engine = make_engine(self.database_url)
        migrate(self.engine)
        key, self.api_key = ApiKeys(self.engine).create("chaos", TENANT)
        self.key_id = key.id
        provider = {"base_url": f"http://127.0.0.1:{self.backend_port}/v1", "timeout": TIMEOUT}
        write_providers(self.folder / "providers.toml", {"fake": {**provider, "max_concurrency": 4096}})
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            **{f"TAILRACE_{name}": value for name, value in self._settings().items()},
        }
        self._part("backend", "tests.support.backend", "--port", str(self.backend_port), "--no-record")
        self.parts["backend"].command += ["--journal", str(self.journal)]
        self._part("gateway", "gateway", "--port", str(self.port))
        for name in WORKERS:
            queue, slots = ("bulk", BULK_SLOTS) if name == BULK else ("interactive", SLOTS)
            self._part(
                name,
                *("celery", "-A", "workers.app", "worker", "-P", "custom", "-Q", queue),
                *("-c", str(slots), "-n", f"{name}@%h", "--without-mingle", "--without-gossip"),
                *("-l", "WARNING"),
            )
            self.parts[name].environment["CELERY_CUSTOM_WORKER_POOL"] = "workers.pool:TaskPool"
        for name in (*self.parts, "valkey", "postgres"):
            self.locks[name] = asyncio.Lock()
        for part in self.parts.values():
            part.start(self.folder)
        self.wait_ready()

    def _settings(self) -> dict[str, str]:
        return {
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self.database_url,
            "PROVIDERS": str(self.folder / "providers.toml"),
            "HOME": str(self.folder / "home"),
            **SETTINGS,
        }

    @property
    def settings(self) -> Settings:
        """As the processes have them."""
        return Settings.model_validate({name.lower(): value for name, value in self._settings().items()})

    def _part(self, name: str, *arguments: str) -> None:
        command = [sys.executable, "-P", "-m", *arguments]
        self.parts[name] = Part(name, command, dict(self.environment), self.folder / f"{name}.log")

    def wait_ready(self) -> None:
        """Until the gateway says that it is, and each worker takes messages."""
        with self.valkey.client() as redis, anybody(self.url) as client:

            def ready() -> bool:
                for part in self.parts.values():
                    part.check()
                clients = redis.client_list(_type="pubsub")
                if sum(c["psub"] != "0" for c in clients) < len(WORKERS):
                    return False
                try:
                    return client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(ready, START_SECONDS, "gateway and workers that are ready")

    def close(self) -> list[str]:
        """End every process. What ended badly, or was left behind, in words."""
        found: list[str] = []
        for part in self.parts.values():
            if part.process is not None and part.alive:
                part.process.send_signal(signal.SIGCONT)
                part.process.send_signal(signal.SIGTERM)
        for name, part in self.parts.items():
            if part.process is None:
                continue
            part.end(signal.SIGTERM, STOP_SECONDS)
            if part.process.returncode == -signal.SIGKILL:
                found.append(f"{name} did not end within {STOP_SECONDS:g} s of SIGTERM")
        if hasattr(self, "engine"):
            self.engine.dispose()
        self.valkey.kill()
        self.postgres.kill()
        left = left_behind()
        for process in left:
            found.append(f"process {process.pid} is left: {' '.join(process.cmdline())[:160]}")
            process.kill()
        return found

    def remove(self) -> None:
        self.valkey.close()
        self.postgres.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep_logs(self) -> None:
        """Copy what Valkey had, and PostgreSQL's log, beside the logs of the parts."""
        if self.postgres.log.exists():
            shutil.copyfile(self.postgres.log, self.folder / "postgres.log")
        shutil.copytree(self.valkey.directory, self.folder / "valkey", dirs_exist_ok=True)
        self.valkey.close()
        self.postgres.close()

    # ------------------------------------------------------------------------------------------ signals

    def signal(self, name: str, number: int) -> None:
        """A signal to one part; to all processes of PostgreSQL, for the one that was started only listens."""
        if name == "valkey":
            process = self.valkey.process
        elif name == "postgres":
            process = self.postgres.process
        else:
            process = self.parts[name].process
        assert process is not None
        whole = [psutil.Process(process.pid)]
        if name == "postgres":
            whole += whole[0].children(recursive=True)
        for one in whole if number == signal.SIGSTOP else reversed(whole):
            try:
                one.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def kill(self, name: str) -> None:
        """SIGKILL; PostgreSQL's immediate shutdown, for its children would outlive it."""
        if name == "valkey":
            self.valkey.kill()
        elif name == "postgres":
            self.postgres.kill()
        else:
            self.parts[name].end(signal.SIGKILL)

    def begin(self, name: str) -> None:
        """Start a part that was ended."""
        self.begun[name] = time.monotonic()
        if name == "valkey":
            self.valkey.start()
        elif name == "postgres":
            self.postgres.start()
        else:
            self.parts[name].start(self.folder)

    def alive(self, name: str) -> bool:
        if name == "valkey":
            return self.valkey.process is not None and self.valkey.process.poll() is None
        if name == "postgres":
            return self.postgres.process is not None and self.postgres.process.poll() is None
        return self.parts[name].alive

    def tracebacks(self) -> int:
        """How many there are in what the processes wrote."""
        return sum(
            part.log.read_bytes().count(b"Traceback (most recent")
            for part in self.parts.values()
            if part.log.exists()
        )


class Supervisor:
    """Starts again what ended though nobody did anything to it. What ends while it starts may be told that a server is
    away, and try again; whatever ends later is in ``deaths``."""

    def __init__(self, stack: ChaosStack) -> None:
        self._stack = stack
        self.deaths: list[str] = []
        self.false_starts: Counter[str] = Counter()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            for name, lock in self._stack.locks.items():
                if not lock.locked():
                    async with lock:
                        await self.see_to(name)

    async def see_to(self, name: str) -> None:
        """Start the part again where it has ended; the caller holds its lock."""
        stack = self._stack
        if stack.alive(name):
            return
        part = stack.parts.get(name)
        code = part.process.returncode if part is not None and part.process is not None else "?"
        if time.monotonic() - stack.begun.get(name, 0.0) < STARTING:
            self.false_starts[name] += 1
        else:
            self.deaths.append(f"{name} ended by itself, with {code}")
        await asyncio.to_thread(stack.begin, name)
