"""``tailrace batch`` against the whole pipeline, as a person runs it: run again, detached, attached, killed."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable

import pytest

import tailrace
from tailrace.cli.batch.state import State
from tests.support.stack import Stack
from tests.support.valkey import wait_until
from tests.tailrace.batchcommand import SECONDS, Batch, asked, marked, prompts
from tests.tailrace.command import complaint

pytestmark = pytest.mark.once

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
