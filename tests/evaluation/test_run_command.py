"""``tailrace eval run`` and ``resume`` over the whole pipeline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.evaluating import Evaluation
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

FILES = {
    "suite.yaml", "manifest.json", "items.jsonl", "answers", "judged", "samples.jsonl", "results.parquet",
    "summary.json", "report.html", ".lock",
}  # fmt: skip
JUDGED = {"type": "judge", "model": "fake-b", "rubric": "JUDGE {{ input }} / {{ answer }}. End with GRADE: x"}


def grading(*texts: str) -> dict[str, Any]:
    """A judge that says these texts, in turn for each of its requests."""
    return JUDGED | {"params": {"fake": {"text": texts[0]}}}


def test_models_by_items_by_samples(evaluation: Evaluation) -> None:
    """Every cell is asked once, scored, and in every file that a run leaves."""
    evaluation.suite(
        models=["fake", {"model": "fake-b", "name": "other"}], samples=2, scorers=["includes", "f1"]
    )
    told = evaluation.done("run", "suite.yaml")
    assert {path.name for path in evaluation.runs[-1].iterdir()} == FILES
    calls = Counter((call.body["model"], call.prompt) for call in evaluation.asked())
    assert calls == {(model, f"{evaluation.mark} {n}"): 2 for model in ("fake", "fake-b") for n in range(4)}
    samples = evaluation.samples()
    assert [(s["arm"], s["item"], s["sample"]) for s in samples] == [
        (model, f"i{n}", sample) for model in ("fake", "other") for n in range(4) for sample in range(2)
    ]
    assert {s["text"] for s in samples} == {" tok0 tok1 tok2"}
    assert evaluation.means(arm=0)["includes"] == evaluation.means(arm=1)["includes"] == 0.5
    assert {arm["cache"]["miss"] for arm in evaluation.figures()["arms"]} == {8}
    assert "includes" in told
    assert "report.html" in told
    assert evaluation.manifest()["status"] == "completed"


def test_each_sample_is_asked_apart_and_the_cache_has_each(evaluation: Evaluation) -> None:
    """At temperature 1 too: a fresh folder is answered by the cache of the server, sample by sample."""
    evaluation.suite(samples=3, params={"temperature": 1, "fake": {"sampled": True}})
    evaluation.done("run", "suite.yaml")
    texts = [s["text"] for s in evaluation.samples()]
    evaluation.done("run", "suite.yaml", "--runs", "elsewhere")
    assert len(evaluation.asked()) == 12
    again = [
        json.loads(line)
        for path in (evaluation.folder / "elsewhere").glob("*/samples.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert [s["text"] for s in again] == texts
    assert {s["cache"] for s in again} == {"hit"}


def test_a_changed_model_is_asked_alone(evaluation: Evaluation) -> None:
    """What an earlier run has of the others is taken from it, also what no cache keeps, and costs nothing."""
    params = {"fake": {"chunks": 3, "finish": "length"}}
    evaluation.suite(models=["priced:fake", "fake"], params=params)
    evaluation.done("run", "suite.yaml")
    evaluation.suite(models=["priced:fake", "fake-b"], params=params)
    told = evaluation.done("run", "suite.yaml")
    assert Counter(call.body["model"] for call in evaluation.asked()) == {"fake": 8, "fake-b": 4}
    assert "4 answers to the same requests taken from" in told
    first, second = evaluation.figures(0)["arms"][0], evaluation.figures(1)["arms"][0]
    assert first["answer_cost_nano"] == second["answer_cost_nano"] == first["cost_nano"] > 0
    assert second["cost_nano"] == 0
    assert evaluation.outcomes() == {"truncated": 4}


def test_fresh_asks_anew(evaluation: Evaluation) -> None:
    evaluation.suite()
    evaluation.done("run", "suite.yaml")
    evaluation.done("run", "suite.yaml", "--fresh")
    assert len(evaluation.asked()) == 8
    evaluation.done("run", "suite.yaml")
    assert len(evaluation.asked()) == 8


def test_overrides(evaluation: Evaluation) -> None:
    evaluation.suite(models=[{"model": "fake-b", "params": {"stop": ["x"]}}])
    evaluation.done(
        "run", "suite.yaml", "--model", "fake-b", "--samples", "2", "--limit", "1", "--tag", "mine"
    )
    (first, second) = evaluation.asked()
    assert first.body["stop"] == second.body["stop"] == ["x"]
    assert evaluation.json("list")["tags"] == ["mine"]


def test_failed_rows_are_told_and_asked_again_by_resume(evaluation: Evaluation) -> None:
    """Errors are counted apart from wrong answers; resume sends nothing but them."""
    evaluation.suite(params={"fake": {"status": 500}}, max_error_rate=1)
    evaluation.done("run", "suite.yaml", code=3)
    assert evaluation.outcomes() == {"error": 4}
    assert evaluation.means() == {"includes": None}
    assert evaluation.samples()[0]["error_code"] == "ordered"
    evaluation.done("resume", "latest", code=3)
    assert len(evaluation.asked()) == 8


def test_too_many_errors_fail_the_run(evaluation: Evaluation) -> None:
    evaluation.suite(params={"fake": {"status": 500}}, max_error_rate=0.5)
    assert "max_error_rate" in evaluation.done("run", "suite.yaml", code=1)


def test_a_budget_stops_it_and_a_larger_one_goes_on(evaluation: Evaluation) -> None:
    """Nothing more is asked once it is spent; what was answered is scored; resume asks for the rest alone."""
    evaluation.suite(
        items=40,
        models=["priced:fake"],
        params={"fake": {"chunks": 3, "interval_ms": 200}},
        max_concurrency=2,
        budget=0.00001,
    )
    told = evaluation.done("run", "suite.yaml", code=3)
    assert "the budget of $0.00001 is spent" in told
    manifest = evaluation.manifest()
    assert manifest["status"] == "stopped"
    asked = len(evaluation.asked())
    assert 0 < asked < 40
    spent = sum(batch["cost_nano"] for batch in manifest["spent"])
    assert evaluation.figures()["spent_nano"] == spent
    assert evaluation.json("resume", "latest", code=3)["status"] == "stopped"
    assert evaluation.manifest()["spent"] == manifest["spent"], "a budget that is spent asks nothing"
    outcomes = evaluation.outcomes()
    assert outcomes["answered"] + outcomes["missing"] == 40
    evaluation.done("resume", "latest", "--budget", "10")
    assert len(evaluation.asked()) - asked <= outcomes["missing"]
    assert evaluation.outcomes() == {"answered": 40}
    assert evaluation.manifest()["status"] == "completed"


def test_a_budget_needs_prices(evaluation: Evaluation) -> None:
    evaluation.suite(budget=1)
    ended = evaluation("run", "suite.yaml")
    assert ended.returncode == 1
    assert "budget: nobody knows what fake costs" in ended.stderr
    assert not evaluation.asked()
    assert not evaluation.runs


def test_what_the_server_refuses_is_told_before_anything_is_asked(evaluation: Evaluation) -> None:
    evaluation.suite(models=["fake", "listed:gone"])
    ended = evaluation("run", "suite.yaml")
    assert ended.returncode == 1
    assert "listed:gone" in ended.stderr
    assert not evaluation.asked()
    assert not evaluation.runs, "nothing stays of a run that could not begin"


def test_a_judge_grades_and_is_paid(evaluation: Evaluation) -> None:
    """Its completions are batches like the others: in the books, in the figures, and not asked twice."""
    evaluation.suite(
        models=["priced:fake"],
        scorers=["includes", grading("Well said.\nGRADE: P") | {"model": "priced:fake-b"}],
    )
    evaluation.done("run", "suite.yaml")
    figures = evaluation.figures()
    assert evaluation.means()["judge"] == 0.5
    (judge,) = figures["judges"]
    assert (judge["graded"], judge["failed"]) == (4, 0)
    assert judge["cost_nano"] > 0
    assert {s["scores"]["judge"]["explanation"] for s in evaluation.samples()} == {"Well said."}
    asked = judge_calls(evaluation)
    assert len(asked) == 4
    assert "tok1" in asked[0]
    evaluation.done("resume", "latest")
    evaluation.done("run", "suite.yaml")
    assert len(judge_calls(evaluation)) == 4
    costs = evaluation.manifest(0)["spent"]
    assert sum(batch["cost_nano"] for batch in costs) == figures["arms"][0]["cost_nano"] + judge["cost_nano"]


def judge_calls(evaluation: Evaluation) -> list[str]:
    return [
        call.prompt
        for call in evaluation.stack.backend.completions
        if call.prompt.startswith(f"JUDGE {evaluation.mark}")
    ]


def test_a_judge_that_says_no_grade_is_no_zero(evaluation: Evaluation) -> None:
    evaluation.suite(scorers=[grading("I like it.")])
    evaluation.done("run", "suite.yaml")
    scorer = evaluation.figures()["arms"][0]["scorers"]["judge"]
    assert scorer["score"] is None
    assert scorer["verdicts"]["unscored"] == 4


def test_a_function_of_the_users_own(evaluation: Evaluation) -> None:
    (evaluation.folder / "mine.py").write_text(
        "def half(answer, target, item):\n    return 0.5 if item['kind'] == 'k0' else len(answer) > 3\n"
    )
    evaluation.suite(scorers=[{"type": "function", "function": "mine:half"}])
    evaluation.done("run", "suite.yaml")
    assert evaluation.means() == {"function": 0.75}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"scorers": [{"type": "function", "function": "nowhere:f"}]}, "nowhere"),
        ({"scorers": [{"type": "regex", "pattern": "("}]}, "pattern"),
        ({"prompts": ["{{ nothing }}"]}, "nothing"),
        ({"scorers": ["numeric"]}, "i0"),
        ({"sampels": 2}, "sampels"),
        ({"dataset": "gone.jsonl"}, "gone.jsonl"),
    ],
)
def test_what_can_not_work_is_told_before_there_is_a_run(
    evaluation: Evaluation, changed: dict[str, Any], told: str
) -> None:
    evaluation.suite(**changed)
    ended = evaluation("run", "suite.yaml")
    assert ended.returncode == 1
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not evaluation.runs


def test_all_that_is_wrong_with_a_suite_has_a_line_each(evaluation: Evaluation) -> None:
    evaluation.suite(sampels=2, samples=0)
    ended = evaluation("run", "suite.yaml")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 2
    assert all(line.startswith("tailrace: suite.yaml:1: samp") for line in ended.stderr.splitlines())


def interrupted(evaluation: Evaluation, process: subprocess.Popen[str], number: int) -> str:
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_goes_on_and_nothing_is_asked_twice(evaluation: Evaluation, number: int) -> None:
    """Ctrl-C detaches and says how to go on; a kill says nothing, and loses nothing either."""
    evaluation.suite(items=30, params={"fake": {"chunks": 3, "interval_ms": 300}}, max_concurrency=10)
    process = evaluation.start("run", "suite.yaml")
    wait_until(lambda: len(evaluation.asked()) >= 5, 60, "requests")
    told = interrupted(evaluation, process, number)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert f"tailrace eval resume {evaluation.manifest()['id']}" in told
    assert evaluation.json("list")["status"] == "detached"
    evaluation.done("resume", "latest")
    assert len(evaluation.asked()) == 30
    assert evaluation.outcomes() == {"answered": 30}


def test_it_ends_at_once_also_while_a_function_hangs(evaluation: Evaluation) -> None:
    """And leaves no process of it; the answers that it was about to score are kept."""
    (evaluation.folder / "mine.py").write_text(
        "import os, pathlib, time\n\n"
        "def slow(answer, target, item):\n"
        "    pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    evaluation.suite(scorers=[{"type": "function", "function": "mine:slow", "timeout": 600}])
    process = evaluation.start("run", "suite.yaml")
    pid = evaluation.folder / "pid"
    wait_until(lambda: pid.exists() and bool(pid.read_text()), 60, "the function")
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=15)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    (evaluation.folder / "mine.py").write_text("def slow(answer, target, item):\n    return 1\n")
    evaluation.done("resume", "latest")
    assert evaluation.means() == {"function": 1.0}
    assert len(evaluation.asked()) == 4


def test_two_commands_do_not_work_on_one_run(evaluation: Evaluation) -> None:
    evaluation.suite(items=10, params={"fake": {"chunks": 2, "interval_ms": 2000}})
    process = evaluation.start("run", "suite.yaml")
    wait_until(lambda: len(evaluation.asked()) >= 1, 60, "requests")
    ended = evaluation("resume", "latest")
    assert ended.returncode == 1
    assert "another command works on" in ended.stderr
    assert evaluation.json("list")["status"] == "running"
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_dry_run_asks_nothing_and_leaves_nothing(evaluation: Evaluation) -> None:
    evaluation.suite(
        models=["priced:fake", "fake-b"],
        params={"max_tokens": 100},
        samples=2,
        prompts=[{"name": "short", "system": "Be brief.", "template": "{{ input }}?"}],
        scorers=["includes", JUDGED],
    )
    told = evaluation.done("run", "suite.yaml", "--dry-run")
    assert "[system] Be brief." in told
    assert f"[user] {evaluation.mark} 0?" in told
    assert f"[user] JUDGE {evaluation.mark} 0 / (the answer). End with GRADE: x" in told
    found = evaluation.json("run", "suite.yaml", "--dry-run")
    parts = {part["label"]: part for part in found["parts"]}
    priced = parts["priced:fake"]
    assert (priced["requests"], priced["earlier"], priced["cached"]) == (8, 0, 0)
    assert priced["completion_tokens"] == 800
    assert priced["cost_nano"] > 0
    assert parts["fake-b"]["cost_nano"] is None
    assert parts["judge judge"]["requests"] == 16
    assert not evaluation.asked()
    assert not evaluation.runs


def test_dry_run_knows_the_cache_and_earlier_runs(evaluation: Evaluation) -> None:
    evaluation.suite()
    evaluation.done("run", "suite.yaml")
    (part,) = evaluation.json("run", "suite.yaml", "--dry-run", "--samples", "2")["parts"]
    assert (part["requests"], part["earlier"]) == (8, 4)
    (part,) = evaluation.json("run", "suite.yaml", "--dry-run", "--runs", "elsewhere")["parts"]
    assert (part["requests"], part["earlier"], part["cached"]) == (4, 0, 4)


def test_prompts_with_equal_texts_have_answers_of_their_own_place(evaluation: Evaluation) -> None:
    """Two items that ask the same have the same answer, each under its own id."""
    with (evaluation.folder / "twins.jsonl").open("w") as file:
        for n in range(3):
            file.write(
                json.dumps({"id": f"t{n}", "input": f"{evaluation.mark} same", "target": "tok1"}) + "\n"
            )
    evaluation.suite(dataset="twins.jsonl")
    evaluation.done("run", "suite.yaml")
    assert [s["item"] for s in evaluation.samples()] == ["t0", "t1", "t2"]
    assert len(evaluation.asked()) == 1
    evaluation.done("resume", "latest")
    assert len(evaluation.asked()) == 1


def test_a_run_is_a_folder_that_can_be_moved(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.suite()
    evaluation.done("run", "suite.yaml")
    moved = tmp_path / "copy"
    evaluation.runs[0].rename(moved)
    assert evaluation.json("show", str(moved))["status"] == "completed"
    evaluation.done("rescore", str(moved), "--scorer", "f1")
    assert set(evaluation.json("show", str(moved))["figures"]["arms"][0]["scorers"]) == {"includes", "f1"}
