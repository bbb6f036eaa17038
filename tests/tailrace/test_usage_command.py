"""``tailrace usage`` against the whole pipeline."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from datetime import UTC, datetime

import pytest

import tailrace
from tests.support.api import Api, named
from tests.support.stack import PRICES, Stack
from tests.tailrace.command import command, complaint, environment, run

pytestmark = pytest.mark.once

COUNTS = {"prompt_tokens": 3000, "completion_tokens": 1000}
COST = 3000 * PRICES["fake"]["input"] / 1e6 + 1000 * PRICES["fake"]["output"] / 1e6


@pytest.fixture
def used(api: Api, stack: Stack) -> dict[str, str]:
    """Two completions with a price and one without; the settings that the command needs."""
    ids = [
        api.seed(model="priced:fake", headers=named(user), fake={"usage": COUNTS}).id
        for user in ("ann", "bob")
    ]
    stack.settled(*ids, api.seed("hi", model="fake").id)
    return {"URL": stack.url, "API_KEY": api.api_key}


def test_a_table_of_plain_lines(used: dict[str, str]) -> None:
    """On a pipe: no bars and no colours; totals, and what has no price."""
    done = run("usage", settings=used)
    assert done.returncode == 0, done.stderr
    head, *rows, total, unpriced = (line.split() for line in done.stdout.splitlines())
    assert head == ["model", "requests", "input", "cached", "output", "cost"]
    assert rows == [
        ["priced:fake", "2", "6,000", "0", "2,000", f"${2 * COST:.6f}"],
        ["fake", "1", "10", "0", "10", "?"],
    ]
    assert total == ["all", "3", "6,010", "0", "2,010", f"${2 * COST:.6f}"]
    assert unpriced[:5] == ["1", "requests", "of", "unknown", "cost"]
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("by", "names"), [("user", {"ann", "bob", "(none)"}), ("day", None), ("key", None), ("model", None)]
)
def test_each_grouping(used: dict[str, str], api: Api, by: str, names: set[str] | None) -> None:
    if names is None:
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        names = {"day": {today}, "key": {api.key_id}, "model": {"fake", "priced:fake"}}[by]
    done = run("usage", "--by", by, "--since", "2h", settings=used)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines()]
    assert set(rows[1:-2]) == names


def test_json_is_what_the_server_says(used: dict[str, str]) -> None:
    done = run("usage", "--json", "--since", "2020-01-01", "--by", "user", settings=used)
    found = json.loads(done.stdout)
    costs = {row["external_user_id"]: row["cost_nano"] for row in found["data"]}
    assert costs == {"ann": str(round(COST * 1e9)), "bob": str(round(COST * 1e9)), None: None}
    assert found["start_time"] == datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    with tailrace.SyncClient(used["URL"], used["API_KEY"]) as client:
        mine = client.usage(start_time=found["start_time"], end_time=found["end_time"], group_by=["model"])
        assert sum(row["num_model_requests"] for row in mine["data"]) == 3


def test_bars_on_a_terminal(used: dict[str, str]) -> None:
    """As long as the share of the cost."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("usage", "--by", "model"),
        env=environment(**used) | {"COLUMNS": "120", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    told = b""
    try:
        while piece := os.read(ours, 4096):
            told += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0, process.communicate()
    process.communicate()
    lines = told.decode().splitlines()
    (priced,) = [line for line in lines if "priced:fake" in line]
    assert "█" * 24 in priced
    assert not any("█" in line for line in lines if line is not priced)


def test_nothing_used_is_said(stack: Stack, api: Api) -> None:
    done = run("usage", settings={"URL": stack.url, "API_KEY": api.api_key})
    assert done.returncode == 0
    assert done.stdout.startswith("nothing was used since ")
    done = run("usage", "--json", settings={"URL": stack.url, "API_KEY": api.api_key})
    assert json.loads(done.stdout)["data"] == []


@pytest.mark.parametrize("arguments", [("--since", "soon"), ("--since", "7y"), ("--by", "colour")])
def test_what_can_not_be_is_wrong_usage(arguments: tuple[str, str]) -> None:
    done = run("usage", *arguments, settings={"URL": "http://127.0.0.1:9", "API_KEY": "k"})
    assert arguments[0] in complaint(done, 2)


def test_a_wrong_key_fails(stack: Stack) -> None:
    done = run("usage", settings={"URL": stack.url, "API_KEY": "nonsense"})
    assert "API key" in complaint(done, 1)
