"""The command line, as processes: output, exit codes, errors of one line."""

from __future__ import annotations

import asyncio
import copy
import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

import tailrace
from tailrace.cli import main
from tests.tailrace.command import command, complaint, environment, run
from tests.tailrace.server import SSE, Gateway, Reply, StandIn, frames, stand_in

ID = "chatcmpl-1"
TEXTS = ["Sluice", " gates", " hold\n", "water", " — 水"]


@pytest.fixture
def gateway() -> Gateway:
    gateway = Gateway()
    gateway.add(ID, TEXTS)
    return gateway


@pytest.fixture
async def server(gateway: Gateway) -> AsyncGenerator[StandIn]:
    async with stand_in(gateway) as server:
        yield server


def settings(server: StandIn) -> dict[str, str]:
    return {"URL": server.url, "API_KEY": "sk-test"}


async def tail(server: StandIn, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run, "tail", *arguments, settings=settings(server))


# ------------------------------------------------------------------------------------------------ the frame


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"tailrace {tailrace.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("up", "--help"),
        ("demo", "-h"),
        ("tail", "--help"),
        ("cancel", "--help"),
        ("usage", "--help"),
        ("keys", "--help"),
        ("cache", "purge", "--help"),
        ("batch", "run", "--help"),
        ("doctor", "--help"),
    ],
)
def test_help_loads_nothing_of_the_server(arguments: tuple[str, ...]) -> None:
    """Asking for help takes no database and no Celery."""
    code = f"""
import sys, tailrace.cli
try:
    tailrace.cli.main({list(arguments)!r})
finally:
    heavy = {{"celery", "kombu", "redis", "sqlalchemy", "alembic", "schemas", "stores"}}
    print("LOADED", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: tailrace" in done.stdout
    assert done.stdout.endswith("LOADED []\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("tial",),
        ("tail",),
        ("tail", ID, "--from", "-1"),
        ("tail", ID, "--from", "x"),
        ("up", "--workers", "0"),
        ("up", "--port", "99999"),
        ("cancel",),
        ("keys", "create"),
        ("keys", "create", "ci", "--on-disconnect", "stop"),
        ("keys", "list", "--yes"),
        ("doctor", "--yes"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: tuple[str, ...]) -> None:
    assert "--help" in complaint(run(*arguments), 2)


# ----------------------------------------------------------------------------------------------------- tail


async def test_tail_prints_the_text(server: StandIn) -> None:
    """To the end, with a line break after it."""
    done = await tail(server, ID)
    assert (done.returncode, done.stdout, done.stderr) == (0, "".join(TEXTS) + "\n", "")


async def test_tail_from_an_index(server: StandIn) -> None:
    """``--from N`` begins with chunk N; ``--json`` is one chunk a line with its index."""
    assert (await tail(server, ID, "--from", "2")).stdout == "".join(TEXTS[2:]) + "\n"
    done = await tail(server, ID, "--json", "--from", "3")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == [3, 4]
    assert [line["chunk"]["choices"][0]["delta"]["content"] for line in lines] == TEXTS[3:]
    assert (await tail(server, ID, "--from", "9")).stdout == ""


async def test_tail_prints_each_token_as_it_comes(server: StandIn, gateway: Gateway) -> None:
    """Into a pipe too: what was said is there while the model is still talking. Ctrl-C then is quiet."""
    server.faults = [None, Reply(200, frames(gateway.chunks[ID][:2], -1, end=""), SSE, hang=True)]
    process = await asyncio.create_subprocess_exec(
        *command("tail", ID),
        env=environment(**settings(server)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    async with asyncio.timeout(30):
        assert await process.stdout.readexactly(12) == b"Sluice gates"
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"\n", b"")


async def test_tail_into_a_closed_pipe_is_quiet(server: StandIn, gateway: Gateway) -> None:
    """``tailrace tail … | head -1`` says nothing on standard error."""
    gateway.add("chatcmpl-long", ["line\n"] * 5000)
    line = " ".join([*command("tail", "chatcmpl-long"), "| head -n 1"])
    process = await asyncio.create_subprocess_shell(
        line,
        env=environment(**settings(server)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        assert await process.communicate() == (b"line\n", b"")


async def test_tail_into_a_recording(server: StandIn, gateway: Gateway, tmp_path: Path) -> None:
    """A line each, of what the provider sent; an answer that is complete already has no timing to keep."""
    sent: dict[str, Any] = {
        "object": "chat.completion.chunk",
        "system_fingerprint": "fp",
        "usage": {"total_tokens": 3},
        "choices": [
            {
                "index": 0,
                "delta": {"content": "so", "reasoning_content": "hm"},
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "so"}]},
            }
        ],
    }
    shown: dict[str, Any] = copy.deepcopy(sent) | {
        "id": ID,
        "created": 7,
        "model": "m",
        "resolved_model": "m2",
    }
    shown["choices"][0]["delta"]["reasoning"] = "hm"
    shown["choices"][0]["logprobs"] |= {"tokens": ["so"], "token_logprobs": [0.5], "text_offset": [0]}
    gateway.chunks[ID] = [shown, shown]
    file = tmp_path / "tape.jsonl"
    for _ in range(2):
        done = await tail(server, ID, "--record", str(file))
        assert (done.returncode, done.stdout) == (0, "soso\n"), done.stderr
        assert "no timing" in done.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [[chunk for _, chunk in line["chunks"]] for line in lines] == [[sent, sent]] * 2


async def test_a_recording_that_can_t_be_written(server: StandIn, tmp_path: Path) -> None:
    """Told before the stream is followed; half of an answer is none."""
    file = tmp_path / "nowhere" / "tape.jsonl"
    assert str(file) in complaint(await tail(server, ID, "--record", str(file)), 1)
    assert "--from" in complaint(await tail(server, ID, "--from", "2", "--record", "f"), 2)


async def test_tail_of_a_failure(server: StandIn, gateway: Gateway) -> None:
    """What there is of the text, then one line on standard error."""
    gateway.add("chatcmpl-f", ["half"], "failed", code="provider_stalled", message="no chunk\nfor 60 s")
    done = await tail(server, "chatcmpl-f")
    assert complaint(done, 1) == "tailrace: provider_stalled: no chunk for 60 s"
    assert done.stdout == "half\n"
    assert "chatcmpl-nobody" in complaint(await tail(server, "chatcmpl-nobody"), 1)


async def test_tail_of_an_answer_that_is_started_again(server: StandIn, gateway: Gateway) -> None:
    """It says so, on standard error, and begins anew: in mid-stream, and where the index asked for is void."""
    begun = frames(gateway.chunks[ID][:2], -1, "error", "restarted: The answer was started again.")
    server.faults = [None, Reply(200, begun, SSE)]
    done = await tail(server, ID)
    assert "started again" in complaint(done, 0)
    assert done.stdout == "Sluice gates\n" + "".join(TEXTS) + "\n"
    assert [r.query.get("after") for r in server.requests] == [None, "-1", "-1"]
    server.faults = [None, Reply.error(409, "restarted", "Start from -1.", x_base_index="3")]
    done = await tail(server, ID, "--from", "2")
    assert "started again" in complaint(done, 0)
    assert done.stdout == "".join(TEXTS) + "\n"


# --------------------------------------------------------------------------------------------------- cancel


async def cancel(server: StandIn, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run, "cancel", *arguments, settings=settings(server))


async def test_cancel_prints_the_state(server: StandIn, gateway: Gateway) -> None:
    """Of each completion, on a line of its own."""
    done = await cancel(server, ID)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ID}  cancelled\n", "")
    ids = [f"chatcmpl-{number}" for number in range(40, 80)]
    for id in ids:
        gateway.add(id, TEXTS)
    done = await cancel(server, *ids)
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, [f"{id}  cancelled" for id in ids])
    done = await cancel(server, ID, "--json")
    assert json.loads(done.stdout) == {"id": ID, "status": "cancelled"}


async def test_one_that_can_not_be_cancelled_does_not_keep_the_others(
    server: StandIn, gateway: Gateway
) -> None:
    gateway.add("chatcmpl-2", TEXTS)
    done = await cancel(server, ID, "chatcmpl-nobody", "chatcmpl-2")
    assert "chatcmpl-nobody" in complaint(done, 1)
    assert sorted(done.stdout.splitlines()) == [f"{ID}  cancelled", "chatcmpl-2  cancelled"]
    away = {"URL": "http://127.0.0.1:9", "API_KEY": "k"}
    assert "http://127.0.0.1:9" in complaint(run("cancel", ID, settings=away), 1)


def test_tail_without_a_server(tmp_path: Path) -> None:
    assert "tailrace up" in complaint(run("tail", ID, settings={"HOME": str(tmp_path)}), 1)
    away = {"URL": "http://127.0.0.1:9", "API_KEY": "k"}
    assert "http://127.0.0.1:9" in complaint(run("tail", ID, settings=away), 1)
    assert str(tmp_path) in complaint(run("tail", ID, "--home", str(tmp_path), settings=away), 1)
    assert "TAILRACE_DATABASE_URL" in complaint(run("keys", "list", "--home", str(tmp_path)), 1)


# ---------------------------------------------------------------------------------------- keys and migrate


def test_keys_and_migrations(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From an empty database to a key, and back."""
    monkeypatch.setenv("TAILRACE_DATABASE_URL", database_url)

    def here(*arguments: str) -> subprocess.CompletedProcess[str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(arguments, end.value.code, said.out, said.err)

    def ok(*arguments: str) -> str:
        done = here(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    assert "tailrace migrate" in complaint(here("keys", "create", "ci"), 1)
    assert "revision" in ok("migrate")
    assert ok("migrate") == ok("migrate")
    made = json.loads(ok("keys", "create", "ci", "--tenant", "acme", "--json"))
    assert made["key"].startswith("tr-")
    assert made["id"] in ok("keys", "create", "other", "--admin") + ok("keys", "list")
    keys = {key["name"]: key for key in json.loads(ok("keys", "list", "--json"))}
    assert (keys["ci"]["id"], keys["ci"]["tenant"], keys["ci"]["admin"]) == (made["id"], "acme", False)
    assert (keys["other"]["tenant"], keys["other"]["admin"]) == ("default", True)
    leaver = json.loads(ok("keys", "create", "leaver", "--on-disconnect", "cancel", "--json"))
    assert leaver["on_disconnect"] == "cancel"
    assert f"{leaver['id']}" in ok("keys", "list")
    (line,) = [line for line in ok("keys", "list").splitlines() if leaver["id"] in line]
    assert line.endswith("leaver  on-disconnect=cancel")
    settings = {key["name"]: key["on_disconnect"] for key in json.loads(ok("keys", "list", "--json"))}
    assert settings == {"ci": None, "other": None, "leaver": "cancel"}
    assert made["key"] not in ok("keys", "list") + ok("keys", "list", "--json")
    assert ok("keys", "revoke", made["id"]) == f"{made['id']} revoked\n"
    assert "revoked" in next(line for line in ok("keys", "list").splitlines() if made["id"] in line)
    assert made["id"] in complaint(here("keys", "revoke", made["id"]), 1)
    assert "printable" in complaint(here("keys", "create", "a\tb"), 1)
    assert complaint(here("migrate", "--down", "nowhere"), 1)
    assert "base" in ok("migrate", "--down", "base")


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/books.db", "mysql://x/y", "?", "postgresql://nobody@127.0.0.1:9/x"]
)
def test_an_unusable_database_is_one_line(url: str) -> None:
    complaint(run("migrate", settings={"DATABASE_URL": url}), 1)


def test_the_command_runs_beside_an_application_with_a_schemas_of_its_own(tmp_path: Path) -> None:
    """The command sees its own ``schemas``, not those of the folder in which it is called."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "__init__.py").write_text("raise RuntimeError('the application')\n")
    books = {"DATABASE_URL": f"sqlite:///{tmp_path / 'books.db'}"}
    done = run("migrate", settings=books, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
