"""``curl -N`` on the seed's endpoint: frames as they come."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.support.api import SEED, Api, asking, ordered, parse_frames, text_of
from tests.support.stack import Stack

pytestmark = pytest.mark.system


def curl(api: Api, stack: Stack, *arguments: str, body: object) -> subprocess.Popen[bytes]:
    """The seed's own example, with our URL and key."""
    return subprocess.Popen(
        [
            *("curl", "--silent", "--show-error", "--request", "POST", "--url", f"{stack.url}{SEED}"),
            *("--header", f"Authorization: Bearer {api.api_key}"),
            *("--header", "Content-Type: application/json"),
            *("--data", json.dumps(body), *arguments),
        ],
        stdout=subprocess.PIPE,
    )


def test_curl_shows_each_frame_when_it_is_said(api: Api, stack: Stack) -> None:
    """The first ones long before the last, with the event and data of the seed's page."""
    body = asking(fake={"chunks": 10, "interval_ms": 150})
    with curl(api, stack, "-N", body=body) as process:
        assert process.stdout
        arrived: list[float] = []
        lines: list[bytes] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(b"event: message"):
                arrived.append(time.monotonic())
    assert process.returncode == 0
    assert arrived[-1] - arrived[0] > 0.9
    frames = [frame for frame in parse_frames([b"".join(lines)]) if not frame.is_comment]
    assert lines[0].startswith(b":")
    assert [frame.id for frame in frames] == list(range(len(frames)))
    assert text_of(frame.data for frame in frames) == ordered(10)
    assert frames[-1].event == "done"


def test_curl_resumes_where_it_was(api: Api, stack: Stack) -> None:
    """The same command with one header more."""
    with curl(api, stack, "-N", body=asking(api.tenant)) as first:
        whole = first.communicate()[0]
    with curl(api, stack, "-N", "--header", "x-last-chunk-index: 9", body=asking(api.tenant)) as second:
        rest = second.communicate()[0]
    frames = [frame for frame in parse_frames([whole]) if not frame.is_comment]
    assert [frame for frame in parse_frames([rest]) if not frame.is_comment] == frames[10:]


def test_curl_sends_a_large_body_with_expect(api: Api, stack: Stack) -> None:
    """It waits for 100 Continue, and gets it."""
    body = asking("x" * 1_500_000)
    with curl(api, stack, "--header", "Expect: 100-continue", "--data", "@-", body=body) as process:
        pass  # the second --data is appended to the first; the body is no JSON then
    assert process.returncode == 0
