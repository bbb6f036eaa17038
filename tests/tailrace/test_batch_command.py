"""``tailrace batch`` against the whole pipeline, as a person runs it: processes, terminals, kills."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import tailrace
from tailrace.cli.batch.state import State
from tests.support.api import Api
from tests.support.stack import Stack
from tests.support.valkey import wait_until
from tests.tailrace.command import command, complaint, environment, run

SECONDS = 90.0


@pytest.fixture
def settings(stack: Stack, api: Api) -> dict[str, str]:
    return {"URL": stack.url, "API_KEY": api.api_key}


@pytest.fixture
def batch(tmp_path: Path, settings: dict[str, str]) -> Batch:
    return Batch(tmp_path, settings)


class Batch:
    """The commands, in a folder of their own."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.settings = settings

    def write(self, rows: Sequence[Any], name: str = "in.jsonl") -> None:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("batch", *arguments, settings=self.settings, cwd=self.folder)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command("batch", *arguments),
            env=environment(**self.settings),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def lines(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {"home", "providers.toml"}

    def list(self) -> list[dict[str, Any]]:
        return json.loads(self("list", "--json").stdout)


def rows(count: int, **order: Any) -> list[dict[str, Any]]:
    """Rows of the Batch format for the fake backend."""
    return [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "fake",
                "messages": [{"role": "user", "content": f"question {n}"}],
                "fake": {"chunks": 2, **order},
            },
        }
        for n in range(count)
    ]


def asked(stack: Stack, api_rows: Callable[[str], bool]) -> list[str]:
    """What the model was asked, of the rows that are meant."""
    texts = [received.body["messages"][-1]["content"] for received in stack.backend.completions]
    return [text for text in texts if api_rows(text)]


def prompts(mark: str) -> Callable[[str], bool]:
    return lambda text: text.startswith(mark)


def marked(mark: str, count: int, **order: Any) -> list[dict[str, Any]]:
    """The same with prompts that no other test has."""
    found = rows(count, **order)
    for n, row in enumerate(found):
        row["body"]["messages"][0]["content"] = f"{mark} {n}"
        row["body"]["fake_id"] = f"{mark} {n}"
    return found


def text_of(line: dict[str, Any]) -> str:
    return line["response"]["body"]["choices"][0]["message"]["content"]


# --------------------------------------------------------------------------------------------------- run, run again


def test_rows_in_results_out_and_nothing_paid_twice(batch: Batch, stack: Stack) -> None:
    """Results in the order of the input; the same command again asks nothing; an edited row alone is asked again."""
    mine = marked("twice", 8)
    batch.write(mine)
    first = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert first.returncode == 0, first.stderr
    assert [line["custom_id"] for line in batch.lines()] == [f"r{n}" for n in range(8)]
    assert all(re.fullmatch("[0-9a-f]{64}", line["fingerprint"]) for line in batch.lines())
    assert {line["error"] for line in batch.lines()} == {None}
    assert batch.names() == {"in.jsonl", "out.jsonl"}
    assert sorted(asked(stack, prompts("twice "))) == sorted(f"twice {n}" for n in range(8))

    before = batch.lines()
    again = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert again.returncode == 0, again.stderr
    assert "8 of 8 rows are in out.jsonl already" in again.stdout
    assert batch.lines() == before
    assert len(asked(stack, prompts("twice "))) == 8

    mine[3]["body"]["messages"][0]["content"] = "twice edited"
    batch.write(mine)
    edited = batch("run", "in.jsonl", "-o", "out.jsonl", "--json")
    assert edited.returncode == 0, edited.stderr
    report = json.loads(edited.stdout)
    assert (report["rows"], report["already"], report["sent"], report["answered"]) == (8, 7, 1, 8)
    assert [line["custom_id"] for line in batch.lines()] == [f"r{n}" for n in range(8)]
    assert batch.lines()[3] != before[3]
    assert batch.lines()[:3] + batch.lines()[4:] == before[:3] + before[4:]
    assert len(asked(stack, prompts("twice "))) == 9
    assert batch.lines("out.jsonl.old") == before


def test_failed_rows_exit_3_and_are_asked_again_by_the_next_run(batch: Batch) -> None:
    mine = marked("failing", 4)
    mine[1]["body"]["fake"] = [{"status": 400}, {"chunks": 1}]
    batch.write(mine)
    done = batch("run", "in.jsonl", "-o", "out.jsonl", "--errors", "bad.jsonl")
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert [line["custom_id"] for line in batch.lines()] == ["r0", "r2", "r3"]
    (failed,) = batch.lines("bad.jsonl")
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("r1", 400)

    shown = batch("show", batch.list()[0]["id"])
    assert "1  400" in " ".join(shown.stdout.split()) or "1 400" in " ".join(shown.stdout.split())
    assert "such as r1 (line 2)" in shown.stdout

    again = batch("run", "in.jsonl", "-o", "out.jsonl", "--errors", "bad.jsonl")
    assert again.returncode == 0, (again.stdout, again.stderr)
    assert [line["custom_id"] for line in batch.lines()] == ["r0", "r1", "r2", "r3"]
    assert batch.lines("bad.jsonl") == []


def test_retry_sends_the_failed_rows_alone_and_their_answers_join_the_file(
    batch: Batch, stack: Stack
) -> None:
    mine = marked("retried", 3)
    mine[2]["body"]["fake"] = [{"status": 400}, {"chunks": 1}]
    batch.write(mine)
    assert batch("run", "in.jsonl", "-o", "out.jsonl").returncode == 3
    id = batch.list()[0]["id"]
    code = json.loads(batch("show", id, "--json").stdout)["failures"][0]["code"]
    retried = batch("retry", id, "--error", code, "--json")
    assert retried.returncode == 0, retried.stderr
    made = json.loads(retried.stdout)["id"]
    done = batch("watch", made, "-o", "out.jsonl")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert [line["custom_id"] for line in batch.lines()] == ["r0", "r1", "r2"]
    assert "out.errors.jsonl" not in batch.names()
    assert len(asked(stack, prompts("retried "))) == 4
    # What came by way of the other batch counts as done, too.
    again = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert "3 of 3 rows" in again.stdout, (again.stdout, again.stderr)
    nothing = batch("retry", id, "--error", "no_such_code")
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("tailrace: ")


# ------------------------------------------------------------------------------------------------------- detaching


def running(batch: Batch) -> Callable[[], bool]:
    return lambda: any(there["request_counts"]["completed"] for there in batch.list())


def test_ctrl_c_detaches_and_says_how_to_attach(batch: Batch, stack: Stack) -> None:
    batch.write(marked("detached", 6, interval_ms=1500))
    process = batch.start("run", "in.jsonl", "-o", "out.jsonl", "--max-concurrency", "2")
    wait_until(lambda: len(asked(stack, prompts("detached "))) > 0, SECONDS, "row that was asked")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, said
    attach = re.search(r"tailrace batch watch (batch_\S+) -o out.jsonl", said)
    assert attach, said
    assert "out.jsonl" not in batch.names()
    done = batch("watch", attach[1], "-o", "out.jsonl")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert [line["custom_id"] for line in batch.lines()] == [f"r{n}" for n in range(6)]
    assert len(asked(stack, prompts("detached "))) == 6
    assert "6 of 6 rows are in" in batch("run", "in.jsonl", "-o", "out.jsonl").stdout
    assert batch.names() == {"in.jsonl", "out.jsonl"}


def test_detach_then_the_same_command_attaches(batch: Batch, stack: Stack) -> None:
    """An edit meanwhile is asked after what runs, and nothing else is."""
    mine = marked("left", 4, interval_ms=300)
    batch.write(mine)
    left = batch("run", "in.jsonl", "-o", "out.jsonl", "--detach", "--name", "mine")
    assert left.returncode == 0, left.stderr
    assert "attach with: tailrace batch watch batch_" in left.stdout
    assert [there["metadata"] for there in batch.list()] == [{"name": "mine"}]
    mine[0]["body"]["messages"][0]["content"] = "left edited"
    batch.write(mine)
    done = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert [line["custom_id"] for line in batch.lines()] == ["r0", "r1", "r2", "r3"]
    assert sorted(asked(stack, prompts("left "))) == ["left 0", "left 1", "left 2", "left 3", "left edited"]


@pytest.mark.parametrize("moment", ["sending", "batch batch_"])
def test_a_killed_command_goes_on_where_it_was(batch: Batch, stack: Stack, moment: str) -> None:
    """kill -9 while it uploads, or between upload and batch, or once there is a batch: each row is asked once."""
    mark = f"killed-{len(moment)}"
    batch.write(marked(mark, 5, interval_ms=200))
    process = batch.start("run", "in.jsonl", "-o", "out.jsonl")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(moment):
            break
    process.kill()
    process.communicate(timeout=SECONDS)
    done = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert [line["custom_id"] for line in batch.lines()] == [f"r{n}" for n in range(5)]
    assert sorted(asked(stack, prompts(f"{mark} "))) == [f"{mark} {n}" for n in range(5)]
    assert batch.names() == {"in.jsonl", "out.jsonl"}


def test_a_batch_that_nobody_heard_of_is_found_by_its_file(batch: Batch) -> None:
    """The server made the batch and the command died before it knew: the state has the file, and that is enough."""
    batch.write(marked("unheard", 3))
    left = batch("run", "in.jsonl", "-o", "out.jsonl", "--detach", "--json")
    made = json.loads(left.stdout)["batch"]["id"]
    with State(batch.folder / "out.jsonl.tailrace") as state:
        assert state.get("batch") == made
        state.put(batch=None, key="another-key")
    done = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert len(batch.lines()) == 3
    assert [there["id"] for there in batch.list()] == [made]


def test_a_file_without_its_batch_becomes_one(batch: Batch, settings: dict[str, str]) -> None:
    """The command died between upload and batch: what is uploaded is not sent again."""
    batch.write(marked("uploaded", 3))
    left = batch("run", "in.jsonl", "-o", "out.jsonl", "--detach", "--json")
    first = json.loads(left.stdout)["batch"]["id"]
    with tailrace.SyncClient(settings["URL"], settings["API_KEY"]) as client:
        file = client.files.upload(batch.folder / "in.jsonl")
    with State(batch.folder / "out.jsonl.tailrace") as state:
        state.put(batch=None, file=file["id"], key="a-key", uploaded=str(file["created_at"]))
    done = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0, (done.stdout, done.stderr)
    made, other = batch.list()
    assert (made["input_file_id"], other["id"]) == (file["id"], first)
    assert batch.names() == {"in.jsonl", "out.jsonl"}


def test_two_commands_on_one_output_do_not_mix(batch: Batch, stack: Stack) -> None:
    batch.write(marked("held", 1, interval_ms=3000))
    process = batch.start("run", "in.jsonl", "-o", "out.jsonl")
    try:
        wait_until(lambda: len(asked(stack, prompts("held "))) == 1, SECONDS, "row that was asked")
        assert "another command works on out.jsonl" in complaint(
            batch("run", "in.jsonl", "-o", "out.jsonl"), 1
        )
    finally:
        said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said


def test_partial_results_cancel_and_going_on(batch: Batch, stack: Stack) -> None:
    """While it runs, what has ended is there; what a cancelled batch never asked, the next run does."""
    mine = marked("stopped", 4)
    for row in mine[2:]:
        row["body"]["fake"] = {"chunks": 2, "interval_ms": 20_000}
    batch.write(mine)
    id = json.loads(batch("run", "in.jsonl", "-o", "out.jsonl", "--detach", "--json").stdout)["batch"]["id"]

    def two() -> bool:
        assert batch("results", id, "-o", "partial.jsonl").returncode == 0
        return len(batch.lines("partial.jsonl")) == 2

    wait_until(two, SECONDS, "results of two rows")
    printed = batch("results", id)
    assert [json.loads(line)["custom_id"] for line in printed.stdout.splitlines()] == ["r0", "r1"]
    beside = json.loads(batch("results", id, "-o", "out.jsonl", "--json").stdout)
    assert (beside["answered"], beside["failed"]) == (2, 0)
    assert {"out.jsonl", "out.jsonl.tailrace"} <= batch.names()
    assert batch("cancel", id).returncode == 0
    ended = batch("watch", id)
    assert ended.returncode == 1
    assert f"batch {id} is cancelled" in ended.stderr
    # The two rows are another request without the pause, and go with those that never had an answer.
    for row in mine[2:]:
        row["body"]["fake"] = {"chunks": 2}
    batch.write(mine)
    done = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert [line["custom_id"] for line in batch.lines()] == ["r0", "r1", "r2", "r3"]
    assert len([text for text in asked(stack, prompts("stopped ")) if text.endswith((" 0", " 1"))]) == 2


# -------------------------------------------------------------------------------------------------- invalid rows


def test_invalid_rows_are_told_by_line_and_field_and_nothing_is_sent(batch: Batch, stack: Stack) -> None:
    mine = marked("invalid", 3)
    del mine[1]["body"]["messages"]
    batch.write([*mine, {"prompt": ""}, {"question": "?"}])
    done = batch("run", "in.jsonl", "-o", "out.jsonl", "--model", "fake")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "tailrace: in.jsonl, line 2: body.messages: must be an array with a message at least",
        "tailrace: in.jsonl, line 4: prompt: is empty",
        "tailrace: in.jsonl, line 5: has no 'prompt', 'messages' or 'body' (it has 'question'): see --template",
        "tailrace: nothing was sent; --skip-invalid leaves invalid rows out",
    ]
    assert batch.list() == []
    assert batch.names() == {"in.jsonl"}


def test_a_custom_id_is_there_once_and_equal_rows_without_one_are_two(batch: Batch) -> None:
    batch.write([{"id": "a", "prompt": "same"}, {"id": "a", "prompt": "other"}])
    done = batch("run", "in.jsonl", "-o", "out.jsonl", "--model", "fake")
    assert "in.jsonl, line 2: custom_id: 'a' is in line 1 already" in done.stderr
    batch.write([{"prompt": "same"}, {"prompt": "same"}, {"prompt": "same"}])
    done = batch("run", "in.jsonl", "-o", "out.jsonl", "--model", "fake")
    assert done.returncode == 0, (done.stdout, done.stderr)
    first, second, third = (line["custom_id"] for line in batch.lines())
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert "3 of 3 rows" in batch("run", "in.jsonl", "-o", "out.jsonl", "--model", "fake").stdout


def test_skip_invalid_leaves_them_out_and_reports_them(batch: Batch, stack: Stack) -> None:
    """Rows that only the server finds invalid too, by the lines of the input."""
    mine = marked("skipped", 5)
    mine[3]["body"]["temperature"] = 99
    text = [json.dumps(row) for row in mine]
    text[1] = "{not json"
    (batch.folder / "in.jsonl").write_text("\n".join(text) + "\n")
    refused = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert refused.returncode == 1
    done = batch("run", "in.jsonl", "-o", "out.jsonl", "--skip-invalid")
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert [line["custom_id"] for line in batch.lines()] == ["r0", "r2", "r4"]
    bad = batch.lines("out.errors.jsonl")
    assert [(line["custom_id"], line["error"]["line"]) for line in bad] == [(None, 2), ("r3", 4)]
    assert {line["error"]["code"] for line in bad} == {"invalid_row"}
    assert "temperature" in bad[1]["error"]["message"]
    again = batch("run", "in.jsonl", "-o", "out.jsonl", "--skip-invalid")
    assert again.returncode == 3, (again.stdout, again.stderr)
    assert batch.lines("out.errors.jsonl") == bad


def test_other_columns_are_those_that_the_row_has_now(batch: Batch, stack: Stack) -> None:
    mine = [{"custom_id": f"c{n}", "prompt": f"columns {n}", "gold": n} for n in range(3)]
    batch.write(mine)
    assert batch("run", "in.jsonl", "-o", "out.jsonl", "--model", "fake").returncode == 0
    before = batch.lines()
    assert [line["input"] for line in before] == [{"gold": 0}, {"gold": 1}, {"gold": 2}]
    mine[0]["gold"] = "new"
    del mine[1]["gold"]
    batch.write(mine)
    assert batch("run", "in.jsonl", "-o", "out.jsonl", "--model", "fake").returncode == 0
    assert [line.get("input") for line in batch.lines()] == [{"gold": "new"}, None, {"gold": 2}]
    assert [line["id"] for line in batch.lines()] == [line["id"] for line in before]
    assert len(asked(stack, prompts("columns "))) == 3


def test_what_only_the_server_refuses_is_told_by_the_lines_of_the_input(batch: Batch) -> None:
    mine = marked("refused", 3)
    mine[2]["body"]["model"] = "listed:nowhere"
    batch.write(mine)
    (batch.folder / "in.jsonl").write_text("\n" + (batch.folder / "in.jsonl").read_text())
    done = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 1
    assert "tailrace: in.jsonl, line 4: " in done.stderr
    assert batch.names() == {"in.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("in.jsonl",), 2, "-o"),
        (("in.jsonl", "-o", "in.jsonl"), 2, "three files"),
        (("nowhere.jsonl", "-o", "out.jsonl"), 2, "nowhere.jsonl"),
        (("in.jsonl", "-o", "out.jsonl", "--param", "temperature"), 2, "name=value"),
        (("in.jsonl", "-o", "out.jsonl", "--param", "model=x"), 2, "--model"),
        (("in.jsonl", "-o", "out.jsonl", "--window", "soon"), 2, "24h"),
        (("in.jsonl", "-o", "out.jsonl", "--template", "nothing"), 1, "{{ column }}"),
        (("in.jsonl", "-o", "out.jsonl", "--template", "{{ a"), 1, "template's line 1"),
        (("in.jsonl", "-o", "notes.txt"), 1, "no line of results"),
    ],
)
def test_wrong_usage_is_one_line(batch: Batch, arguments: tuple[str, ...], code: int, word: str) -> None:
    batch.write(rows(1))
    (batch.folder / "notes.txt").write_text("dear diary\n")
    assert word in complaint(batch("run", *arguments), code)
    assert (batch.folder / "notes.txt").read_text() == "dear diary\n"


# ------------------------------------------------------------------------------------------------ progress, dry run


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
