"""``tailrace eval list``, ``show``, ``compare`` and ``rescore``: of runs that are there, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.evaluating import Evaluation


@pytest.fixture
def offline(evaluation: Evaluation) -> Evaluation:
    """The same folder with no server in reach."""
    return Evaluation(
        evaluation.folder, evaluation.stack, {"URL": "http://127.0.0.1:9", "API_KEY": "none"}, evaluation.mark
    )


def saying(*texts: str) -> dict[str, Any]:
    """Parameters with which the fake model says this."""
    return {"fake": {"text": " ".join(texts)}}


def test_list_has_the_newest_first(evaluation: Evaluation, offline: Evaluation) -> None:
    assert "there are no runs in runs" in offline.done("list")
    evaluation.suite(tags=["nightly"])
    evaluation.done("run", "suite.yaml")
    evaluation.suite(name="other.yaml", models=["fake-b"])
    evaluation.done("run", "other.yaml")
    told = [json.loads(line) for line in offline.done("list", "--json").splitlines()]
    assert [run["scores"] for run in told] == [{"fake-b": {"includes": 0.5}}, {"fake": {"includes": 0.5}}]
    assert [run["tags"] for run in told] == [[], ["nightly"]]
    table = offline.done("list").splitlines()
    assert len(table) == 3
    assert "fake-b 0.500" in table[1]
    assert len(offline.done("list", "--tag", "nightly").splitlines()) == 2


def test_show_tells_what_the_run_told(evaluation: Evaluation, offline: Evaluation) -> None:
    evaluation.suite()
    ran = evaluation.done("run", "suite.yaml")
    shown = offline.done("show", "latest")
    assert shown
    assert shown in ran
    assert offline.done("show", evaluation.runs[0].name) == shown
    assert offline.done("show", "suite-") == shown


@pytest.mark.parametrize("command", ["show", "resume", "rescore"])
def test_a_run_that_is_none(offline: Evaluation, command: str) -> None:
    ended = offline(command, "nothing")
    assert ended.returncode == 1
    assert "there is no run 'nothing' in runs" in ended.stderr


def test_damaged_folders_are_told_of(evaluation: Evaluation, offline: Evaluation) -> None:
    """One is passed over in lists, and named where it is asked for."""
    evaluation.suite()
    evaluation.done("run", "suite.yaml")
    broken = evaluation.folder / "runs" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    assert len(offline.done("list", "--json").splitlines()) == 1
    ended = offline("show", "broken")
    assert ended.returncode == 1
    assert "manifest.json is not the manifest of a run" in ended.stderr


def test_compare_has_regressions_first(evaluation: Evaluation, offline: Evaluation) -> None:
    """The same items in both: what got worse, then what got better."""
    evaluation.suite(items=6, params=saying("tok1"))
    evaluation.done("run", "suite.yaml")
    evaluation.suite(items=5, params=saying("nothing", "at", "all"))
    evaluation.done("run", "suite.yaml")
    a, b = (run.name for run in evaluation.runs)
    told = offline.json("compare", a, b)
    (arm,) = told["arms"]
    pair = arm["figures"]
    assert (pair["wins"], pair["losses"], pair["ties"]) == (2, 3, 0)
    assert pair["difference"]["mean"] == pytest.approx(-0.2)
    assert [change["item"] for change in arm["regressions"]] == ["i0", "i2", "i4"]
    assert [change["item"] for change in arm["improvements"]] == ["i1", "i3"]
    shown = offline.done("compare", a, b)
    assert shown.index("i0") < shown.index("i1")


def test_compare_needs_a_scorer_of_both(evaluation: Evaluation, offline: Evaluation) -> None:
    evaluation.suite()
    evaluation.done("run", "suite.yaml")
    evaluation.suite(scorers=["f1"])
    evaluation.done("run", "suite.yaml")
    a, b = (run.name for run in evaluation.runs)
    assert "no scorer in common" in offline("compare", a, b).stderr
    assert "not both runs have 'exact'" in offline("compare", a, b, "--scorer", "exact").stderr
    offline.done("rescore", a, "--scorer", "f1")
    assert offline.json("compare", a, b)["scorer"] == "f1"


def test_rescore_asks_no_model(evaluation: Evaluation, offline: Evaluation) -> None:
    """Scorers are added or replaced; those that were there stay, unless it is told otherwise."""
    evaluation.suite()
    evaluation.done("run", "suite.yaml")
    asked = len(evaluation.asked())
    offline.done("rescore", "latest", "--scorer", "{type: regex, pattern: 'tok[12]', name: both}")
    scorers = evaluation.figures()["arms"][0]["scorers"]
    assert {name: scorer["score"]["mean"] for name, scorer in scorers.items()} == {
        "includes": 0.5,
        "both": 1.0,
    }
    offline.done("rescore", "latest", "--only", "--scorer", "{type: regex, pattern: 'never', name: both}")
    scorers = evaluation.figures()["arms"][0]["scorers"]
    assert {name: scorer["score"]["mean"] for name, scorer in scorers.items()} == {"both": 0.0}
    assert len(evaluation.asked()) == asked
    assert set(evaluation.samples()[0]["scores"]) == {"both"}


def test_rescore_takes_a_function_as_it_is_now(evaluation: Evaluation, offline: Evaluation) -> None:
    module = evaluation.folder / "mine.py"
    module.write_text("def f(answer, target, item):\n    return 0\n")
    evaluation.suite(scorers=[{"type": "function", "function": "mine:f"}])
    evaluation.done("run", "suite.yaml")
    module.write_text("def f(answer, target, item):\n    return 1\n")
    offline.done("rescore", "latest")
    assert evaluation.figures()["arms"][0]["scorers"]["function"]["score"]["mean"] == 1


def test_rescore_keeps_verdicts_of_judges_and_asks_for_none(
    evaluation: Evaluation, offline: Evaluation
) -> None:
    judge = {"type": "judge", "model": "fake-b", "params": {"fake": {"text": "GRADE: C"}}}
    evaluation.suite(scorers=[judge])
    evaluation.done("run", "suite.yaml")
    offline.done("rescore", "latest", "--scorer", "includes")
    scorers = evaluation.figures()["arms"][0]["scorers"]
    assert {name: scorer["score"]["mean"] for name, scorer in scorers.items()} == {
        "judge": 1.0,
        "includes": 0.5,
    }
    ended = offline("rescore", "latest", "--scorer", "{type: judge, model: other, name: second}")
    assert ended.returncode == 1
    assert "rescoring asks none" in ended.stderr


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        ("exakt", "exact"),
        ("{type: regex}", "pattern"),
        ("{type: numeric, tolerance: -1}", "tolerance"),
        ("[", "--scorer"),
        ("numeric", "i0"),
    ],
)
def test_rescore_with_what_can_not_score(
    evaluation: Evaluation, offline: Evaluation, scorer: str, told: str
) -> None:
    """Nothing of the run changes then."""
    evaluation.suite()
    evaluation.done("run", "suite.yaml")
    before = _files(evaluation.runs[0])
    ended = offline("rescore", "latest", "--scorer", scorer)
    assert ended.returncode == 1
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert _files(evaluation.runs[0]) == before


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
