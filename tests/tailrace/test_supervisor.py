"""Keeping processes alive and stopping them, with small processes that misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tailrace import backoff
from tailrace.embedded import supervisor as module
from tailrace.embedded.options import StackError
from tailrace.embedded.process import Guardian, Part
from tailrace.embedded.supervisor import Supervisor

SLEEP = "import time; print('awake', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
PARENT = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    + SLEEP
)


class Said(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    def delay(failures: int) -> float:
        return 0.01

    monkeypatch.setattr(backoff, "delay", delay)
    monkeypatch.setattr(module, "GLANCE", 0.01)


def part(folder: Path, name: str, code: str, *, last: bool = False, grace: float = 5.0) -> Part:
    """It is ready once it says that it is awake."""
    log = folder / f"{name}.log"

    async def ready() -> bool:
        return "awake" in log.read_text()

    return Part(name, [sys.executable, "-c", code], os.environ, folder, log, ready, last=last, grace=grace)


@asynccontextmanager
async def supervised(folder: Path, said: Said) -> AsyncGenerator[Supervisor]:
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    guardian = Guardian(descriptor, folder / "guardian.log")
    await guardian.start()
    keeper = asyncio.create_task(guardian.keep())
    supervisor = Supervisor(guardian, said, said)
    try:
        yield supervisor
    finally:
        await supervisor.stop()
        keeper.cancel()
        await guardian.stop()
        os.close(descriptor)


def children(marker: str = "time.sleep") -> list[psutil.Process]:
    """Live descendants of this process, and orphans of theirs, that run one of the programs above."""
    mark = os.environ["TAILRACE_TEST_RUN"]
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.environ().get("TAILRACE_TEST_RUN") != mark:
                continue
            if any(marker in argument for argument in process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    """With a line that says so."""
    said = Said()
    async with supervised(tmp_path, said) as supervisor:
        await supervisor.start(part(tmp_path, "a", SLEEP))
        assert said == ["a ready"]
        (first,) = children()
        first.kill()
        await until(lambda: children() and children() != [first])
        assert said[1:] == ["a died (SIGKILL); starting it again"]
        assert not supervisor.broken.done()
    assert children() == []


async def test_what_dies_again_and_again_breaks_the_stack(tmp_path: Path) -> None:
    said = Said()
    async with supervised(tmp_path, said) as supervisor:
        await supervisor.start(
            part(tmp_path, "a", "print('awake', flush=True); import time; time.sleep(0.3); exit(3)")
        )
        with pytest.raises(StackError, match="a died 5 times within a minute"):
            await asyncio.wait_for(asyncio.shield(supervisor.broken), 30)
    assert said.count("a died (exit code 3); starting it again") == 4


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.exit('tailrace: set TAILRACE_X')", "a did not start: tailrace: set TAILRACE_X"),
        ("exit(1)", "a did not start: it said nothing"),
    ],
)
async def test_a_part_that_ends_before_it_is_ready_is_reported_with_its_last_words(
    tmp_path: Path, code: str, why: str
) -> None:
    """At once, and the other parts don't stay behind."""
    async with supervised(tmp_path, Said()) as supervisor:
        never = part(tmp_path, "b", "import time; time.sleep(600)")
        with pytest.raises(StackError, match=why):
            await asyncio.wait_for(supervisor.start(part(tmp_path, "a", code), never), 20)
    assert children() == []


async def test_a_part_that_never_gets_ready_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    async with supervised(tmp_path, Said()) as supervisor:
        with pytest.raises(StackError, match="a is not ready after"):
            await supervisor.start(part(tmp_path, "a", "import time; time.sleep(600)"))


async def test_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    async with supervised(tmp_path, Said()) as supervisor:
        missing = part(tmp_path, "a", "")
        missing = Part("a", ["/nowhere/a"], {}, tmp_path, missing.log, missing.ready)
        with pytest.raises(StackError, match="a can't be started"):
            await supervisor.start(missing)


async def test_stopping_takes_the_stubborn_and_grandchildren_along(tmp_path: Path) -> None:
    """SIGTERM first; after its grace, or its leader's end, whatever is left of a group is killed; servers last."""
    said = Said()
    order: list[str] = []
    async with supervised(tmp_path, said) as supervisor:
        server = part(tmp_path, "server", SLEEP, last=True)
        await supervisor.start(
            server, part(tmp_path, "stubborn", STUBBORN, grace=0.3), part(tmp_path, "parent", PARENT)
        )
        await until(lambda: len(children()) == 4)
        (process,) = (running for name, running in supervisor._running.items() if name == "server")

        async def note(name: str, work: Awaitable[int]) -> None:
            await work
            order.append(name)

        notes = [
            asyncio.create_task(note(name, running.wait())) for name, running in supervisor._running.items()
        ]
        await supervisor.stop()
        await asyncio.gather(*notes)
        assert process.part is server
    assert order[-1] == "server"
    assert children() == []


async def test_the_guardian_survives_and_is_replaced(tmp_path: Path) -> None:
    """Signals to everybody don't end it, and when it is killed another one takes over with the same list."""
    said = Said()
    async with supervised(tmp_path, said) as supervisor:
        await supervisor.start(part(tmp_path, "a", SLEEP))
        (guardian,) = children("guardian.py")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            guardian.send_signal(number)
        guardian.kill()

        def replaced() -> bool:
            process = supervisor._guardian._process
            return process is not None and [process.pid] == [each.pid for each in children("guardian.py")]

        await until(lambda: guardian not in children("guardian.py") and replaced())
        # The supervisor looks away, and the pipe closes as it would if it were killed.
        for keeper in supervisor._keepers:
            keeper.cancel()
        process = supervisor._guardian._process
        assert process
        assert process.stdin
        supervisor._running.clear()
        process.stdin.close()
        await until(lambda: not children())
    assert children("guardian.py") == []
