"""``tailrace eval run`` while workers, the gateway and the command itself are killed at random: everything adds up."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import func, select

from schemas.tables import completions, usage
from tests.support.backend import Received
from tests.support.kills import MARGIN, Killer, Restarted, by_prompt, times
from tests.support.stack import PRICES, Stack
from tests.support.valkey import wait_until
from tests.tailrace.command import command, environment

pytestmark = pytest.mark.once

#: Another one with `TAILRACE_TEST_SEED`.
SEED = int(os.environ.get("TAILRACE_TEST_SEED") or secrets.randbelow(1_000_000))
MODELS = ("priced:fake", "priced:fake-b", "priced:org/model-1")
ITEMS, SAMPLES, CHUNKS = 500, 2, 10
TOTAL = len(MODELS) * ITEMS * SAMPLES
#: What each model says: so many right ones.
SAID = " " + " ".join(f"tok{n}" for n in range(CHUNKS))
WORKERS = ("bulk", "bulk-too")
KILLS = ("worker",) * 4 + ("gateway",) * 2 + ("command",) * 3
SECONDS = 240.0


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack(interactive=0) as stack:
        stack.add_worker(WORKERS[1], "bulk", 4)
        yield stack


def write_suite(folder: Path) -> None:
    """Every third item has a target that is in what the model says."""
    with (folder / "items.jsonl").open("w") as file:
        for n in range(ITEMS):
            target = f"tok{n % CHUNKS}" if n % 3 == 0 else f"never{n}"
            file.write(json.dumps({"id": f"i{n}", "input": f"item {n}", "target": target}) + "\n")
    suite = {
        "name": "killed",
        "dataset": "items.jsonl",
        "models": [*MODELS],
        "params": {"temperature": 1, "fake": {"chunks": CHUNKS, "interval_ms": 30}},
        "samples": SAMPLES,
        "scorers": ["includes", "f1"],
        "max_concurrency": 75,
    }
    (folder / "suite.yaml").write_text(json.dumps(suite))


def samples_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_everything_adds_up_whoever_is_killed(tmp_path: Path, stack: Stack) -> None:
    """3 models × 500 items × 2 samples: each sample is answered once, asked again only where a kill hit it, in the
    books once, and what the run says it cost is what the books say, to the last nano-dollar."""
    print(f"TAILRACE_TEST_SEED={SEED}")
    random = Random(SEED)
    write_suite(tmp_path)
    tenant = stack.tenant()
    _, key = stack.key(tenant)
    line = command("eval", "run", "suite.yaml")
    resume = command("eval", "resume", "latest")
    run = Restarted(line, tmp_path, environment(URL=stack.url, API_KEY=key), next=resume)
    killer = Killer(stack, WORKERS, random, SECONDS)
    try:
        wait_until(lambda: any(tmp_path.glob("runs/*/manifest.json")), SECONDS, "run")
        killer.carry_out(random.sample(KILLS, len(KILLS)), run)
    finally:
        run.kill()

    # 1: no gateway was there; 3: a row failed, because three workers died with it, and the next command asked again.
    assert set(run.ends) <= {-signal.SIGKILL, 1, 3}, run.told
    assert "Traceback" not in run.told
    (folder,) = (tmp_path / "runs").iterdir()
    samples = samples_of(folder)
    assert len(samples) == TOTAL
    assert len({(s["model"], s["item"], s["sample"]) for s in samples}) == TOTAL
    assert {(s["outcome"], s["text"]) for s in samples} == {("answered", SAID)}, run.told
    right = -(-ITEMS // 3)
    summary = json.loads((folder / "summary.json").read_text())
    for arm in summary["figures"]["arms"]:
        includes = arm["scorers"]["includes"]
        assert includes["score"]["mean"] == right / ITEMS
        verdicts = {name: count for name, count in includes["verdicts"].items() if count}
        assert verdicts == {"right": right * SAMPLES, "wrong": (ITEMS - right) * SAMPLES}
        assert arm["samples"] == ITEMS * SAMPLES

    # Each was asked so often as there are samples, and again only where a kill explains it.
    for model in MODELS:
        name = model.removeprefix("priced:")
        calls = by_prompt(call for call in stack.backend.completions if call.body["model"] == name)
        assert set(calls) == {f"item {n}" for n in range(ITEMS)}
        assert min(map(len, calls.values())) >= SAMPLES
        more = {prompt: made for prompt, made in calls.items() if len(made) > SAMPLES}
        wrong = {prompt: made for prompt, made in more.items() if too_often(made, killer.kills)}
        assert not wrong, times(wrong, killer.kills)

    assert stack.balanced() == []
    with stack.engine.connect() as connection:
        mine = completions.c.tenant == tenant
        kept = connection.execute(select(completions.c.id, completions.c.status).where(mine)).all()
        cost = connection.scalar(select(func.sum(usage.c.cost_nano)).where(usage.c.tenant == tenant))
    answered = {row.id for row in kept if row.status == "completed"}
    assert {s["completion_id"] for s in samples} == answered
    assert len(answered) == TOTAL
    manifest = json.loads((folder / "manifest.json").read_text())
    spent = sum(batch["cost_nano"] for batch in manifest["spent"])
    assert spent == cost
    assert spent >= TOTAL * CHUNKS * PRICES["fake"]["output"] * 1000
    assert Counter(batch["job"] for batch in manifest["spent"]).keys() == {
        path.stem for path in (folder / "answers").iterdir()
    }


def too_often(calls: list[Received], kills: list[float]) -> bool:
    """Whether there are calls beyond one for each sample that no kill explains: it hit one in flight, or one whose end
    was not written down yet."""
    hit = [call for call in calls if any(_hit(call, kill) for kill in kills)]
    return len(calls) - len(hit) > SAMPLES


def _hit(call: Received, kill: float) -> bool:
    return call.at - MARGIN <= kill <= (kill if call.ended_at is None else call.ended_at + MARGIN)
