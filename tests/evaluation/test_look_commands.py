"""``tailrace eval list``, ``show``, ``compare`` and ``rescore``: of runs that are there, without a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.evaluating import Evaluation
from tests.support.stack import Stack

JUDGE = {"type": "judge", "model": "fake-b", "params": {"fake": {"text": "GRADE: C"}}}
FUNCTION = {"type": "function", "function": "mine:f"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, stack: Stack) -> Path:
    """A folder with two runs: ``a`` says "tok1" of six items, ``b`` something else of five."""
    folder = tmp_path_factory.mktemp("finished")
    with stack.api() as api:
        there = Evaluation(folder, stack, {"URL": stack.url, "API_KEY": api.api_key}, "finished")
        (folder / "mine.py").write_text("def f(answer, target, item):\n    return 0\n")
        scorers = ["includes", JUDGE, FUNCTION]
        there.suite(items=6, params={"fake": {"text": "tok1"}}, scorers=scorers, tags=["nightly"])
        (folder / "told").write_text(there.done("run", "suite.yaml"))
        there.runs[0].rename(folder / "runs" / "a")
        there.suite(items=5, params={"fake": {"text": "nothing at all"}}, models=["fake-b"])
        there.done("run", "suite.yaml")
        there.runs[1].rename(folder / "runs" / "b")
    return folder


@pytest.fixture
def offline(finished: Path, tmp_path: Path, stack: Stack) -> Evaluation:
    """A copy of that folder, with no server in reach."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    return Evaluation(folder, stack, {"URL": "http://127.0.0.1:9", "API_KEY": "none"}, "finished")


def asked(offline: Evaluation) -> int:
    return len(offline.stack.backend.completions)


def test_list_has_the_newest_first(offline: Evaluation) -> None:
    told = [json.loads(line) for line in offline.done("list", "--json").splitlines()]
    assert [run["tags"] for run in told] == [[], ["nightly"]]
    assert told[0]["scores"] == {"fake-b": {"includes": 0.4}}
    assert told[1]["scores"] == {"fake": {"includes": 0.5, "judge": 1.0, "function": 0.0}}
    table = offline.done("list").splitlines()
    assert len(table) == 3
    assert "fake-b 0.400" in table[1]
    assert len(offline.done("list", "--tag", "nightly").splitlines()) == 2
    assert "there are no runs in elsewhere" in offline.done("list", "--runs", "elsewhere")


def test_show_tells_what_the_run_told(finished: Path, offline: Evaluation) -> None:
    """By its folder, its id, and the beginning of one."""
    shown = offline.done("show", "runs/a")
    ran = (finished / "told").read_text()
    assert shown.splitlines()[:-1] == ran.splitlines()[-len(shown.splitlines()) : -1]
    id = offline.manifest(0)["id"]
    assert "nothing at all" not in shown
    assert offline.json("show", "latest")["id"] != id
    assert "several runs begin with" in offline("show", "suite-").stderr


@pytest.mark.parametrize("command", ["show", "resume", "rescore"])
def test_a_run_that_is_none(offline: Evaluation, command: str) -> None:
    ended = offline(command, "nothing")
    assert ended.returncode == 1
    assert "there is no run 'nothing' in runs" in ended.stderr


def test_damaged_folders_are_told_of(offline: Evaluation) -> None:
    """One is passed over in lists, and named where it is asked for."""
    broken = offline.folder / "runs" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    assert len(offline.done("list", "--json").splitlines()) == 2
    ended = offline("show", "broken")
    assert ended.returncode == 1
    assert "manifest.json is not the manifest of a run" in ended.stderr


def test_compare_has_regressions_first(offline: Evaluation) -> None:
    """The same items in both, what got worse first. Runs of one arm each are held against each other."""
    told = offline.json("compare", "a", "b")
    (arm,) = told["arms"]
    pair = arm["figures"]
    assert (pair["wins"], pair["losses"], pair["ties"]) == (2, 3, 0)
    assert pair["difference"]["mean"] == pytest.approx(-0.2)
    assert [change["item"] for change in arm["regressions"]] == ["i0", "i2", "i4"]
    assert [change["item"] for change in arm["improvements"]] == ["i1", "i3"]
    shown = offline.done("compare", "a", "b")
    assert shown.index("i0") < shown.index("i1")


def test_compare_needs_a_scorer_of_both(offline: Evaluation) -> None:
    assert "not both runs have 'judge'" in offline("compare", "a", "b", "--scorer", "judge").stderr
    offline.done("rescore", "b", "--only", "--scorer", "f1")
    assert "no scorer in common" in offline("compare", "a", "b").stderr
    offline.done("rescore", "a", "--scorer", "f1")
    assert offline.json("compare", "a", "b")["scorer"] == "f1"


def test_rescore_asks_no_model(offline: Evaluation) -> None:
    """Scorers are added or replaced, functions are taken as they are now, and what judges said is kept."""
    before = asked(offline)
    (offline.folder / "mine.py").write_text("def f(answer, target, item):\n    return 1\n")
    relocate(offline)
    offline.done("rescore", "a", "--scorer", "{type: regex, pattern: 'tok[12]', name: both}")
    assert offline.means(0) == {"includes": 0.5, "judge": 1.0, "function": 1.0, "both": 1.0}
    offline.done("rescore", "a", "--only", "--scorer", "{type: regex, pattern: 'never', name: both}")
    assert offline.means(0) == {"both": 0.0}
    assert set(offline.samples(0)[0]["scores"]) == {"both"}
    assert asked(offline) == before


def relocate(offline: Evaluation) -> None:
    """The suite is now where the copy is."""
    path = offline.folder / "runs" / "a" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"source": str(offline.folder / "suite.yaml")}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        ("exakt", "exact"),
        ("{type: regex}", "pattern"),
        ("[", "--scorer"),
        ("numeric", "i0"),
        ("{type: judge, model: other, name: second}", "rescoring asks none"),
    ],
)
def test_rescore_with_what_can_not_score(offline: Evaluation, scorer: str, told: str) -> None:
    """Nothing of the run changes then."""
    before = _files(offline.folder / "runs" / "a")
    ended = offline("rescore", "a", "--scorer", scorer)
    assert ended.returncode == 1
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert _files(offline.folder / "runs" / "a") == before


def _files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_list_has_runs_whose_summary_is_broken_too(offline: Evaluation) -> None:
    """By their folders' names, which tell copies apart."""
    shutil.copytree(offline.folder / "runs" / "a", offline.folder / "runs" / "copy-of-a")
    (offline.folder / "runs" / "a" / "summary.json").write_text('{"run"')
    listed = offline("list")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["b", "copy-of-a", "a"]
    assert "is not a run's summary" in listed.stderr
    found = [json.loads(line) for line in offline.done("list", "--json").splitlines()]
    assert [run["scores"] is None for run in found] == [False, False, True]


def test_compare_says_where_items_are_not_the_same(offline: Evaluation) -> None:
    """Another dataset may well have the same ids."""
    assert offline.json("compare", "a", "b")["changed_items"] == []
    path = offline.folder / "runs" / "b" / "items.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace("tok1", "tok2"), *lines[1:]]) + "\n")
    assert offline.json("compare", "a", "b")["changed_items"] == ["i0"]
    assert "1 item has the same id in both runs" in offline("compare", "a", "b").stderr


def test_runs_without_a_model_in_common_are_not_compared(offline: Evaluation) -> None:
    path = offline.folder / "runs" / "b" / "samples.jsonl"
    first, *others = path.read_text().splitlines()
    more = json.loads(first) | {"arm": "another"}
    path.write_text("\n".join([json.dumps(more), first, *others]) + "\n")
    assert "the runs have no model in common" in offline("compare", "a", "b").stderr
