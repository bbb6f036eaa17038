"""Fixtures that every test can ask for. The servers behind them start when the first test asks, once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
import redis
from hypothesis import HealthCheck, settings

from tests.support.api import Api
from tests.support.backend import Backend
from tests.support.leaks import cluster_leaks, leaks
from tests.support.outcomes import SharedFault
from tests.support.postgres import PostgresServer
from tests.support.processes import left_behind, mark_environment
from tests.support.providers import write_providers
from tests.support.s3 import S3Server
from tests.support.stack import Stack
from tests.support.valkey import ValkeyCluster, ValkeyServer, debian_redis, wait_until

#: Of all tests, the rest in random order.
LONGEST = "test_short.py"
#: What a process may take to end by itself, once the session is over.
LEAVE_SECONDS = 5.0

# A shared machine is sometimes slow: the time of one example says nothing. Fixtures here are safe to share by examples.
settings.register_profile(
    "tailrace",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
#: ``--hypothesis-profile=thorough``: the same properties with twenty times the examples.
settings.register_profile("thorough", settings.get_profile("tailrace"), max_examples=2000)
settings.load_profile("tailrace")


def pytest_configure() -> None:
    """One environment for all: no settings, keys or proxies of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("TAILRACE_", "OPENAI_", "CELERY_")) or name.lower().endswith("_proxy"):
            del os.environ[name]
    mark_environment()
    signal.signal(signal.SIGTERM, _interrupt)  # so that fixtures are torn down, and servers with them
    # A shell's background job ignores SIGINT, and so would every process that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest one begins first, so that it is not what one process has left when the others are done."""
    items.sort(key=lambda item: item.path.name != LONGEST)


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(f"signal {number}")


@pytest.fixture(scope="session", autouse=True)
def a_home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``~`` is an empty folder: tests neither read nor write the one of the person who runs them."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        yield home


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind() -> Iterator[None]:
    yield
    with suppress(TimeoutError):  # some may be about to end
        wait_until(lambda: not left_behind(), LEAVE_SECONDS, "end of all processes")
    processes = left_behind()
    told: list[str] = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            told.append(f"{process.pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
    if told:
        raise SharedFault("processes left behind:\n" + "\n".join(told))


# ------------------------------------------------------------------------------------------------- Valkey


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of the stores, and whatever else is marked ``both_servers``, run on Debian's redis-server too."""
    stores = Path(__file__).parent / "stores"
    if "redis_url" in metafunc.fixturenames and (
        metafunc.definition.get_closest_marker("both_servers") or stores in metafunc.definition.path.parents
    ):
        servers = ["valkey", pytest.param("redis", marks=pytest.mark.system)]
        metafunc.parametrize("redis_url", servers, indirect=True)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """The session's server. Tests that harm it start one of their own with ``start_valkey``."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[ValkeyServer]:
    """Debian's redis-server, for system tests."""
    with debian_redis() as server:
        yield server


class StartValkey(Protocol):
    def __call__(
        self,
        *,
        password: str | None = None,
        appendonly: bool = False,
        config: Mapping[str, str] | None = None,
    ) -> ValkeyServer: ...


@pytest.fixture
def start_valkey() -> Iterator[StartValkey]:
    """``start_valkey(password=…, appendonly=…, config={…})``: a server for this test alone, to kill and restart."""
    with ExitStack() as stack:

        def start(
            *, password: str | None = None, appendonly: bool = False, config: Mapping[str, str] | None = None
        ) -> ValkeyServer:
            return stack.enter_context(ValkeyServer(password=password, appendonly=appendonly, config=config))

        yield start


def _allowed(request: pytest.FixtureRequest) -> dict[str, Any]:
    allow: list[str] = []
    settled = False
    for marker in request.node.iter_markers("redis_keys"):
        allow.extend(marker.kwargs.get("allow", ()))
        settled = settled or marker.kwargs.get("settled", False)
    return {"allow": allow, "settled": settled}


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty Valkey. After the test, a key without TTL and owner fails it: see ``tests/support/leaks.py``.

    ``@pytest.mark.redis_keys(allow=["gen:*"], settled=True)`` allows more, or less.
    """
    kind: str = getattr(request, "param", "valkey")
    server: ValkeyServer = request.getfixturevalue(f"{kind}_server")
    with server.client() as client:
        client.flushall()
        yield server.url
        found = leaks(client, **_allowed(request))
        client.flushall()
    assert not found, "keys left without TTL or owner:\n" + "\n".join(found)


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A synchronous client of ``redis_url`` that decodes answers to str."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[ValkeyCluster]:
    """Three masters; ask for ``cluster_url`` to get it empty."""
    with ValkeyCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster_url(valkey_cluster: ValkeyCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty cluster, with the same check after the test as ``redis_url``."""
    valkey_cluster.flush()
    yield valkey_cluster.url
    found = cluster_leaks([node.url for node in valkey_cluster.nodes], **_allowed(request))
    valkey_cluster.flush()
    assert not found, "keys left without TTL or owner:\n" + "\n".join(found)


# -------------------------------------------------------------------------------------------------- books


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty database: ``postgresql+psycopg://…``."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet: ``sqlite:///…``."""
    return f"sqlite:///{tmp_path / 'books.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The test runs twice, on SQLite and on PostgreSQL."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


# ---------------------------------------------------------------------------------------------- providers


@pytest.fixture
def backend() -> Iterator[Backend]:
    """The fake model backend: ``backend.url``, ``backend.completions``, ``backend.script({...})``."""
    with Backend() as server:
        yield server


class ProvidersToml(Protocol):
    def __call__(
        self,
        providers: Mapping[str, str | Mapping[str, Any]] | None = None,
        *,
        default: str | None = None,
        aliases: Mapping[str, list[str]] | None = None,
    ) -> Path: ...


@pytest.fixture
def providers_toml(tmp_path: Path, request: pytest.FixtureRequest) -> ProvidersToml:
    """``providers_toml({"fake": backend.url, "slow": {"base_url": …}})`` writes the file and gives its path.

    Without an argument it has one provider, ``fake``, which is the fixture ``backend``.
    """

    def write(
        providers: Mapping[str, str | Mapping[str, Any]] | None = None,
        *,
        default: str | None = None,
        aliases: Mapping[str, list[str]] | None = None,
    ) -> Path:
        if providers is None:
            providers = {"fake": request.getfixturevalue("backend").url}
        return write_providers(tmp_path / "providers.toml", providers, default=default, aliases=aliases)

    return write


# ------------------------------------------------------------------------------------------ the whole pipeline


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Gateway, workers, Valkey, SQLite and the fake backend, for all tests. At its end the books balance."""
    with Stack() as stack:
        yield stack
        stack.check_balanced()


@pytest.fixture(scope="session")
def stack_on_postgres(postgres_server: PostgresServer) -> Iterator[Stack]:
    """The same on PostgreSQL, and without a CORS setting."""
    with Stack(database_url=postgres_server.create_database(), settings={"CORS_ORIGINS": ""}) as stack:
        yield stack
        stack.check_balanced()


@pytest.fixture(params=["sqlite", "postgresql"])
def each_stack(request: pytest.FixtureRequest) -> Stack:
    """The test runs twice, on a stack with SQLite and on one with PostgreSQL."""
    return request.getfixturevalue("stack" if request.param == "sqlite" else "stack_on_postgres")


@pytest.fixture
def api(stack: Stack) -> Iterator[Api]:
    """A client of ``stack`` with the key of a tenant that is this test's own."""
    with stack.api() as api:
        yield api


@pytest.fixture
def each_api(each_stack: Stack) -> Iterator[Api]:
    """A client of ``each_stack`` with the key of a tenant that is this test's own."""
    with each_stack.api() as api:
        yield api


_marks = pytest.StashKey[dict[Stack, dict[str, int]]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    item.stash[_marks] = {s: s.mark() for s in {v for v in funcargs.values() if isinstance(v, Stack)}}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test's report has what the processes of its stack wrote meanwhile."""
    report = yield
    if report.failed:
        for stack, mark in item.stash.get(_marks, {}).items():
            report.sections += [(f"log of {name}", text) for name, text in stack.told_since(mark)]
    return report


@pytest.fixture(autouse=True)
def no_traceback_in_a_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does to a stack, none of its processes meets an error that nobody expected."""
    yield
    for stack, mark in request.node.stash.get(_marks, {}).items():
        for name, text in stack.told_since(mark):
            assert "Traceback" not in text, f"{name} wrote:\n{text}"
