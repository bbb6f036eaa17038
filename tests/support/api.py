"""The gateway as a client on the wire sees it: requests with a key, and SSE frames line by line."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tests.support.backend import Backend, Received

SEED = "/api/v1/llm/chat/completions/stream"
CHAT = "/v1/chat/completions"
#: No test waits longer for the next byte.
PATIENCE = 30.0


@dataclass(frozen=True)
class Frame:
    """One block of an event stream: its lines as (field, value), in the order in which they came."""

    lines: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        found = [value for field, value in self.lines if field == name]
        assert len(found) < 2, f"{name} twice: {self.lines}"
        return found[0] if found else None

    @property
    def is_comment(self) -> bool:
        return all(name == "" for name, _ in self.lines)

    @property
    def event(self) -> str | None:
        return self.get("event")

    @property
    def id(self) -> int | None:
        text = self.get("id")
        return None if text is None else int(text)

    @property
    def data(self) -> Any:
        """The data as JSON; "[DONE]" as it is."""
        text = self.get("data")
        assert text is not None, self.lines
        return text if text == "[DONE]" else json.loads(text)


def parse_frames(pieces: Iterable[bytes]) -> Iterator[Frame]:
    """Frames as they become whole. What is left over at the end fails: we never send half a frame."""
    left = b""
    for piece in pieces:
        *blocks, left = (left + piece).split(b"\n\n")
        for block in blocks:
            yield _frame(block)
    assert not left, f"half a frame at the end: {left[-300:]!r}"


def _frame(block: bytes) -> Frame:
    assert b"\r" not in block, block
    lines: list[tuple[str, str]] = []
    for line in block.decode().split("\n"):
        name, colon, value = line.partition(":")
        assert colon, f"a line without a field: {line!r}"
        lines.append((name, value.removeprefix(" ")))
    return Frame(tuple(lines))


@dataclass
class EventStream:
    """An open answer. ``frames`` go on where the last one that was taken ended."""

    response: httpx.Response
    frames: Iterator[Frame] = field(init=False)

    def __post_init__(self) -> None:
        self.frames = parse_frames(self.response.iter_raw())

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> httpx.Headers:
        return self.response.headers

    @property
    def id(self) -> str:
        return self.headers["x-completion-id"]

    def next(self, count: int = 1) -> list[Frame]:
        """The next so many frames that are no comments."""
        found: list[Frame] = []
        while len(found) < count:
            frame = next(self.frames)
            if not frame.is_comment:
                found.append(frame)
        return found

    def rest(self) -> list[Frame]:
        """All frames to the end, without comments."""
        return [frame for frame in self.frames if not frame.is_comment]


@dataclass(frozen=True)
class Whole:
    """A stream that was read to its end."""

    id: str
    headers: httpx.Headers
    frames: list[Frame]

    @property
    def chunks(self) -> dict[int, dict[str, Any]]:
        """index → chunk, of the seed's framing."""
        found = {f.id: f.data for f in self.frames if f.event == "message"}
        assert None not in found
        return found  # type: ignore[return-value]

    @property
    def data(self) -> list[Any]:
        """The data of all frames, of OpenAI's framing."""
        return [f.data for f in self.frames]

    @property
    def text(self) -> str:
        return text_of([f.data for f in self.frames])

    @property
    def last(self) -> Frame:
        return self.frames[-1]

    @property
    def error(self) -> str:
        """The string of the error event at the end."""
        assert self.last.event == "error", self.last
        return self.last.data


def text_of(chunks: Iterable[Any], choice: int = 0) -> str:
    """The content of one choice, of whatever in ``chunks`` are chunks."""
    return "".join(
        part["delta"].get("content") or ""
        for chunk in chunks
        if isinstance(chunk, dict)
        for part in chunk.get("choices", ())
        if part["index"] == choice
    )


def ordered(chunks: int = 10) -> str:
    """What the fake backend says where nothing else is ordered."""
    return "".join(f" tok{i}" for i in range(chunks))


def asking(content: str = "hi", /, **more: Any) -> dict[str, Any]:
    """A request body; ``fake={…}`` is the order for the backend."""
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **more}


#: Bytes where they hold more than ASCII.
Headers = Mapping[str, str | bytes]


def encoded(headers: Headers | None) -> list[tuple[bytes, bytes]]:
    """Headers as httpx wants them where values are bytes."""
    return [(k.encode(), v.encode() if isinstance(v, str) else v) for k, v in (headers or {}).items()]


def dump(value: Any) -> bytes:
    """JSON; lone surrogates as escapes."""
    return json.dumps(value).encode()


def named(user: str) -> dict[str, bytes]:
    """The header that names the end user."""
    return {"X-On-Behalf-Of": user.encode()}


def anybody(url: str, **options: Any) -> httpx.Client:
    """A client without a key. (``verify=False``: certificates take long to load, and there is no TLS here.)"""
    return httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False, verify=False, **options)


class Api(httpx.Client):
    """An HTTP client with one key. Answers to plain calls are ``httpx.Response``s."""

    def __init__(self, url: str, key: str, *, tenant: str, backend: Backend) -> None:
        super().__init__(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=PATIENCE,
            trust_env=False,
            verify=False,
        )
        self.api_key = key
        self.key_id = f"key_{key.split('-')[1]}"
        self.tenant = tenant
        self.backend = backend

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    @contextmanager
    def events(
        self,
        body: Any = None,
        *,
        url: str = SEED,
        method: str = "POST",
        headers: Headers | None = None,
    ) -> Generator[EventStream]:
        """An answer in pieces; fails where it is no event stream."""
        content = None if body is None else dump(body)
        with self.stream(method, url, content=content, headers=encoded(headers)) as response:
            if response.status_code != 200:
                response.read()
                raise AssertionError(f"{response.status_code}: {response.text}")
            yield EventStream(response)

    def whole(
        self,
        body: Any = None,
        *,
        url: str = SEED,
        method: str = "POST",
        headers: Headers | None = None,
    ) -> Whole:
        """An event stream, read to its end."""
        with self.events(body, url=url, method=method, headers=headers) as stream:
            return Whole(stream.headers.get("x-completion-id", ""), stream.headers, stream.rest())

    def seed(self, content: str = "hi", /, *, headers: Headers | None = None, **more: Any) -> Whole:
        """A new completion on the seed's endpoint."""
        return self.whole(asking(content, **more), headers=headers)

    def openai(self, content: str = "hi", /, *, headers: Headers | None = None, **more: Any) -> Whole:
        """A new streamed completion on OpenAI's endpoint."""
        return self.whole(asking(content, stream=True, **more), url=CHAT, headers=headers)

    def plain(self, content: str = "hi", /, *, headers: Headers | None = None, **more: Any) -> httpx.Response:
        """A new completion on OpenAI's endpoint, not streamed."""
        return self.post(CHAT, content=dump(asking(content, **more)), headers=encoded(headers))

    def background(self, content: str = "hi", /, *, headers: Headers | None = None, **more: Any) -> str:
        """A new completion that nobody waits for; its id."""
        answer = self.plain(content, headers={"Prefer": b"respond-async", **(headers or {})}, **more)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def follow(
        self, completion_id: str, after: int | None = None, *, headers: Headers | None = None
    ) -> Whole:
        """A completion's stream from its own URL."""
        query = "" if after is None else f"?after={after}"
        return self.whole(url=f"{CHAT}/{completion_id}/stream{query}", method="GET", headers=headers)

    def stored(self, completion_id: str, *, headers: Headers | None = None) -> dict[str, Any]:
        """A completion as it is stored."""
        answer = self.get(f"{CHAT}/{completion_id}", headers=encoded(headers))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def provider_requests(self, content: str) -> list[Received]:
        """What the provider was asked with this content."""
        return [
            r for r in self.backend.completions if r.body and r.body["messages"][-1]["content"] == content
        ]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer in OpenAI's shape, with nothing beside it."""
    assert response.headers["content-type"] == "application/json", response.text
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert isinstance(body["error"]["message"], str), body
    assert body["error"]["message"], body
    assert "Traceback" not in body["error"]["message"]
    return body["error"]
