"""How CI runs a suite: what fails is tried again alone, and told; what no such try answers fails at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT

pytestmark = pytest.mark.once

MAKEFILE = """
JOBS ?= 1
export PYTEST_DISABLE_PLUGIN_AUTOLOAD = 1
test:
\t@{python} -m pytest -p xdist.plugin -n $(JOBS) -p no:cacheprovider $(ARGS)
"""
#: A test that fails as often as is said, and notes each time that it runs.
BASIS = """
import os, pathlib
import pytest
from tests.support.outcomes import SharedFault

def fails(name, times):
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    with open(f"{name}.runs", "a") as file:
        file.write("alone\\n" if alone else "among others\\n")
    assert len(pathlib.Path(f"{name}.runs").read_text().splitlines()) > times, f"{name} fails"

def proves_soundness():
    fails("sound", 0)
"""


class Suite:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "Makefile").write_text(MAKEFILE.format(python=sys.executable))
        (folder / "pytest.ini").write_text("[pytest]\npython_functions = test_* proves_*\n")
        self.told = folder.parent / f"{folder.name}-told"
        self.told.touch()

    def run(self, tests: str, *arguments: str) -> tuple[int, str]:
        """Exit code and output."""
        (self.folder / "test_it.py").write_text(BASIS + tests)
        # What this pytest was told, and the make that may have started it, are none of theirs.
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "MAKE", "MFLAGS"))
        }
        done = subprocess.run(
            [sys.executable, str(ROOT / ".ci" / "suite.py"), "test", *arguments],
            cwd=self.folder,
            env={**ours, "PYTHONPATH": str(ROOT), "CI_TOLD": str(self.told)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def runs(self, name: str) -> list[str]:
        return (self.folder / f"{name}.runs").read_text().splitlines()

    def lines(self) -> list[str]:
        return self.told.read_text().splitlines()


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def test_what_passes_is_run_once(suite: Suite) -> None:
    code, output = suite.run("")
    assert code == 0
    assert "1 passed" in output.splitlines()[-1]
    assert suite.runs("sound") == ["among others"]
    assert suite.lines() == []


def test_a_test_that_fails_twice_is_tried_alone_and_told(suite: Suite) -> None:
    """The last line is pytest's, and above it stands what had to be tried again; nothing else runs anew."""
    tests = """
@pytest.mark.parametrize("word", ["a b/[c]::d"])
def test_shaky(word):
    fails("shaky", 2)
"""
    code, output = suite.run(tests, "VENV=.venv-3.12")
    assert code == 0
    assert "1 passed" in output.splitlines()[-1]
    assert output.count("shaky fails") >= 2
    assert suite.runs("shaky") == ["among others", "alone", "alone"]
    assert suite.runs("sound") == ["among others"]
    name = "test_it.py::test_shaky[a b/[c]::d]"
    told = [
        f"test VENV=.venv-3.12: {name} failed among the others",
        f"test VENV=.venv-3.12: {name} failed alone",
    ]
    assert suite.lines() == told
    end = output.rpartition("tried again so far")[2].splitlines()
    assert [line for line in end[1:-1] if line] == told


def test_a_test_that_fails_three_times_fails_the_run(suite: Suite) -> None:
    code, output = suite.run('def test_broken():\n    fails("broken", 99)\n')
    assert code == 1
    assert suite.runs("broken") == ["among others", "alone", "alone"]
    assert output.splitlines()[-1] == "== failed 3 times: test_it.py::test_broken"


def test_an_error_after_a_test_counts_as_its_failure(suite: Suite) -> None:
    """As where the check finds a key that it left."""
    tests = """
@pytest.fixture
def checked():
    yield
    fails("checked", 1)

def test_leaves_something(checked):
    pass
"""
    assert suite.run(tests)[0] == 0
    assert suite.runs("checked") == ["among others", "alone"]


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        pytest.param(
            '@pytest.mark.parametrize("n", range(11))\ndef test_bad(n):\n    fails(f"n{n}", 1)\n',
            "11 failed, more than 10",
            id="too many",
        ),
        pytest.param(
            "@pytest.fixture(scope='session', autouse=True)\ndef left():\n    yield\n"
            "    if not os.path.exists('seen'):\n        open('seen', 'w').close()\n"
            "        raise SharedFault('a process')\n",
            "the last one to use what is not as it must be",
            id="what all share",
        ),
        pytest.param('def test_dies():\n    if not os.path.exists("died"):\n        open("died", "w").close()\n'
            "        os._exit(3)\n", "its process died", id="a worker that dies"),
        pytest.param("import nothing_of_that_name\n", "not collected", id="collection"),
    ],
)  # fmt: skip
def test_what_no_try_of_one_test_answers_fails_at_once(suite: Suite, tests: str, why: str) -> None:
    code, output = suite.run(tests)
    assert code == 1
    assert why in output.splitlines()[-1]
    assert suite.lines() == []


def test_no_tests_are_a_failure(suite: Suite) -> None:
    code, output = suite.run("", "ARGS=-k nothing")
    assert code == 1
    assert "exit code is 5" in output.splitlines()[-1]


def test_a_run_that_is_broken_off_is_a_failure(suite: Suite) -> None:
    """Whatever pytest had seen by then."""
    code, output = suite.run("def test_interrupts():\n    raise KeyboardInterrupt\n", "JOBS=0")
    assert code == 1
    assert "not tried again" in output.splitlines()[-1]
