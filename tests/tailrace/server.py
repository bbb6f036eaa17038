"""A stand-in for the gateway, as the client sees it: real sockets, and faults to order at any byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """A response. ``cut`` is after how many bytes of the body the connection is torn; ``hang`` keeps it open."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    cut: int | None = None
    hang: bool = False

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> Reply:
        named = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return cls(status, json.dumps(value).encode(), named)

    @classmethod
    def error(cls, status: int, code: str, message: str = "no", **headers: str) -> Reply:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        return cls.of({"error": error}, status, x_request_id="req-1", **headers)


def frames(chunks: list[dict[str, Any]], after: int, end: str = "done", error: str = "") -> bytes:
    """The seed's framing of the chunks behind ``after``, with keep-alive comments between them."""
    lines = [": hello\n\n"]
    for index, chunk in enumerate(chunks):
        if index > after:
            lines.append(f"id: {index}\nevent: message\ndata: {json.dumps(chunk, ensure_ascii=False)}\n\n")
            lines.append(": keep-alive\n\n")
    if end == "done":
        lines.append(f"event: done\nid: {len(chunks)}\ndata: null\n\n")
    elif end == "error":
        lines.append(f"event: error\nid: {len(chunks)}\ndata: {json.dumps(error)}\n\n")
    return "".join(lines).encode()


@dataclass
class StandIn:
    """``answer`` gets every request that ``faults`` does not take first; ``requests`` remembers all of them."""

    answer: Callable[[Request], Reply]
    faults: list[Reply | None] = field(default_factory=list[Reply | None])
    requests: list[Request] = field(default_factory=list[Request])
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await _read(reader):
                self.requests.append(request)
                fault = self.faults.pop(0) if self.faults else None
                reply = fault or self.answer(request)
                await _write(writer, reply)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def stand_in(answer: Callable[[Request], Reply]) -> AsyncGenerator[StandIn]:
    server_state = StandIn(answer)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        await server_state.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    server_state.url = f"http://{host}:{port}"
    try:
        yield server_state
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    return Request(method, unquote(parts.path), query, headers, body)


async def _write(writer: asyncio.StreamWriter, reply: Reply) -> None:
    """Send with a length, so that a torn body can't look whole."""
    head = f"HTTP/1.1 {reply.status} X\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    if reply.status != 204 and not (reply.hang and reply.cut is None):
        head += f"Content-Length: {len(reply.body)}\r\n"
    writer.write(head.encode() + b"\r\n" + reply.body[: reply.cut])
    await writer.drain()
    if reply.hang:
        await asyncio.Event().wait()
    if reply.cut is not None:
        raise ConnectionResetError


SSE = {"Content-Type": "text/event-stream"}


class Gateway:
    """Completions held in memory, and the client's endpoints over them."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[dict[str, Any]]] = {}
        self.status: dict[str, str] = {}
        self.error: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}

    def add(self, id: str, texts: list[str], status: str = "completed", **error: Any) -> None:
        self.chunks[id] = [
            {"id": id, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
            for text in texts
        ]
        self.status[id] = status
        if error:
            self.error[id] = {"type": "provider_error", "param": None, **error}

    def completion(self, id: str) -> dict[str, Any]:
        text = "".join(c["choices"][0]["delta"]["content"] for c in self.chunks[id])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {
            "id": id,
            "object": "chat.completion",
            "status": self.status[id],
            "choices": [choice] if self.status[id] == "completed" else [],
            "error": self.error.get(id),
        }

    def __call__(self, request: Request) -> Reply:
        match request.method, request.path.strip("/").split("/")[1:]:
            case "POST", ["chat", "completions"]:
                id = self.by_key.setdefault(
                    request.headers["idempotency-key"], f"chatcmpl-{len(self.by_key)}"
                )
                if id not in self.chunks:
                    self.add(id, ["Hel", "lo"])
                return Reply.of({"id": id, "status": "queued"}, 202)
            case "GET", ["chat", "completions", id, "stream"] if id in self.chunks:
                after = int(request.query["after"])
                failed = self.status[id] in ("failed", "cancelled")
                if after >= len(self.chunks[id]) - 1 and after >= 0:
                    return Reply(204)
                end = "error" if failed else "done"
                text = ": ".join((self.error.get(id, {}).get("code", self.status[id]), "it went wrong"))
                return Reply(200, frames(self.chunks[id], after, end, text), SSE)
            case "GET", ["chat", "completions", id] if id in self.chunks:
                return Reply.of(self.completion(id))
            case "POST", ["chat", "completions", id, "cancel"] if id in self.chunks:
                self.status[id] = "cancelled"
                return Reply.of(self.completion(id))
            case "GET", ["chat", "completions"]:
                ids = sorted(self.chunks)
                start = ids.index(request.query["after"]) + 1 if "after" in request.query else 0
                page = ids[start : start + int(request.query["limit"])]
                more = start + len(page) < len(ids)
                return Reply.of({"data": [self.completion(id) for id in page], "has_more": more})
            case "GET", ["models"]:
                return Reply.of({"data": [{"id": "smollm2"}]})
            case _:
                return Reply.error(404, "not_found", f"no {request.path}")
