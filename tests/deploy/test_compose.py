"""docker-compose.yml: it is one by the Compose specification, and its processes work together as it describes them.

No container engine is needed. The processes run on this machine with the commands, the environment and the health
checks of the file (``compose.py``), so that only the packaging into containers is left unseen.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from celery import Celery
from redis.exceptions import NoPermissionError

from schemas.messaging import GENERATE, HOUSEKEEPING, celery_config
from schemas.providers import load_providers
from schemas.settings import Settings
from tests.deploy.compose import FILE, ROOT, Deployment, NotSet, interpolate, raw, seconds, variables
from tests.support.api import Api, asking, ordered
from tests.support.backend import Backend
from tests.support.leaks import leaks
from tests.support.orders import PROMPT_TOKENS
from tests.support.providers import write_providers
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

OURS = {"migrate", "gateway", "worker-interactive", "worker-bulk", "beat", "flower"}
ENV = {
    "POSTGRES_PASSWORD": "postgres-secret",
    "VALKEY_PASSWORD": "valkey-secret",
    "FLOWER_PASSWORD": "flower-secret",
}


class TestFile:
    def test_it_is_valid_by_the_compose_specification(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_it_has_the_processes_of_tailrace_and_what_they_stand_on(self) -> None:
        services = raw()["services"]
        assert set(services) == OURS | {"valkey", "postgres"}
        assert {name for name, service in services.items() if service["image"] == "tailrace"} == OURS

    def test_a_service_waits_only_for_what_can_become_true(self) -> None:
        """A service that is to be healthy has a check; one that is to be complete is not started again."""
        services = raw()["services"]
        for name, service in services.items():
            for other, on in service.get("depends_on", {}).items():
                if on["condition"] == "service_healthy":
                    assert "healthcheck" in services[other], f"{name} waits for {other}"
                else:
                    assert on["condition"] == "service_completed_successfully"
                    assert services[other]["restart"] == "no", f"{name} waits for {other}"

    def test_whatever_runs_on_is_checked_started_again_and_given_time_to_stop(self) -> None:
        for name, service in raw()["services"].items():
            if name != "migrate":
                assert service["restart"] == "unless-stopped", name
                assert seconds(service["stop_grace_period"]) >= 10, name
                assert service["healthcheck"]["test"], name

    def test_nothing_but_gateway_and_flower_can_be_reached_from_outside_and_they_from_this_host_alone(
        self,
    ) -> None:
        services = interpolate(raw(), ENV)["services"]
        ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
        assert ports == {"gateway": ["127.0.0.1:8080:8080"], "flower": ["127.0.0.1:5555:5555"]}

    def test_every_volume_is_declared_and_every_file_is_there(self) -> None:
        file = interpolate(raw(), ENV)
        named: set[str] = set()
        for service in file["services"].values():
            for volume in service.get("volumes", []):
                if isinstance(volume, str):
                    named.add(volume.partition(":")[0])
                else:
                    assert (ROOT / volume["source"]).is_file(), volume
        assert named == set(file["volumes"])

    def test_without_a_password_nothing_starts(self) -> None:
        for name in ENV:
            with pytest.raises(NotSet, match=name):
                interpolate(raw(), {**ENV, name: ""})

    def test_the_example_environment_names_every_variable(self) -> None:
        text = (ROOT / ".env.example").read_text()
        named = {match[2]: not match[1] for match in re.finditer(r"^(#?)([A-Z_]+)=", text, re.MULTILINE)}
        assert set(variables()) <= set(named)
        assert all(named[name] for name, required in variables().items() if required)

    def test_the_example_providers_are_usable_and_their_key_is_in_the_example_environment(self) -> None:
        providers = load_providers((ROOT / "examples/providers.toml").read_text(), source="providers.toml")
        for provider in providers.providers.values():
            assert provider.api_key_env
            assert f"\n{provider.api_key_env}=" in (ROOT / ".env.example").read_text()


@dataclass(frozen=True)
class Up:
    """Everything of docker-compose.yml, running; each method is something that must hold."""

    deployment: Deployment
    api: Api
    redis: redis.Redis

    def a_completion_streams_through_and_is_in_postgresql(self) -> None:
        whole = self.api.seed("hello")
        assert whole.text == ordered()
        assert whole.last.event == "done"
        asked = self.api.provider_requests("hello")
        assert [request.headers["authorization"] for request in asked] == ["Bearer the-providers-key"]

        def entered() -> list[Any]:
            return self.deployment.sql(
                "SELECT c.status, c.tenant, u.prompt_tokens FROM completions c"
                " JOIN usage u ON u.completion_id = c.id WHERE c.id = %s",
                whole.id,
            )

        wait_until(lambda: bool(entered()), what="usage record")
        assert entered() == [("completed", "acme", PROMPT_TOKENS)]

    def a_file_is_on_the_volume_that_gateway_and_workers_share(self) -> None:
        answer = self.api.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("input.jsonl", b"{}\n")}
        )
        assert answer.status_code == 200, answer.text
        environments = [
            self.deployment.environment(name) for name in ("gateway", "worker-bulk", "worker-interactive")
        ]
        (folder,) = {environment["TAILRACE_FILES"] for environment in environments}
        assert (Path(folder) / answer.json()["id"]).read_bytes() == b"{}\n"

    def valkey_wants_its_password_and_keeps_to_its_file(self) -> None:
        with socket.create_connection(("127.0.0.1", self.deployment.ports["valkey"]), timeout=10) as stranger:
            stranger.sendall(b"PING\r\n")
            assert stranger.recv(100).startswith(b"-NOAUTH")
        config: Any = self.redis.config_get("*")
        assert config["appendonly"] == "yes"
        assert config["maxmemory-policy"] == "noeviction"
        assert config["maxmemory"] == str(1024**3)
        assert config["stream-node-max-bytes"] == "512"
        assert list((self.deployment.folder / "valkey").glob("appendonlydir/*.aof"))

    def flower(
        self, path: str, *, user: str = "tailrace", password: str = ENV["FLOWER_PASSWORD"]
    ) -> httpx.Response:
        url = f"http://127.0.0.1:{self.deployment.ports['flower']}{path}"
        return httpx.get(url, auth=(user, password) if user else None, timeout=20, trust_env=False)

    def flower_wants_its_password(self) -> None:
        for path in ("/", "/workers", "/api/workers"):
            assert self.flower(path, user="").status_code == 401, path
            assert self.flower(path, password="no").status_code == 401, path
        assert self.flower("/").status_code == 200

    def flower_shows_workers_tasks_and_queues(self) -> None:
        """Its remote control finds the workers behind kombu's key prefix, all of its threads at once."""
        completion = self.api.background("for flower")

        def workers() -> set[str]:
            return {name.partition("@")[0] for name in self.flower("/api/workers?refresh=1").json()}

        wait_until(lambda: workers() == {"interactive", "bulk"}, what="both workers in Flower")

        def task() -> Any:
            answer = self.flower(f"/api/task/info/{completion}")
            return answer.json() if answer.status_code == 200 else {}

        wait_until(lambda: task().get("state") == "SUCCESS", what="the task in Flower")
        assert task()["name"] == GENERATE
        page = self.flower("/workers").text
        assert "interactive@" in page
        assert "bulk@" in page

    def flower_counts_the_messages_that_wait(self) -> None:
        environment = self.deployment.environment("worker-bulk")
        app: Any = Celery("test", set_as_current=False)
        app.conf.update(celery_config(Settings(redis_url=environment["TAILRACE_REDIS_URL"])))

        def waiting() -> tuple[int, int]:
            queues = self.flower("/api/queues/length").json()["active_queues"]
            shown = sum(queue["messages"] for queue in queues if queue["name"] == "bulk")
            return shown, int(self.redis.llen("tailrace:{p0}:broker:bulk"))

        def counted() -> bool:
            shown, there = waiting()
            return shown == there >= 3  # the first may have gone into the stopped worker's socket

        with self.deployment.paused("worker-bulk"), app:
            for _ in range(4):
                app.send_task(HOUSEKEEPING, queue="bulk")
            wait_until(counted, what="messages in Flower")
            assert "bulk" in self.flower("/broker").text
        wait_until(lambda: waiting() == (0, 0), what="empty queue")

    def every_key_is_in_the_key_space(self) -> None:
        """Those of Celery's broker too. Each has its owner (docs/architecture.md). Valkey refuses any other."""
        valkey: Any = self.redis
        with pytest.raises(NoPermissionError):
            valkey.get("foreign")
        names: list[str] = [*valkey.scan_iter()]
        assert any(":broker:" in name for name in names)
        assert [name for name in names if not re.match(r"tailrace:\{p\d+\}:", name)] == []
        assert leaks(valkey, settled=True) == []
        assert not [entry for entry in valkey.acl_log() if entry["object"] != "foreign"]

    def no_process_tells_of_trouble(self) -> None:
        for name, running in self.deployment.running.items():
            assert not re.search("Traceback|ERROR|CRITICAL", running.told()), f"{name}:\n{running.told()}"

    def all_stop_within_their_grace_while_a_stream_is_open(self) -> None:
        with self.api.events(asking("for long", fake={"stall_after": 3})) as stream:
            assert len(stream.next(3)) == 3
            took = self.deployment.stop()
            last = stream.rest()[-1]
            assert last.event == "error"
            assert "x-last-chunk-index: 2" in last.data or "x-last-chunk-index: 3" in last.data
        assert set(took) == OURS - {"migrate"} | {"valkey"}
        codes = {name: running.process.returncode for name, running in self.deployment.running.items()}
        assert set(codes.values()) <= {0, -signal.SIGTERM}, codes  # uvicorn ends by the signal that it got
        assert self.deployment.left() == []


@pytest.mark.timeout(240)
def test_the_processes_work_together_as_the_file_describes_them(tmp_path: Path, backend: Backend) -> None:
    """Started by its conditions, found healthy by its checks, used, and stopped."""
    providers = write_providers(
        tmp_path / "providers.toml", {"fake": {"base_url": backend.url, "api_key_env": "FAKE_API_KEY"}}
    )
    env = {**ENV, "PROVIDERS_FILE": str(providers), "FAKE_API_KEY": "the-providers-key"}
    with Deployment(tmp_path, env) as deployment:
        deployment.up()
        made = deployment.run("gateway", "tailrace", "keys", "create", "first", "--tenant", "acme", "--json")
        assert made.returncode == 0, made.stderr
        url, key = f"http://127.0.0.1:{deployment.ports['gateway']}", json.loads(made.stdout)["key"]
        valkey = redis.Redis(
            port=deployment.ports["valkey"], password=ENV["VALKEY_PASSWORD"], decode_responses=True
        )
        with valkey, Api(url, key, tenant="acme", backend=backend) as api:
            up = Up(deployment, api, valkey)
            up.a_completion_streams_through_and_is_in_postgresql()
            up.a_file_is_on_the_volume_that_gateway_and_workers_share()
            up.valkey_wants_its_password_and_keeps_to_its_file()
            up.flower_wants_its_password()
            up.flower_shows_workers_tasks_and_queues()
            up.flower_counts_the_messages_that_wait()
            up.every_key_is_in_the_key_space()
            up.no_process_tells_of_trouble()
            up.all_stop_within_their_grace_while_a_stream_is_open()
