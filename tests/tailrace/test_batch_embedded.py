"""``tailrace batch run`` with nothing configured: a stack of its own, for as long as it takes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.backend import Backend
from tests.support.providers import write_providers
from tests.support.valkey import wait_until
from tests.tailrace.command import complaint, run, start

pytestmark = [pytest.mark.once, pytest.mark.timeout(300)]

SECONDS = 120.0
ROWS = 6


@pytest.fixture
def folder(tmp_path: Path, backend: Backend) -> Path:
    write_providers(tmp_path / "providers.toml", {"fake": {"base_url": backend.url, "models": ["fake"]}})
    rows = [{"id": f"e{n}", "prompt": f"embedded {n}"} for n in range(ROWS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_ctrl_c_stops_the_stack_and_the_same_command_goes_on(folder: Path, backend: Backend) -> None:
    """What was answered before is not asked again."""
    settings = {"HOME": str(folder / "home")}
    fake = 'fake={"chunks": 2, "interval_ms": 1000}'
    how = (
        "batch",
        "run",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--model",
        "fake",
        "--max-concurrency",
        "2",
        "--param",
        fake,
    )
    assert "tailrace up" in complaint(run(*how, "--detach", settings=settings, cwd=folder), 1)

    first = start(*how, settings=settings, cwd=folder)
    try:
        wait_until(lambda: ended(backend) >= 2, SECONDS, "two answers")
        family = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGINT)
        said, _ = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 130, said
    assert "the same command goes on with it" in said
    wait_until(lambda: not any(map(lives, family)), 60, "end of the stack")
    assert (folder / "out.jsonl.tailrace").exists()

    before = {
        received.body["messages"][0]["content"]
        for received in backend.completions
        if received.ended == "complete"
    }
    marker = len(backend.completions)
    done = run(*how, settings=settings, cwd=folder, timeout=240)
    assert done.returncode == 0, (done.stdout, done.stderr)
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"e{n}" for n in range(ROWS)]
    assert [line["input"] for line in lines] == [{"id": f"e{n}"} for n in range(ROWS)]
    later = {received.body["messages"][0]["content"] for received in backend.completions[marker:]}
    assert not before & later
    assert {path.name for path in folder.iterdir()} == {"home", "in.jsonl", "out.jsonl", "providers.toml"}


def ended(backend: Backend) -> int:
    return sum(received.ended == "complete" for received in backend.completions)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_invalid_rows_start_no_stack(folder: Path) -> None:
    (folder / "in.jsonl").write_text('{"prompt": ""}\n')
    done = run(
        "batch",
        "run",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--model",
        "fake",
        settings={"HOME": str(folder / "home")},
        cwd=folder,
    )
    assert done.returncode == 1
    assert "line 1: prompt: is empty" in done.stderr
    assert not (folder / "home").exists()


def test_a_dry_run_without_a_server_is_an_estimate_of_its_own(folder: Path, backend: Backend) -> None:
    prices = {"fake": {"input": 1.0, "output": 2.0}}
    write_providers(folder / "providers.toml", {"fake": {"base_url": backend.url, "prices": prices}})
    done = run(
        "batch", "run", "in.jsonl", "--model", "fake", "--param", "max_tokens=100", "--dry-run", "--json",
        settings={"HOME": str(folder / "home")}, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["rows"], told["pending"], told["cached"], told["completion_tokens"]) == (
        ROWS,
        ROWS,
        None,
        100 * ROWS,
    )
    assert int(told["cost"]) == (told["prompt_tokens"] * 1 + told["completion_tokens"] * 2) * 1000
    assert told["first"]["body"]["messages"] == [{"role": "user", "content": "embedded 0"}]
    assert not (folder / "home").exists()
