"""``tailrace doctor`` beside a real stack: all well, and each part in trouble."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas.ids import new_completion_id
from schemas.keys import Keys
from schemas.records import Accepted, encode
from stores.sql import writing
from tailrace import connection
from tests.support.ports import free_port
from tests.support.providers import write_providers
from tests.support.stack import Stack
from tests.support.valkey import wait_until
from tests.tailrace.command import complaint, run

pytestmark = pytest.mark.once

KEYS = Keys(0)
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def patient() -> Iterator[Stack]:
    """A stack of its own, whose Valkey is set up as it should be."""
    with Stack() as stack:
        stack.redis.config_set("appendonly", "yes")
        stack.redis.config_set("maxmemory", 512 * MEGABYTE)
        yield stack


@pytest.fixture
def settings(patient: Stack, tmp_path: Path) -> dict[str, str]:
    """For the doctor, with providers that are all there."""
    file = write_providers(tmp_path / "providers.toml", {"fake": {"base_url": patient.backend.url}})
    return {
        "REDIS_URL": patient.valkey.url,
        "DATABASE_URL": patient.database_url,
        "PROVIDERS": str(file),
        "HOME": str(tmp_path / "home"),
    }


def examine(settings: Mapping[str, str], code: int | None = None, *arguments: str) -> dict[str, Any]:
    """check → finding."""
    done = run("doctor", "--json", *arguments, settings=settings)
    answer = json.loads(done.stdout)
    assert done.stderr == ""
    assert done.returncode == (0 if answer["ok"] else 1)
    assert answer["ok"] == all(check["status"] != "fail" for check in answer["checks"])
    if code is not None:
        assert done.returncode == code, answer
    return {check["check"]: check for check in answer["checks"]}


def diagnosed(settings: Mapping[str, str], check: str, status: str, *words: str) -> None:
    """One check has this outcome, says these words, and what to do; the others are well."""
    found = examine(settings, 1 if status == "fail" else 0)
    assert found[check]["status"] == status, found
    assert found[check]["advice"]
    told = f"{found[check]['found']} {found[check]['advice']}"
    assert all(word in told for word in words), told
    assert {name for name, each in found.items() if each["status"] != "ok"} == {check}, found


def healthy(settings: Mapping[str, str]) -> None:
    found = examine(settings, 0)
    assert {each["status"] for each in found.values()} == {"ok"}, found


def test_all_well(patient: Stack, settings: dict[str, str]) -> None:
    """A line for each check, aligned, without colour or passwords where nobody reads it on a terminal."""
    wait_until(lambda: not patient.redis.xlen(KEYS.ledger), what="empty ledger")
    healthy(settings)
    done = run("doctor", settings=settings)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    checks = {re.split(r"  +", line)[1] for line in lines}
    assert checks == {
        *("redis", "persistence", "eviction", "memory", "ledger", "dead letters", "leaders"),
        *("queue interactive", "queue bulk", "recovery", "parked", "stuck"),
        *("database", "migration", "files", "broker", "workers interactive", "workers bulk", "provider fake"),
        "circuits",
    }
    assert all(line.startswith("ok    ") for line in lines)
    assert len({re.match(r"ok {4}\S.*? {2,}", line).end() for line in lines}) == 1  # type: ignore[union-attr]
    assert "\033" not in done.stdout
    assert re.search(r"Valkey \d+\.\d+\.\d+ at 127\.0\.0\.1", done.stdout)


@pytest.mark.parametrize(
    ("name", "bad", "check", "status"),
    [
        ("appendonly", "no", "persistence", "fail"),
        ("maxmemory-policy", "allkeys-lru", "eviction", "fail"),
        ("maxmemory", "0", "memory", "warn"),
    ],
)
def test_settings_of_redis(
    patient: Stack, settings: dict[str, str], name: str, bad: str, check: str, status: str
) -> None:
    """What would lose work, and what would stop it."""
    redis = patient.redis
    good = redis.config_get(name)[name]
    assert good is not None
    redis.config_set(name, bad)
    try:
        diagnosed(settings, check, status, name)
    finally:
        redis.config_set(name, good)


@pytest.mark.parametrize(("share", "status"), [(0.7, "warn"), (0.9, "fail")])
def test_memory_that_runs_out(patient: Stack, settings: dict[str, str], share: float, status: str) -> None:
    redis = patient.redis
    used = int(redis.info("memory")["used_memory"])
    redis.config_set("maxmemory", used + 64 * MEGABYTE)
    redis.setrange("ballast", int((used + 64 * MEGABYTE) * share) - used, "x")
    try:
        diagnosed(settings, "memory", status, "maxmemory")
    finally:
        redis.delete("ballast")
        redis.config_set("maxmemory", 512 * MEGABYTE)
        wait_until(lambda: patient.admission() == "open", what="open admission")


def test_work_that_is_stuck(patient: Stack, settings: dict[str, str]) -> None:
    """Each way of being forgotten is told, with the generation's id."""
    redis = patient.redis
    for part in patient.parts.values():  # no control thread may mend it meanwhile
        if "celery" in part.command:
            part.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
    ids = [new_completion_id() for _ in range(5)]
    now = int(time.time() * 1000)
    old = {"v": 1, "created_ms": now - 3_600_000, "attempt": 1, "next": 0, "base": 0}
    try:
        for id, state in zip(ids, ("leased", "leased", "queued", "queued", "parked"), strict=True):
            redis.hset(KEYS.gen(id), mapping={**old, "state": state})
        redis.zadd(KEYS.lease, {ids[1]: now - 60_000})
        mark = int(redis.get(KEYS.mark("interactive")) or 0)
        redis.set(KEYS.mark("interactive"), mark + 1)
        redis.zadd(KEYS.queued("interactive"), {ids[3]: mark + 1})
        found = examine(settings, 1)
        told = found["stuck"]["found"]
        for id in ids:
            assert id in told or "…" in told
        for why in ("no lease", "ran out", "queued nowhere", "message was lost", "parked without a time"):
            assert why in told
        assert found["queue interactive"]["status"] == "warn"
        assert "1 h" in found["queue interactive"]["found"] or "60 min" in found["queue interactive"]["found"]
        assert found["workers interactive"]["status"] == "fail"
        redis.zadd(KEYS.recovery, {ids[2]: now - 120_000})
        redis.zadd(KEYS.parked, {ids[4]: now - 120_000})
        found = examine(settings, 1)
        assert [found[check]["status"] for check in ("recovery", "parked")] == ["warn", "warn"]
        assert "queued nowhere" not in found["stuck"]["found"]
    finally:
        redis.delete(*map(KEYS.gen, ids))
        for key in (KEYS.lease, KEYS.queued("interactive"), KEYS.recovery, KEYS.parked):
            redis.zrem(key, *ids)
        for part in patient.parts.values():
            part.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
    wait_until(lambda: patient.redis.exists(KEYS.lock("ledger")) == 1, what="leader")
    wait_until(lambda: examine(settings)["workers bulk"]["status"] == "ok", what="workers that answer")
    healthy(settings)


def test_workers_that_are_missing(patient: Stack, settings: dict[str, str]) -> None:
    """None takes interactive work; it says how to start one."""
    patient.remove("interactive0")
    try:
        diagnosed(settings, "workers interactive", "fail", "celery", "--queues=interactive")
    finally:
        patient.add_worker("interactive0", "interactive", 8)
    healthy(settings)


@pytest.fixture
def refused(patient: Stack) -> Iterator[Callable[[], None]]:
    """The books refuse completions of `fake-b`, until it is called."""
    with writing(patient.engine) as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON completions WHEN NEW.model = 'fake-b' "
            "BEGIN SELECT RAISE(ABORT, 'not that one'); END"
        )

    def mend() -> None:
        with writing(patient.engine) as connection:
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS refuse")

    yield mend
    mend()
    patient.redis.delete(KEYS.dead)


def test_dead_letters_and_another_try(
    patient: Stack, settings: dict[str, str], refused: Callable[[], None]
) -> None:
    """A record that SQL refuses is reported until it is tried again with success."""
    with patient.api() as api:
        answer = api.plain("hi", model="fake-b")
        assert answer.status_code == 200, answer.text
        completion_id = answer.headers["x-completion-id"]
        wait_until(lambda: patient.redis.xlen(KEYS.dead) > 0, what="dead letter")
        wait_until(lambda: not patient.redis.xlen(KEYS.ledger), what="empty ledger")
        diagnosed(settings, "dead letters", "fail", "--retry-dead")
        refused()
        done = run("doctor", "--retry-dead", settings=settings)
        assert (done.returncode, done.stdout) == (0, "1 records are on the ledger again\n")
        row = patient.settled(completion_id)[0]
        assert row.usage is not None
        assert run("doctor", "--retry-dead", "--json", settings=settings).stdout == '{"retried": 0}\n'
    healthy(settings)


def test_books_that_are_behind(patient: Stack, settings: dict[str, str]) -> None:
    """More records than the setting allows are a failure; these stay, for they are of a later version."""
    record = Accepted(
        id="x", generation="x", tenant="t", key_id="k", model="m", provider="p", resolved_model="m",
        queue="interactive", fingerprint="f", v=99,
    )  # fmt: skip
    ids = [patient.redis.xadd(KEYS.ledger, {"r": encode(record)}) for _ in range(3)]
    try:
        assert examine({**settings, "LEDGER_LIMIT": "2"}, 1)["ledger"]["status"] == "fail"
        assert examine(settings, 0)["ledger"]["status"] == "ok"
    finally:
        patient.redis.xdel(KEYS.ledger, *ids)


def test_parts_that_are_not_there(settings: dict[str, str], tmp_path: Path) -> None:
    """Each says so by itself, without a traceback, and the others are looked at all the same."""
    nowhere = free_port()
    found = examine({**settings, "REDIS_URL": f"redis://127.0.0.1:{nowhere}/0"}, 1)
    assert found["redis"]["status"] == found["broker"]["status"] == "fail"
    assert found["database"]["status"] == found["provider fake"]["status"] == "ok"
    diagnosed({**settings, "DATABASE_URL": f"sqlite:///{tmp_path}/new.db"}, "migration", "fail", "migrate")
    url = f"postgresql://me:secret-word@127.0.0.1:{nowhere}/books"
    found = examine({**settings, "DATABASE_URL": url}, 1)
    assert found["database"]["status"] == "fail"
    assert "secret-word" not in str(found)
    diagnosed(
        {**settings, "PROVIDERS": str(tmp_path / "none.toml")}, "providers", "fail", "TAILRACE_PROVIDERS"
    )


def test_providers_in_trouble(patient: Stack, settings: dict[str, str], tmp_path: Path) -> None:
    """One that is gone is told beside one that is there."""
    gone = {"base_url": f"http://127.0.0.1:{free_port()}/v1"}
    file = write_providers(tmp_path / "some.toml", {"fake": {"base_url": patient.backend.url}, "gone": gone})
    diagnosed({**settings, "PROVIDERS": str(file)}, "provider gone", "fail", "can't be reached")


def test_a_stack_of_this_machine(settings: dict[str, str], tmp_path: Path, patient: Stack) -> None:
    """Without settings it is about the home folder's stack; one that does not run is the finding."""
    home = tmp_path / "home"
    assert "tailrace up" in complaint(run("doctor", settings={"HOME": str(home)}), 1)
    home.mkdir()
    there = connection.Connection(
        url=patient.url, api_key="k", redis_url=patient.valkey.url, database_url=patient.database_url
    )
    connection.write(home, there)
    own = {"HOME": str(home), "PROVIDERS": settings["PROVIDERS"]}
    diagnosed(own, "stack", "fail", "not running", "tailrace up")
    healthy(settings)  # what the environment names is another thing


def test_an_open_circuit(patient: Stack, settings: dict[str, str], tmp_path: Path) -> None:
    """Which provider workers don't ask, and why; a failure or two are nothing to tell of. These workers ask others."""
    url = patient.backend.url
    file = write_providers(tmp_path / "some.toml", {"fake": {"base_url": url}, "idle": {"base_url": url}})
    settings = {**settings, "PROVIDERS": str(file)}
    key = KEYS.circuit("idle")
    now = int(time.time() * 1000)
    try:
        patient.redis.hset(key, mapping={"failures": 1, "reason": "provider_unreachable: no route"})
        healthy(settings)
        patient.redis.hset(key, mapping={"failures": 7, "since": now - 300_000, "until": now + 60_000})
        diagnosed(settings, "circuit idle", "fail", "5 min", "7 calls", "no route")
    finally:
        patient.redis.delete(key)
