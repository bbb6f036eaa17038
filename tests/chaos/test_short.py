"""`make chaos` for a minute: the same faults, fewer of them, on fewer completions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT

pytestmark = pytest.mark.once

SECONDS, COMPLETIONS = 45, 60


@pytest.mark.timeout(600)
def test_what_was_accepted_is_finished_once_whatever_is_killed(tmp_path: Path) -> None:
    """In a process of its own, which looks for processes that it left."""
    result = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.chaos", "--json", str(result), "--settle", "150"]
    done = subprocess.run(
        [*command, "--seconds", str(SECONDS), "--completions", str(COMPLETIONS)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    report = json.loads(result.read_text())
    assert report["accepted"] == report["finished"] > COMPLETIONS
    assert min(report["fault_counts"].values()) >= 1
