"""What ``tailrace batch run`` shows on a terminal and in a pipe, and what `--dry-run`, `--limit` and `submit` tell."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.stack import Stack
from tests.tailrace.batchcommand import SECONDS, Batch, asked, marked, prompts
from tests.tailrace.command import command, environment

pytestmark = pytest.mark.once


def test_a_pipe_gets_plain_lines(batch: Batch) -> None:
    batch.write(marked("piped", 3))
    done = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert re.search(r"^completed: 3 of 3 rows, 0 failed, \$", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.splitlines()[-1] == "3 rows in out.jsonl"


def test_a_terminal_gets_a_bar_and_ctrl_c_detaches(batch: Batch, stack: Stack) -> None:
    batch.write(marked("shown", 6, interval_ms=1500))
    terminal, ours = pty.openpty()
    process = subprocess.Popen(
        command("batch", "run", "in.jsonl", "-o", "out.jsonl", "--max-concurrency", "2"),
        env=environment(**batch.settings) | {"TERM": "xterm", "COLUMNS": "140"},
        cwd=batch.folder,
        stdin=ours,
        stdout=ours,
        stderr=ours,
        preexec_fn=lambda: _own_terminal(ours),  # noqa: PLW1509 - there is no other way to give it the terminal
    )
    os.close(ours)
    screen = Screen(terminal)
    try:
        screen.wait_for(r"in_progress .*━.* [2-5]/6 .*0 failed")
        os.write(terminal, b"\x03")
        screen.wait_for(r"detached: batch (batch_\w+) goes on")
        assert process.wait(SECONDS) == 130
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    done = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert len(asked(stack, prompts("shown "))) == 6


def _own_terminal(descriptor: int) -> None:
    """The terminal's Ctrl-C is this process's."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


class Screen:
    """What a terminal was sent, without colours."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._sent = b""

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            found = re.search(
                pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._sent.decode(errors="replace"))
            )
            if found:
                return found
            if select.select([self._descriptor], [], [], 0.2)[0]:
                self._sent += os.read(self._descriptor, 65536)
        raise TimeoutError(f"no {pattern} in {self._sent.decode(errors='replace')[-3000:]}")


@pytest.mark.system
def test_a_bar_in_tmux_fits_the_window_and_leaves_it_clean(batch: Batch, stack: Stack) -> None:
    """Narrow and wide; what stays on the screen is the end, and no remains of the bar."""
    batch.write(marked("windows", 6, interval_ms=1500))
    with Tmux(batch.folder) as tmux:
        tmux.run(command("batch", "run", "in.jsonl", "-o", "out.jsonl", "--max-concurrency", "2"), batch)
        tmux.wait_for(r"in_progress .*━.* [2-5]/6 .*0 failed")
        tmux.resize(60)
        screen = tmux.wait_for(r"[2-6]/6")
        assert sum("/6" in line for line in screen.splitlines()) <= 2
        tmux.resize(140)
        screen = tmux.wait_for(r"6 rows in out.jsonl")
        assert "completed" in screen
        assert len(re.findall("in_progress", screen)) <= 2
    assert [line["custom_id"] for line in batch.lines()] == [f"r{n}" for n in range(6)]


class Tmux:
    """A terminal of its own server, as a person sees it."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "tmux"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._do("kill-server")
        self._socket.unlink(missing_ok=True)

    def _do(self, *arguments: str, **more: Any) -> str:
        whole = ["tmux", "-S", str(self._socket), "-f", "/dev/null", *arguments]
        return subprocess.run(
            whole, capture_output=True, text=True, timeout=SECONDS, check=False, **more
        ).stdout

    def run(self, command: list[str], batch: Batch) -> None:
        line = f"{shlex.join(command)}; sleep {SECONDS:g}"
        size = ("-x", "140", "-y", "40")
        self._do("new-session", "-d", *size, line, env=environment(**batch.settings), cwd=batch.folder)

    def resize(self, width: int) -> None:
        self._do("resize-window", "-x", str(width), "-y", "40")

    def wait_for(self, pattern: str) -> str:
        """The screen once it has that."""
        screen = ""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            screen = self._do("capture-pane", "-p")
            if re.search(pattern, screen):
                return screen
            time.sleep(0.1)
        raise TimeoutError(f"no {pattern} on the screen:\n{screen}")


def test_a_dry_run_tells_what_it_would_come_to_and_sends_nothing(batch: Batch, stack: Stack) -> None:
    mine = [{"custom_id": f"d{n}", "topic": f"dry {n}"} for n in range(4)]
    batch.write(mine)
    how = ("--model", "priced:fake", "--template", "Tell me: {{ topic }}", "--param", "temperature=0")
    done = batch("run", "in.jsonl", "-o", "out.jsonl", *how, "--dry-run")
    assert done.returncode == 0, done.stderr
    told = dict(re.findall(r"^(rows|to send|cached|tokens|cost|time) +(.*)$", done.stdout, re.MULTILINE))
    assert (told["rows"], told["to send"], told["cached"]) == ("4", "4", "0")
    assert told["cost"].startswith("up to $")
    assert '"content": "Tell me: dry 0"' in done.stdout
    assert asked(stack, prompts("Tell me: dry")) == []
    assert batch.list() == []
    assert batch.names() == {"in.jsonl"}

    assert batch("run", "in.jsonl", "-o", "out.jsonl", *how).returncode == 0
    again = json.loads(batch("run", "in.jsonl", "-o", "out2.jsonl", *how, "--dry-run", "--json").stdout)
    assert (again["pending"], again["cached"]) == (4, 4)
    assert again["seconds"] is not None


def test_limit_takes_the_first_rows_and_keeps_the_results_of_others(batch: Batch, stack: Stack) -> None:
    batch.write(marked("limited", 5))
    assert batch("run", "in.jsonl", "-o", "out.jsonl", "--limit", "2").returncode == 0
    assert [line["custom_id"] for line in batch.lines()] == ["r0", "r1"]
    assert batch("run", "in.jsonl", "-o", "out.jsonl").returncode == 0
    assert batch("run", "in.jsonl", "-o", "out.jsonl", "--limit", "1").returncode == 0
    assert [line["custom_id"] for line in batch.lines()] == [f"r{n}" for n in range(5)]
    assert len(asked(stack, prompts("limited "))) == 5


def test_submit_prints_the_id_and_watch_gets_the_results(batch: Batch) -> None:
    batch.write(marked("submitted", 2))
    done = batch("submit", "in.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    id = json.loads(done.stdout)["batch"]["id"]
    watched = batch("watch", id, "--json")
    assert watched.returncode == 0, watched.stderr
    assert json.loads(watched.stdout.splitlines()[-1])["status"] == "completed"
    assert batch("results", id, "-o", "out.jsonl").returncode == 0
    assert [line["custom_id"] for line in batch.lines()] == ["r0", "r1"]
    table = batch("list").stdout
    assert id in table
    assert "completed" in table
    assert json.loads(batch("show", id, "--json").stdout)["failures"] == []
