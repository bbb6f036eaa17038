"""The processes of a stack: how each is started, and how it says that it is ready."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tailrace.embedded import readiness, valkey
from tailrace.embedded.process import GRACE, Part
from tailrace.embedded.readiness import Check

#: Slices of batches at once in the bulk worker.
BULK_CONCURRENCY = 16
FLOWER_USER = "tailrace"


class Parts:
    """Makes the parts of one stack; all of them run in ``home``, out of reach of the caller's own modules.

    ``environment`` is that of every process.
    """

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self._home = home
        self._environment = {**environment, "PYTHONUNBUFFERED": "1"}

    def _part(
        self,
        name: str,
        command: Sequence[str],
        ready: Check,
        where: str = "",
        *,
        last: bool = False,
        grace: float = GRACE,
        **environment: str,
    ) -> Part:
        log = self._home / "logs" / f"{name}.log"
        return Part(
            name, command, {**self._environment, **environment}, self._home, log, ready, where, last, grace
        )

    def _python(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", module, *arguments]

    def valkey(self, url: str) -> Part:
        """``url`` says port and password."""
        port, password = _port_and_password(url)
        return self._part(
            "valkey",
            valkey.command(self._home, port, password),
            readiness.pings("127.0.0.1", port, password),
            f"127.0.0.1:{port}",
            last=True,
        )

    def local_model(self, port: int) -> Part:
        return self._part(
            "local-model",
            self._python("tailrace.embedded.local_model", "--port", str(port)),
            readiness.answers(f"http://127.0.0.1:{port}/health"),
            f"http://127.0.0.1:{port}/v1",
        )

    def gateway(self, host: str, port: int, url: str) -> Part:
        return self._part(
            "gateway",
            self._python("gateway", "--host", host, "--port", str(port)),
            readiness.answers(f"{url}/readyz"),
            url,
        )

    def worker(self, name: str, queue: str, concurrency: int, broker_url: str) -> Part:
        return self._part(
            f"worker-{name}",
            self._python(
                *("celery", "-A", "workers.app", "worker"),
                *("-P", "custom", "-Q", queue, "-c", str(concurrency), "-n", f"{name}@%h", "-E"),
                *("--without-mingle", "--without-gossip", "-l", "WARNING"),
            ),
            readiness.works(broker_url, f"{name}@{socket.gethostname()}"),
            f"{concurrency} at once",
            CELERY_CUSTOM_WORKER_POOL="workers.pool:TaskPool",
        )

    def beat(self) -> Part:
        folder = self._home / "beat"
        schedule = str(folder / "schedule")
        return self._part(
            "beat",
            self._python(
                "celery", "-A", "workers.app", "beat", "-s", schedule, "--pidfile=", "-l", "WARNING"
            ),
            readiness.writes(folder),
        )

    def flower(self, url: str) -> Part:
        """``url`` says port and password."""
        port, password = _port_and_password(url)
        return self._part(
            "flower",
            self._python("celery", "-A", "workers.app", "flower", "--address=127.0.0.1", f"--port={port}"),
            readiness.answers(f"http://127.0.0.1:{port}/healthcheck"),
            f"http://127.0.0.1:{port} (user {FLOWER_USER}, password in connection.json)",
            grace=1.0,  # it often hangs once it is told to end, and has nothing to save
            FLOWER_BASIC_AUTH=f"{FLOWER_USER}:{password}",  # not an argument: those are for all to see
        )


def _port_and_password(url: str) -> tuple[int, str]:
    parts = urlsplit(url)
    return parts.port or 0, parts.password or ""
