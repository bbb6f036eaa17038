"""``tailrace up`` for real: every process of the stack, started, killed, restarted and stopped."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

import tailrace
from tailrace import connection
from tests.support.backend import Backend
from tests.support.ports import free_port
from tests.support.providers import write_providers
from tests.support.valkey import wait_until
from tests.tailrace.command import ROOT, command, complaint, environment, run

pytestmark = pytest.mark.timeout(300)

#: Processes of a stack with one interactive worker and no local model: Valkey, gateway, two workers, beat, Flower,
#: and the guardian.
PROCESSES = 7
#: A shared machine may be slow; a stop may not.
START_SECONDS, STOP_SECONDS = 120.0, 12.0
QUESTION: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}]}


class Up:
    """A running ``tailrace up``, and what it has said."""

    def __init__(self, folder: Path, backend: Backend, *arguments: str, **settings: str) -> None:
        self.home = folder / "home"
        self._log = folder / "up.log"
        self._errors = folder / "up.err"
        providers = write_providers(
            folder / "providers.toml", {"fake": {"base_url": backend.url, "models": ["fake"]}}
        )
        settings = {"PROVIDERS": str(providers), **settings}
        with self._log.open("wb") as out, self._errors.open("wb") as err:
            self.process = subprocess.Popen(
                command("up", "--home", str(self.home), "--port", str(free_port()), *arguments),
                env=environment(**settings),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def said(self) -> str:
        return self._log.read_text()

    def complained(self) -> str:
        return self._errors.read_text()

    def wait_ready(self) -> Self:
        def ready() -> bool:
            assert self.process.poll() is None, (self.said(), self.complained())
            return "Ctrl-C stops it" in self.said()

        wait_until(ready, START_SECONDS, "stack")
        return self

    @property
    def connection(self) -> connection.Connection:
        found = connection.read(self.home)
        assert found
        return found

    def client(self) -> tailrace.SyncClient:
        return tailrace.SyncClient(home=self.home)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.connection.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def family(self) -> list[psutil.Process]:
        return alive(psutil.Process(self.process.pid).children(recursive=True))

    def part(self, word: str) -> psutil.Process:
        """The one process with ``word`` in its command line."""
        found = [process for process in self.family() if word in line(process)]
        assert len(found) == 1, (word, found)
        return found[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal; the exit code. Nothing is left of the family, and soon."""
        family = self.family()
        start = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(STOP_SECONDS)
        wait_until(
            lambda: not alive(family), STOP_SECONDS - (time.monotonic() - start), "end of all processes"
        )
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


def line(process: psutil.Process) -> str:
    """Its command line; empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    def lives(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if lives(process)]


def ask(client: tailrace.SyncClient, **order: Any) -> str:
    return client.submit(**QUESTION, fake=order).text()


@pytest.fixture(scope="module")
def model() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.fixture(scope="module")
def up(model: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One stack for the tests that do it no harm."""
    with Up(tmp_path_factory.mktemp("up"), model) as up:
        yield up.wait_ready()
        assert up.stop() == 0
        assert up.complained() == ""


# --------------------------------------------------------------------------------------------- a running one


def test_the_curl_line_works_when_pasted(up: Up) -> None:
    """It streams frames of the page's framing, to the end."""
    pasted = re.search(r"^ *(curl .*)$", up.said(), re.MULTILINE)
    assert pasted
    done = subprocess.run(pasted[1], shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert "event: message\nid: 0\ndata: {" in done.stdout
    assert done.stdout.rstrip().endswith("data: null")


def test_connection_json_says_all_and_only_to_its_owner(up: Up) -> None:
    """Mode 600, and every URL in it works."""
    assert (up.home / connection.FILE).stat().st_mode & 0o777 == 0o600
    raw = json.loads((up.home / connection.FILE).read_text())
    urls = {"url", "redis_url", "broker_url", "database_url", "flower_url"}
    assert set(raw) == {*urls, "api_key", "providers", "files"}
    assert httpx.get(f"{raw['url']}/readyz").status_code == 200
    assert httpx.get(raw["flower_url"] + "/api/workers").status_code == 200
    bare = httpx.URL(raw["flower_url"]).copy_with(username=None, password=None)
    assert httpx.get(bare).status_code == 401
    assert raw["api_key"] in up.said()
    assert not [line for line in up.said().splitlines() if httpx.URL(raw["redis_url"]).password in line]


def test_the_doctor_finds_it_and_all_is_well(up: Up) -> None:
    """From another folder, without any setting but the home."""
    done = run("doctor", "--home", str(up.home), cwd=up.home.parent.parent)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"ok"}, done.stdout
    assert f"`tailrace up` runs in {up.home}" in done.stdout


def test_secrets_are_in_no_command_line(up: Up) -> None:
    here = up.connection
    secrets = [httpx.URL(url).password for url in (here.redis_url, here.flower_url)] + [here.api_key]
    lines = [line(process) for process in up.family()]
    assert len(lines) == PROCESSES
    assert not [each for each in lines for secret in secrets if secret in each]


def test_a_stream_through_the_stack_resumes(up: Up) -> None:
    """Through Celery, Valkey and the gateway, with the client that finds the stack in its home folder."""
    with up.client() as client:
        completion = client.submit(**QUESTION, fake={"chunks": 30, "interval_ms": 5})
        live = completion.chunks()
        first = [next(live) for _ in range(5)]
        live.close()
        rest = list(completion.chunks(first[-1].index))
        assert [chunk.index for chunk in first + rest] == list(range(len(first + rest)))
        assert "".join(chunk.text for chunk in first + rest) == completion.text()
        done = run("tail", completion.id, "--home", str(up.home))
        assert done.stdout == completion.text() + "\n"


def test_a_file_is_in_the_home_folder(up: Up) -> None:
    """Where gateway and workers look for it."""
    with httpx.Client(
        base_url=up.connection.url, headers={"Authorization": f"Bearer {up.connection.api_key}"}
    ) as client:
        file = client.post("/v1/files", data={"purpose": "evals"}, files={"file": ("x", b"hello")}).json()
        assert (Path(up.connection.files) / file["id"]).read_bytes() == b"hello"
        assert client.get(f"/v1/files/{file['id']}/content").content == b"hello"
    assert Path(up.connection.files) == up.home / "files"


def test_flower_shows_the_task_of_a_completion(up: Up) -> None:
    with up.client() as client:
        completion = client.submit(**QUESTION)
        completion.result()

    def shown() -> bool:
        return completion.id in httpx.get(up.connection.flower_url + "/api/tasks").text

    wait_until(shown, 20, "task in Flower")


def test_a_second_one_on_the_same_home_is_refused(up: Up) -> None:
    said = complaint(run("up", "--home", str(up.home), "--port", "0"), 1)
    assert str(up.home) in said
    assert str(up.process.pid) in said


def test_keys_of_the_running_stack(up: Up) -> None:
    """``keys`` finds the database in the home folder; what it makes works at once, what it revokes soon doesn't."""
    home = ("--home", str(up.home))
    made = json.loads(run("keys", "create", "guest", "--json", *home).stdout)
    with tailrace.SyncClient(up.connection.url, made["key"]) as guest:
        assert guest.models()
        assert run("keys", "revoke", made["id"], *home).returncode == 0

        def refused() -> bool:
            with contextlib.suppress(tailrace.Unauthenticated):
                guest.models()
                return False
            return True

        wait_until(refused, 10, "refusal of the key")


# ------------------------------------------------------------------------------------------- harm and endings


@pytest.mark.once
def test_parts_that_are_killed_come_back_and_data_survive_everything(tmp_path: Path, model: Backend) -> None:
    """``kill -9`` of each part, of the supervisor, and a restart on the same home folder."""
    with Up(tmp_path, model, "--no-flower").wait_ready() as up, up.client() as client:
        before = up.connection
        old = client.submit(**QUESTION, fake={"text": "kept through it all"})
        assert old.text() == "kept through it all"
        reader = client.completion(client.submit(**QUESTION, fake={"chunks": 60, "interval_ms": 50}).id)
        with ThreadPoolExecutor() as threads:
            reading = threads.submit(lambda: [chunk.index for chunk in reader.chunks()])
            wait_until(lambda: reader.status() == "in_progress", 20, "stream")
            up.part("-m gateway").kill()
            indexes = reading.result(90)
        assert indexes == list(range(len(indexes)))
        assert len(indexes) >= 60
        for word in ("-m gateway", "interactive1@", "valkey-server", "bulk@", " beat "):
            victim = up.part(word)
            victim.kill()
            wait_until(lambda v=victim: not alive([v]), 10, "end of the victim")
        wait_until(lambda: len(up.family()) == PROCESSES - 1, 60, "all parts again")
        wait_until(lambda: up.complained().count("starting it again") >= 5, 10, "lines about it")
        wait_until(up.answers, 60, "gateway")
        assert ask(client, text="works again") == "works again"
        family = up.family()
        up.process.kill()
        up.process.wait()
        wait_until(lambda: not alive(family), STOP_SECONDS, "end of what the supervisor left")

    with Up(tmp_path, model, "--no-flower").wait_ready() as up, up.client() as client:
        after = up.connection
        assert (after.api_key, after.redis_url) == (before.api_key, before.redis_url)
        assert client.completion(old.id).text() == "kept through it all"
        assert next(client.completion(old.id).chunks(1)).index == 2
        assert up.stop(signal.SIGINT) == 0
        assert up.said().endswith("tailrace is down\n")


@pytest.mark.once
def test_a_stack_that_starts_after_a_kill_waits_for_the_cleaning(tmp_path: Path, model: Backend) -> None:
    """The next ``up`` may come at once after ``kill -9``: what is left of the last one goes first."""
    with Up(tmp_path, model, "--no-flower").wait_ready() as up:
        family = up.family()
        up.process.kill()
        up.process.wait()
        with Up(tmp_path, model, "--no-flower").wait_ready() as second:
            assert not alive(family)
            with second.client() as client:
                assert ask(client, text="hello")


def test_a_signal_while_it_starts_stops_it(tmp_path: Path, model: Backend) -> None:
    with Up(tmp_path, model) as up:
        wait_until(lambda: "valkey ready" in up.said(), START_SECONDS, "Valkey")
        family = up.family()
        assert up.stop() == 0
        assert not alive(family)
        assert up.complained() == ""


def test_what_is_configured_is_not_started(
    tmp_path: Path, model: Backend, postgres_url: str, start_valkey: Callable[..., Any]
) -> None:
    """A Redis and a PostgreSQL of one's own replace just those parts."""
    server = start_valkey(password="pass-word")
    with Up(
        tmp_path, model, "--no-flower", REDIS_URL=server.url, DATABASE_URL=postgres_url
    ).wait_ready() as up:
        assert not [p for p in up.family() if "valkey" in line(p)]
        assert not (up.home / "tailrace.db").exists()
        assert (up.connection.redis_url, up.connection.database_url) == (server.url, postgres_url)
        with up.client() as client:
            assert ask(client, text="elsewhere") == "elsewhere"
        assert up.stop() == 0


# ------------------------------------------------------------------------------------------------- bad starts


@pytest.fixture
def refused(tmp_path: Path, model: Backend) -> Callable[..., str]:
    """Runs ``tailrace up`` with something wrong; gives the one line that it says about it."""
    providers = write_providers(tmp_path / "good.toml", {"fake": model.url})

    def attempt(*arguments: str, **settings: str) -> str:
        if "--home" not in arguments:
            arguments = (*arguments, "--home", str(tmp_path / "home"))
        if "--port" not in arguments:
            arguments = (*arguments, "--port", "0")
        settings = {"PROVIDERS": str(providers), **settings}
        said = complaint(run("up", *arguments, settings=settings, cwd=tmp_path), 1)
        assert "Traceback" not in said
        return said

    return attempt


def test_a_port_in_use(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused("--port", port)
        assert port in said
        assert "--port" in said


def test_an_address_that_is_not_here(refused: Callable[..., str]) -> None:
    assert "--host" in refused("--host", "203.0.113.7")


def test_a_home_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path) -> None:
    """A read-only one, or one that is a file."""
    (tmp_path / "file").touch()
    for home in ("/proc/nowhere", str(tmp_path / "file")):
        said = refused("--home", home)
        assert home in said
        assert "--home" in said


def test_providers(refused: Callable[..., str], tmp_path: Path) -> None:
    """None at all, one that isn't there, one that can't be used."""
    assert "--local-model" in refused(PROVIDERS="")
    assert "missing.toml" in refused(PROVIDERS=str(tmp_path / "missing.toml"))
    bad = tmp_path / "bad.toml"
    bad.write_text("[providers.local]\nbase_url = 7\n")
    assert "base_url" in refused(PROVIDERS=str(bad))
    bad.write_bytes(b"\xff\xfe")
    assert "bad.toml" in refused(PROVIDERS=str(bad))
    (tmp_path / "providers.toml").write_text("default = 'nobody'\n")
    assert "providers.toml" in refused(PROVIDERS="")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:9/0", "http://127.0.0.1/", "nonsense"])
def test_a_redis_url(refused: Callable[..., str], url: str) -> None:
    said = refused(REDIS_URL=url)
    assert "TAILRACE_REDIS_URL" in said


def test_a_redis_with_another_password(refused: Callable[..., str], start_valkey: Callable[..., Any]) -> None:
    url = httpx.URL(start_valkey(password="right").url)
    said = refused(REDIS_URL=str(url.copy_with(password="wrong-one")))
    assert "TAILRACE_REDIS_URL" in said
    assert "wrong-one" not in said


@pytest.mark.parametrize(
    "url", ["redis://:secret@127.0.0.1:9/0", "amqp://guest:secret@127.0.0.1:9//", "gopher://x"]
)
def test_a_broker_url(refused: Callable[..., str], url: str) -> None:
    said = refused(BROKER_URL=url)
    assert "TAILRACE_BROKER_URL" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/books.db", "mysql://x/y", "postgresql://nobody:secret@127.0.0.1:9/x", "?"]
)
def test_a_database_url(refused: Callable[..., str], url: str) -> None:
    said = refused(DATABASE_URL=url)
    assert "TAILRACE_DATABASE_URL" in said
    assert "secret" not in said


@pytest.mark.parametrize("where", ["gs://bucket/x", "s3://", "/dev/null/x"])
def test_a_place_for_files(refused: Callable[..., str], where: str) -> None:
    assert "TAILRACE_FILES" in refused(FILES=where)


def test_a_setting_out_of_range(refused: Callable[..., str]) -> None:
    assert "TAILRACE_PARTITIONS" in refused(PARTITIONS="0")


# ------------------------------------------------------------------------------------------------- the tour


def test_the_tour(tmp_path: Path) -> None:
    """``make run``: a real model, a stream that is cut and resumed, results, a table; then nothing is left running."""
    pytest.importorskip("xllamacpp")
    questions = ROOT / "examples" / "questions.jsonl"
    done = run("demo", "--home", str(tmp_path / "demo"), "--questions", str(questions))
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "connection dropped after index 7" in done.stdout
    assert "no gap or repeat" in done.stdout
    assert "a replay from the start is the same" in done.stdout
    rows = [json.loads(row) for row in (tmp_path / "demo" / "results.jsonl").read_text().splitlines()]
    asked = [json.loads(row)["custom_id"] for row in questions.read_text().splitlines()]
    assert [row["custom_id"] for row in rows] == asked
    assert {row["status"] for row in rows} == {"completed"}
    assert all(row["response"]["usage"]["completion_tokens"] > 0 for row in rows)
    assert done.stderr == ""
