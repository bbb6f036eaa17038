"""What ``tailrace batch`` does with rows and options that are wrong, and with a disk that is full."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.stack import Stack
from tests.tailrace.batchcommand import SECONDS, Batch, asked, marked, prompts, rows
from tests.tailrace.command import command, complaint, environment

pytestmark = pytest.mark.once


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


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(batch: Batch, stack: Stack) -> None:
    """There is room for the rows, and none for the results: they are fetched by the next command."""
    batch.write(marked("full", 300, chunks=3))
    limited = [
        "bash",
        "-c",
        'ulimit -f 150; exec "$@"',
        "bash",
        *command("batch", "run", "in.jsonl", "-o", "out.jsonl"),
    ]
    done = subprocess.run(
        limited, env=environment(**batch.settings), cwd=batch.folder, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert "can't write into" in complaint(done, 1)
    assert batch.names() == {"in.jsonl", "out.jsonl.tailrace"}
    again = batch("run", "in.jsonl", "-o", "out.jsonl")
    assert again.returncode == 0, (again.stdout, again.stderr)
    assert again.stdout.splitlines()[-1] == "300 rows in out.jsonl"
    assert again.stdout.count("out.jsonl") == 1
    assert len(batch.lines()) == 300
    assert len(asked(stack, prompts("full "))) == 300
    assert batch.names() == {"in.jsonl", "out.jsonl"}
