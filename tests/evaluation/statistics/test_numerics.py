"""Figures need NumPy and SciPy; the modules that make them don't, until they are asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tailrace.errors import TailraceError
from tailrace.evaluation.summarise import summarise
from tests.evaluation.statistics.runs import sample


def test_what_makes_figures_is_imported_without_numpy_and_scipy() -> None:
    code = (
        "import sys, tailrace.evaluation.summarise, tailrace.evaluation.comparison\n"
        "assert not {'numpy', 'scipy'} & sys.modules.keys()"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_scipy_a_summary_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(TailraceError, match=r"pip install 'tailrace\[eval\]'"):
        summarise([sample("m", "1")], ["exact"])
