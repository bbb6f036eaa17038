"""A run that is killed between any two of its steps goes on as if it had not been.

A step is a request to the server, which may have been carried out or not, or a file that takes its place. Behind the
kill nothing more is sent or written, whatever the code would clean up. The server here remembers no Idempotency-Key
from one command to the next, as after a day, and answers nothing from a cache.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

import tailrace
from tailrace.cli.evaluate.run import begin
from tailrace.errors import TailraceError
from tailrace.evaluation import loading
from tailrace.evaluation.fanout import Work
from tailrace.evaluation.folder import Folder, Status
from tailrace.evaluation.rescoring import rescored
from tailrace.evaluation.runner import Run
from tests.support.batchserver import COST, BatchServer

SUITE: dict[str, Any] = {
    "name": "killed",
    "dataset": "items.jsonl",
    "models": ["a", "b"],
    "samples": 2,
    "scorers": ["includes", {"type": "judge", "model": "j", "rubric": "{{ input }} / {{ answer }} GRADE: x"}],
    "max_concurrency": 2,
}
ITEMS = 2
CELLS = 2 * ITEMS * 2


class Killed(BaseException):
    """Nobody gets to handle it."""


class Fate:
    """``step`` lets so many pass, and none behind."""

    def __init__(self) -> None:
        self.left: int | None = None

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed

    @property
    def has_struck(self) -> bool:
        return self.left is not None and self.left < 0


class Nobody:
    """Looks at a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, works: list[Work]) -> None: ...

    def batch(self, work: Work, now: dict[str, Any]) -> None: ...

    def scores(self, work: Work, means: Mapping[str, float]) -> None: ...

    def ended(self, work: Work) -> None: ...

    def told(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def fate(monkeypatch: pytest.MonkeyPatch) -> Fate:
    fate = Fate()
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        fate.step()
        there = real(self, target)
        fate.step()
        return there

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr("tailrace.batches.LOOK", 0)
    monkeypatch.setattr("tailrace.batches.LONGEST_LOOK", 0)
    return fate


@pytest.fixture
def server(fate: Fate) -> BatchServer:
    return BatchServer(fate.step)


def made(folder: Path, **changed: Any) -> Path:
    """A run that nothing has been asked for."""
    folder.mkdir(exist_ok=True)
    with (folder / "items.jsonl").open("w") as file:
        for n in range(ITEMS):
            file.write(json.dumps({"id": f"i{n}", "input": f"item {n}", "target": "right"}) + "\n")
    (folder / "suite.yaml").write_text(json.dumps(SUITE | changed))
    return begin(loading.load(folder / "suite.yaml"), folder / "runs", "http://here", fresh=False).path


def command(run: Path, server: BatchServer, **how: Any) -> tuple[Status, list[str]]:
    """What `run` and `resume` do, with one command's client; how it ends, and what it told."""
    folder, observer = Folder.open(run), Nobody()

    async def ask(run: Run) -> Status:
        async with tailrace.Client("http://here", "key", transport=server, retries=0) as client:
            return await run.ask(client, observer, **how)

    with folder.locked(), Run(folder) as work:
        return asyncio.run(ask(work)), observer.lines


def samples(run: Path) -> list[Any]:
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return [(row["arm"], row["item"], row["sample"], row["text"], row["scores"]) for row in rows]


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def adds_up(run: Path, server: BatchServer) -> None:
    """Everything was asked once and is paid for once."""
    assert set(server.asked.values()) == {1}
    assert server.asked.total() == CELLS * 2  # and its judge
    told = manifest(run)
    assert told["status"] == "completed"
    assert Counter(batch["batch"] for batch in told["spent"]) == Counter([*server.batches])
    assert sum(batch["cost_nano"] for batch in told["spent"]) == server.cost == CELLS * 2 * COST
    assert not any(job["key"] or job["batch"] for job in told["jobs"].values())
    assert json.loads((run / "summary.json").read_text())["run"]["status"] == "completed"
    assert not [path for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def killed(run: Path, server: BatchServer, fate: Fate, steps: int) -> bool:
    """A command that gets so far; whether it was killed there."""
    fate.left = steps
    with suppress(Killed):
        command(run, server)
    struck, fate.left = fate.has_struck, None
    server.keys.clear()
    return struck


def killed_while(run: Path, server: BatchServer, fate: Fate, status: str) -> None:
    """Killed when its first batch is so."""
    real = fate.step

    def step() -> None:
        if any(batch["status"] == status for batch in server.batches.values()):
            fate.left = 0
        real()

    server.step = step
    with pytest.raises(Killed):
        command(run, server)
    server.step, fate.left = real, None
    server.keys.clear()


@pytest.mark.once
@pytest.mark.parametrize("first", range(3))
def test_killed_at_each_step(
    tmp_path: Path, fate: Fate, server: BatchServer, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Each third of them, for so many processes."""

    def rendered(*_: object) -> list[bytes]:
        return [b"<html>"]

    monkeypatch.setattr("tailrace.evaluation.outputs.report.render", rendered)  # a third of the time
    undisturbed = made(tmp_path / "undisturbed")
    assert command(undisturbed, server)[0] == "completed"
    adds_up(undisturbed, server)
    steps = first
    while True:
        server = BatchServer(fate.step)
        run = made(tmp_path / str(steps))
        if not killed(run, server, fate, steps):
            break
        assert command(run, server)[0] == "completed"
        adds_up(run, server)
        assert samples(run) == samples(undisturbed)
        steps += 3
    assert steps > 60


@pytest.mark.parametrize("steps", [31, 43])
def test_killed_again_and_again(tmp_path: Path, fate: Fate, server: BatchServer, steps: int) -> None:
    """Each command gets a bit further."""
    run = made(tmp_path)
    commands = [killed(run, server, fate, steps) for _ in range(20)]
    assert commands.count(True) >= 2
    assert not commands[-1]
    adds_up(run, server)


def test_what_was_answered_is_kept_also_when_the_server_refuses_by_now(
    tmp_path: Path, fate: Fate, server: BatchServer
) -> None:
    """A model that is gone costs no answers that it gave before, nor those of others."""
    run = made(tmp_path, max_concurrency=1, scorers=["includes"])
    killed_while(run, server, fate, "in_progress")
    while [batch["status"] for batch in server.batches.values()] != ["completed"]:
        server._look(server.batches["batch_0"])
    server.unknown = {"a", "b"}
    with pytest.raises(TailraceError, match="There is no model 'b'"):
        command(run, server)
    assert manifest(run)["status"] == "failed"
    server.unknown = {"a"}
    assert command(run, server)[0] == "completed"
    assert set(server.asked.values()) == {1}


def test_rows_that_validation_refuses_are_named_and_what_to_do(
    tmp_path: Path, fate: Fate, server: BatchServer
) -> None:
    server.refused = [{"line": 2, "message": "It is too long."}]
    run = made(tmp_path, models=["a"])
    assert command(run, server)[0] == "failed"
    reason = manifest(run)["reason"]
    assert "i0/1: It is too long." in reason
    assert "Mend the suite or its items" in reason
    server.refused = []
    assert command(run, server)[0] == "completed"
    assert manifest(run)["reason"] is None


def test_a_batch_that_failed_meanwhile_is_no_failure_of_a_run_that_has_all_answers(
    tmp_path: Path, fate: Fate, server: BatchServer
) -> None:
    run = made(tmp_path, max_concurrency=1)
    killed_while(run, server, fate, "in_progress")
    server.batches["batch_0"] |= {
        "status": "failed",
        "errors": {"data": [{"message": "The budget is spent."}]},
    }
    assert command(run, server)[0] == "completed"
    assert set(server.asked.values()) == {1}


def test_a_batch_that_the_server_has_no_more_is_told_and_asked_again(
    tmp_path: Path, fate: Fate, server: BatchServer
) -> None:
    """What it has cost is unknown, and noted as that."""
    run = made(tmp_path, max_concurrency=1)
    killed_while(run, server, fate, "in_progress")
    server.batches.clear()
    status, lines = command(run, server)
    assert status == "completed"
    assert "the server knows batch_0 no more" in lines[0]
    assert manifest(run)["spent"][0] == {"job": "a", "batch": "batch_0", "cost_nano": None}


def test_a_file_that_is_gone_is_sent_again(tmp_path: Path, fate: Fate, server: BatchServer) -> None:
    run = made(tmp_path, max_concurrency=1)
    killed_while(run, server, fate, "validating")
    told = manifest(run)
    told["jobs"]["a"]["batch"] = None
    (run / "manifest.json").write_text(json.dumps(told))
    server.batches.clear()
    server.files.clear()
    assert command(run, server)[0] == "completed"
    adds_up(run, server)


def test_a_spent_budget_sends_nothing_more(tmp_path: Path, fate: Fate, server: BatchServer) -> None:
    """Neither at once nor by later commands; a larger one goes on, with what is missing."""
    run = made(tmp_path, max_concurrency=1)
    budget = COST / 10**9
    assert command(run, server, budget=budget)[0] == "stopped"
    asked = server.asked.copy()
    assert 0 < asked.total() < CELLS
    assert command(run, server, budget=budget)[0] == "stopped"
    assert server.asked == asked
    assert command(run, server, budget=1.0)[0] == "completed"
    assert set(server.asked.values()) == {1}
    assert sum(batch["cost_nano"] or 0 for batch in manifest(run)["spent"]) == server.cost


def test_a_budget_that_was_just_enough_was_enough(tmp_path: Path, fate: Fate, server: BatchServer) -> None:
    """For the answers; where a judge has still to be asked, the run is stopped, and says so."""
    suite = {"scorers": ["includes"]}
    assert command(made(tmp_path / "a", **suite), server, budget=CELLS * COST / 10**9)[0] == "completed"
    run = made(tmp_path / "b")
    assert command(run, server, budget=CELLS * COST / 10**9)[0] == "stopped"
    assert manifest(run)["reason"].endswith(f"{CELLS} answers were not judged")


def test_an_error_in_one_arm_leaves_the_others_to_the_next_command(
    tmp_path: Path, fate: Fate, server: BatchServer
) -> None:
    run = made(tmp_path)
    real = server.handle_async_request

    async def refusing(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/batches" and b'"b"' in await request.aread():
            return httpx.Response(403, content=b'{"error": {"message": "Not you."}}')
        return await real(request)

    server.handle_async_request = refusing
    with pytest.raises(TailraceError, match="Not you"):
        command(run, server)
    server.handle_async_request = real
    assert command(run, server)[0] == "completed"
    adds_up(run, server)


def test_estimates_leave_nothing_for_ever(tmp_path: Path, fate: Fate, server: BatchServer) -> None:
    """Not even where a kill comes between the upload and the removal."""
    run = made(tmp_path)
    assert killed(run, server, fate, 4)
    assert server.files
    assert server.expiring == {*server.files}


def test_rescoring_that_fails_changes_nothing(
    tmp_path: Path, fate: Fate, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last of its files can't be written."""
    run = made(tmp_path)
    command(run, server)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}

    def full(*_: object) -> Iterator[bytes]:
        yield b"<html>"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tailrace.evaluation.outputs.report.render", full)
    folder = Folder.open(run)
    folder.manifest.suite = rescored(folder, ["f1"], only=False)
    with Run(folder) as again, pytest.raises(TailraceError, match="No space left"):
        again.conclude(again=True)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert not (run / ".new").exists()


def test_runs_made_at_the_same_moment_have_folders_of_their_own(tmp_path: Path) -> None:
    """Several commands choose the same name, before one of them has made its folder."""
    there = Folder.open(made(tmp_path)).manifest
    others = [Folder.create(tmp_path / "runs", msgspec.structs.replace(there), "") for _ in range(3)]
    assert len({there.id, *(other.manifest.id for other in others)}) == 4
    assert all(other.path.name == other.manifest.id for other in others)
