"""curl on the seed's endpoint: the frames as they come, in the framing that its page describes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.api import CHAT, SEED, Api, asking, ordered, parse_frames, text_of
from tests.support.stack import SETTINGS

pytestmark = pytest.mark.system


@contextmanager
def curl(api: Api, path: str, *arguments: str) -> Generator[subprocess.Popen[bytes]]:
    """``curl -N`` with the key; ``stdout`` is unbuffered."""
    url = str(api.base_url.join(path))
    command = ["curl", "-N", "-sS", url, "-H", f"Authorization: Bearer {api.api_key}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def shown(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What curl prints, as it prints it."""
    assert process.stdout is not None
    while piece := process.stdout.read(65536):
        yield piece
    assert process.wait(10) == 0


def question(content: str = "hi", **more: object) -> list[str]:
    return ["-H", "Content-Type: application/json", "-d", json.dumps(asking(content, **more))]


def test_frames_are_shown_as_they_come(api: Api) -> None:
    """The first is there while the provider still talks; each has ``event`` and ``data``, the last is ``done``."""
    with curl(api, SEED, *question(fake={"chunks": 20, "interval_ms": 50})) as process:
        frames = (frame for frame in parse_frames(shown(process)) if not frame.is_comment)
        first = next(frames)
        assert api.backend.active > 0, "the answer was held back until it was whole"
        *rest, done = frames
    chunks = [first, *rest]
    assert [frame.event for frame in chunks] == ["message"] * len(chunks)
    assert text_of(frame.data for frame in chunks) == ordered(20)
    assert (done.event, done.data) == ("done", None)


def test_a_failure_is_shown_as_an_error_event(api: Api) -> None:
    """Its data is one JSON string."""
    order = {"status": 400, "error": {"message": "as ordered", "code": "some_code"}}
    with curl(api, SEED, *question(fake=order)) as process:
        *_, last = parse_frames(shown(process))
    assert last.event == "error"
    assert last.data.startswith("some_code: as ordered")


def test_a_stream_is_resumed(api: Api) -> None:
    """By the completion's own URL, and by the same command with one header more."""
    whole = api.seed(api.tenant)
    by_url = (f"{CHAT}/{whole.id}/stream?after=7",)
    by_header = (SEED, *question(api.tenant), "-H", "x-last-chunk-index: 7")
    for path, *arguments in (by_url, by_header):
        with curl(api, path, *arguments) as process:
            frames = [frame for frame in parse_frames(shown(process)) if not frame.is_comment]
        assert frames == whole.frames[8:]


@pytest.mark.parametrize("header", ["Expect: 100-continue", "Expect:", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_large_is_told(api: Api, tmp_path: Path, header: str) -> None:
    """Whether curl asks first or is still sending, it shows the error."""
    body = tmp_path / "body.json"
    body.write_bytes(b" " * (2 * int(SETTINGS["MAX_BODY_BYTES"])))
    with curl(api, SEED, "-H", header, "--data-binary", f"@{body}") as process:
        answer = json.loads(b"".join(shown(process)))
    assert answer["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("option", ["--http2", "--http1.0", "--compressed"])
def test_a_large_question_in_other_ways_to_speak_http(api: Api, tmp_path: Path, option: str) -> None:
    """An offer to change the protocol, an older one, and compression are no obstacle; 100 Continue is answered."""
    body = tmp_path / "body.json"
    body.write_text(json.dumps(asking("x" * 1_500_000)))
    with curl(api, SEED, option, "-H", "Expect: 100-continue", "--data-binary", f"@{body}") as process:
        *_, last = parse_frames(shown(process))
    assert last.event == "done"
