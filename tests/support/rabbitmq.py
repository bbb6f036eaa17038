"""Debian's RabbitMQ as child processes, and a stack that has it for a broker.

Each broker has an epmd and ports of its own, and a folder that goes with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from amqp.exceptions import NotFound
from kombu import Connection

from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.valkey import wait_until

#: The script itself; what Debian has on the PATH runs it as another user, in its own folder.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_SECONDS = 90.0
STOP_SECONDS = 30.0


class RabbitServer:
    """Messages stay in ``directory`` over ``kill`` and ``start``. ``config`` is what ``rabbitmq.conf`` would hold."""

    def __init__(self, *, config: Mapping[str, str] | None = None) -> None:
        if not SERVER.exists():
            raise FileNotFoundError("RabbitMQ is not installed: apt-get install rabbitmq-server")
        self.port, self._epmd_port, self._dist_port = free_port(), free_port(), free_port()
        self._temporary = tempfile.TemporaryDirectory(prefix="tr-rabbit-", ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)
        self.log = self.directory / "server.log"
        self._config = {"listeners.tcp.1": f"127.0.0.1:{self.port}", **(config or {})}
        self._epmd: subprocess.Popen[bytes] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def _environment(self) -> dict[str, str]:
        files = {
            "CONF_ENV_FILE": ("env.conf", ""),
            "ENABLED_PLUGINS_FILE": ("plugins", "[].\n"),
            "CONFIG_FILE": ("rabbitmq.conf", "".join(f"{n} = {v}\n" for n, v in self._config.items())),
        }
        for name, content in files.values():
            (self.directory / name).write_text(content)
        return {
            **os.environ,
            "HOME": str(self.directory),  # of the cookie
            **{f"RABBITMQ_{name}": str(self.directory / file) for name, (file, _) in files.items()},
            "RABBITMQ_NODENAME": f"tailrace{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_LOGS": "-",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the broker, and hears signals itself
        }

    def start(self) -> Self:
        """Start, and wait until it takes connections."""
        environment = self._environment()
        if self._epmd is None:
            epmd = shutil.which("epmd") or "epmd"
            self._epmd = subprocess.Popen(
                [epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            wait_until(lambda: _listens(self._epmd_port), START_SECONDS, "epmd")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [SERVER],
                cwd=self.directory,  # of a crash dump
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, START_SECONDS, "answer from RabbitMQ")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"{SERVER} ended:\n{self.log.read_text(errors='replace')[-4000:]}")
        if not _listens(self.port):
            return False
        try:
            with Connection(self.url, connect_timeout=5) as connection:
                connection.connect()
        except OSError:
            return False
        return True

    def _end(self, number: int) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """SIGKILL: as when its machine is switched off."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: an orderly end."""
        self._end(signal.SIGTERM)

    @contextmanager
    def paused(self) -> Generator[None]:
        """It holds its connections and says nothing (SIGSTOP) for as long as the ``with`` lasts."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def messages(self, queue: str) -> int:
        """Messages that wait in the queue."""
        return self._declared(queue).message_count

    def consumers(self, queue: str) -> int:
        """Workers that take from the queue."""
        return self._declared(queue).consumer_count

    def _declared(self, queue: str) -> Any:
        with Connection(self.url, connect_timeout=5) as connection:
            channel: Any = connection.default_channel
            return channel.queue_declare(queue, passive=True)

    def close(self) -> None:
        """End the broker and epmd, and remove their data."""
        self.kill()
        epmd, self._epmd = self._epmd, None
        if epmd is not None:
            epmd.kill()
            epmd.wait()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()


class RabbitStack(Stack):
    """``rabbit`` is the broker, which outlives the stack."""

    def __init__(
        self, rabbit: RabbitServer, *, settings: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(settings={"BROKER_URL": rabbit.url, **(settings or {})}, **more)
        self.rabbit = rabbit

    def workers_up(self) -> int:
        try:
            return self.rabbit.consumers("interactive") + self.rabbit.consumers("bulk")
        except NotFound:
            return 0

    def queue_length(self, queue: str) -> int:
        return self.rabbit.messages(queue)


def _listens(port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0
