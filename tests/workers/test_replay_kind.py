"""``kind = "replay"``: recordings, their timing, which one a request gets; and the same faults as from a server."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.errors import ConfigurationError, ProviderError
from schemas.providers import Provider
from tests.support.api import Api, asking, ordered
from tests.support.stack import ROOT, Stack
from workers.providers.kind import DONE, Call
from workers.providers.replay import Replay


def chunk(text: str | None, finish: str | None = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"object": "chat.completion.chunk", "choices": choices}


def recording(*texts: str, every: float = 0, **more: Any) -> dict[str, Any]:
    """A line that says these texts, one each so many milliseconds."""
    chunks = [[place * every, chunk(text)] for place, text in enumerate(texts)]
    return {"chunks": [*chunks, [len(texts) * every, chunk(None, "stop")]], **more}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def replay(path: Path, *lines: dict[str, Any], speed: float = 1) -> Replay:
    fields = {"name": "tape", "kind": "replay", "file": str(write(path, *lines)), "speed": speed}
    return Replay(Provider.model_validate(fields), httpx.AsyncHTTPTransport())


async def played(backend: Replay, content: str = "hi", **params: Any) -> list[list[bytes]]:
    call = Call({"messages": [{"role": "user", "content": content}], **params}, "any")
    async with backend.stream(call) as pieces:
        return [piece async for piece in pieces]


def said(pieces: list[list[bytes]]) -> str:
    chunks = [json.loads(data) for piece in pieces for data in piece if data != DONE]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    return tmp_path / "tape.jsonl"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    lines = (
        recording(*[f" {n}" for n in range(60)], every=60, request={"model": "slow"}),
        {"status": 503, "request": {"model": "down"}},
        recording("recorded ", "earlier"),
    )
    files = {
        "tape.jsonl": "\n".join(map(json.dumps, lines)),
        "mine.jsonl": json.dumps(recording("nothing yet")) + "\n",
    }
    providers = {
        "tape": {"kind": "replay", "file": "tape.jsonl", "retry": {"tries": 1}},
        "mine": {"kind": "replay", "file": "mine.jsonl", "speed": 0},
    }
    aliases = {"safe": ["tape:down", "tape:any"]}
    with Stack(interactive=2, providers=providers, aliases=aliases, files=files) as stack:
        yield stack
        stack.check_balanced()


@pytest.fixture
def api(stack: Stack) -> Iterator[Api]:
    with stack.api() as api:
        yield api


class TestWhichOne:
    async def test_a_request_that_a_recording_names(self, tape: Path) -> None:
        """The first whose fields it has, the model among them; else one that is for any."""
        ours = {"messages": [{"role": "user", "content": "you?"}]}
        backend = replay(
            tape,
            recording("warm", request={**ours, "temperature": 1}),
            recording("me", request=ours),
            recording("other", request={"model": "other"}),
            recording("any"),
        )
        assert said(await played(backend, "you?")) == "me"
        assert said(await played(backend, "you?", temperature=1)) == "warm"
        assert said(await played(backend, "who?")) == "any"

    async def test_the_same_request_has_the_same_answer(self, tape: Path) -> None:
        """In every process, whatever is only about its delivery; and all recordings have their requests."""
        lines = [recording(str(number)) for number in range(4)]
        one, other = replay(tape, *lines), replay(tape, *lines)
        answers = [said(await played(one, f"question {n}")) for n in range(100)]
        again = [said(await played(other, f"question {n}", metadata={"n": str(n)})) for n in range(100)]
        assert answers == again
        assert set(answers) == {"0", "1", "2", "3"}

    async def test_a_request_without_one(self, tape: Path) -> None:
        backend = replay(tape, recording("me", request={"seed": 1}))
        with pytest.raises(ProviderError) as caught:
            await played(backend)
        assert (caught.value.code, caught.value.http_status) == ("no_recording", 404)


async def test_the_example_s_recordings() -> None:
    """``examples/recordings.jsonl`` plays as it is."""
    fields = {"name": "tape", "kind": "replay", "file": str(ROOT / "examples/recordings.jsonl"), "speed": 0}
    backend = Replay(Provider.model_validate(fields), httpx.AsyncHTTPTransport())
    assert said(await played(backend, "What is a tailrace?")).startswith("A tailrace is")
    assert said(await played(backend, "And what else?"))


class TestTiming:
    async def test_chunks_come_when_they_came(self, tape: Path) -> None:
        """Each not before its time, divided by the speed; 0 is all at once."""
        loop = asyncio.get_running_loop()
        backend = replay(tape, recording("a", "b", "c", every=100), speed=2)
        began = loop.time()
        async with backend.stream(Call({}, "any")) as pieces:
            at = [loop.time() - began async for _ in pieces]
        assert len(at) == 5
        assert all(came >= due for came, due in zip(at, (0, 0.05, 0.1, 0.15, 0.15), strict=True))
        once = await played(replay(tape, recording("a", "b", every=3_600_000), speed=0))
        assert [len(piece) for piece in once] == [3, 1]


class TestFaults:
    async def test_a_refusal(self, tape: Path) -> None:
        line = {"status": 429, "error": {"message": "slow down", "code": "busy"}}
        with pytest.raises(ProviderError) as caught:
            await played(replay(tape, line))
        assert (caught.value.provider_status, caught.value.message) == (429, "slow down")

    async def test_a_stream_that_broke_off(self, tape: Path) -> None:
        pieces = await played(replay(tape, {**recording("half"), "whole": False}))
        assert DONE not in [data for piece in pieces for data in piece]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "no recordings"),
            ("\n\n", "no recordings"),
            ('{"chunks": []}\nnonsense', "line 2"),
            ('{"chunks": 1}', "line 1"),
            ('{"chunk": []}', "chunk"),
            ("[1]", "line 1"),
        ],
    )
    def test_a_file_that_is_none(self, tape: Path, text: str, words: str) -> None:
        tape.write_text(text)
        fields = {"name": "tape", "kind": "replay", "file": str(tape)}
        with pytest.raises(ConfigurationError, match=words):
            Replay(Provider.model_validate(fields), httpx.AsyncHTTPTransport())

    def test_no_file(self, tape: Path) -> None:
        fields = {"name": "tape", "kind": "replay", "file": str(tape)}
        with pytest.raises(ConfigurationError, match=r"tape\.jsonl"):
            Replay(Provider.model_validate(fields), httpx.AsyncHTTPTransport())


class TestPipeline:
    """Through gateway, queue and worker."""

    def test_it_answers_like_any_provider(self, stack: Stack, api: Api) -> None:
        whole = api.seed(model="tape:whatever")
        assert (whole.text, whole.last.event) == ("recorded earlier", "done")
        assert api.plain(model="tape:whatever").json()["resolved_provider"] == "tape"
        assert api.plain(model="safe").json()["resolved_model"] == "any"

    def test_another_worker_goes_on(self, stack: Stack, api: Api) -> None:
        """kill -9 in the middle of a recording: the same one is played, and readers see no seam."""
        with api.events(asking(model="tape:slow", temperature=0)) as stream:
            frames = stream.next(5)
            victim = stack.worker_of(stream.id)
            victim.end(signal.SIGKILL)
            victim.start(stack.folder)
            frames += stream.rest()
        assert frames[-1].event == "done"
        assert api.follow(stream.id).text == "".join(f" {n}" for n in range(60))

    def test_record_and_play(self, stack: Stack, api: Api) -> None:
        """What ``tailrace tail --record`` writes is played, chunk for chunk."""
        made = api.background(model="fake", fake={"chunks": 30, "interval_ms": 20, "logprobs": True})
        file = stack.folder / "made.jsonl"
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tailrace", "tail", made, "--record", str(file)],
            env={**stack.environment, "TAILRACE_URL": stack.url, "TAILRACE_API_KEY": api.api_key},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, ordered(30) + "\n")
        (line,) = map(json.loads, file.read_text().splitlines())
        offsets = [offset for offset, _ in line["chunks"]]
        assert offsets == sorted(offsets)
        with (stack.folder / "mine.jsonl").open("a") as mine:
            mine.write(json.dumps({**line, "request": {"model": "made"}}) + "\n")
        for name in ("interactive0", "interactive1"):
            stack.parts[name].end(signal.SIGTERM)
            stack.parts[name].start(stack.folder)
        original, again = api.follow(made), api.seed(model="mine:made")
        assert again.last.event == "done"

        def plain(whole: Any) -> list[dict[str, Any]]:
            own = {"id", "created", "model", "resolved_model", "resolved_provider"}
            return [{k: v for k, v in c.items() if k not in own} for c in whole.chunks.values()]

        assert plain(again) == plain(original)
