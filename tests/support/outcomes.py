"""A pytest plugin for CI: which tests failed, as a file, so that a runner can try them again alone.

``-p tests.support.outcomes --outcomes=FILE`` writes it; ``--told=FILE`` shows a file's lines above pytest's last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

PHASES = ("setup", "call", "teardown")


class SharedFault(AssertionError):
    """What many tests share is left as it must not be. The test that is told is merely the last: alone, it passes."""


class Outcomes:
    def __init__(self, file: Path) -> None:
        self._file = file
        #: Node id → the phases in which it failed.
        self.failed: dict[str, list[str]] = {}
        #: What no other try of a test answers.
        self.final: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        if report.when not in PHASES:
            self.final.append(f"{report.nodeid}: its process died")
        elif SharedFault.__name__ in report.longreprtext:
            self.final.append(f"{report.nodeid}: the last one to use what is not as it must be")
        else:
            self.failed.setdefault(report.nodeid, []).append(report.when)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.final.append(f"{report.nodeid}: not collected")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        told = {"exit": int(exitstatus), "failed": self.failed, "final": self.final}
        self._file.write_text(json.dumps(told))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("outcomes")
    group.addoption("--outcomes", type=Path, help="write which tests failed to this file, as JSON")
    group.addoption("--told", type=Path, help="show the lines of this file at the end")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--outcomes")
    if file and not hasattr(config, "workerinput"):  # xdist's workers tell their controller
        config.pluginmanager.register(Outcomes(file))


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    file: Path | None = config.getoption("--told")
    if file and file.exists() and (lines := file.read_text().splitlines()):
        terminalreporter.section("tried again so far, because it had failed")
        for line in lines:
            terminalreporter.line(line)
