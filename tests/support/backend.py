"""A fake model backend over HTTP, with faults to order (see ``tests/support/orders.py``), cheap enough to measure by.

In a test it is the fixture ``backend``; ``python -m tests.support.backend --port 9000`` is the same as a process.
An ``asyncio.Protocol`` rather than a framework: in benchmarks it shares the machine with what is measured. Bytes are
encoded once per distinct order, and a stream has one timer, which does not drift.

Beside ``POST …/chat/completions`` and ``GET …/models`` it answers ``GET /requests`` (what came in), ``POST /reset``,
and ``POST /script`` (a list of orders for the requests to come that order nothing themselves).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, cast

import msgspec

from tests.support.orders import Plan, dump, json_answer, plan

#: `GET /v1/models` answers with these where nothing else is said.
MODELS = ("fake", "fake-b")


@dataclass(slots=True)
class Received:
    """One request as it came in, and what became of its answer. Times are ``time.time()``."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    raw: bytes = field(repr=False)
    at: float
    sent_steps: int = 0
    first_byte_at: float | None = None
    #: "complete": sent to its ordered end; "cut": ended by order before that; "closed": the client went away first.
    ended: Literal["complete", "cut", "closed"] | None = None
    ended_at: float | None = None
    #: The client's.
    port: int = 0

    @property
    def body(self) -> Any:
        """The body as JSON, None where it is none."""
        try:
            return json.loads(self.raw)
        except ValueError:
            return None

    @property
    def prompt(self) -> str:
        """The last message's text; of one that has parts nothing."""
        content = self.body["messages"][-1]["content"] if self.body else None
        return content if isinstance(content, str) else ""

    @property
    def is_completion(self) -> bool:
        return self.path.endswith("/chat/completions")

    def as_json(self) -> dict[str, Any]:
        names = ("method", "path", "headers", "at", "sent_steps", "first_byte_at", "ended", "ended_at")
        return {name: getattr(self, name) for name in names} | {"body": self.body}


class Backend:
    """The server. ``start`` runs it in a thread of its own; ``serve`` on the running loop."""

    def __init__(
        self,
        *,
        port: int = 0,
        models: Sequence[str] | None = MODELS,
        record: bool = True,
        backlog: int = 2048,
        journal: Path | None = None,
    ) -> None:
        self.port = port
        #: None: `GET /v1/models` is 404, as with a provider that has no list.
        self.models = models
        self.record = record
        self.requests: list[Received] = []
        self.active = 0
        self.peak = 0
        self._backlog = backlog
        self._script: deque[Any] = deque()
        self._seen: Counter[bytes] = Counter()
        self._journal: BinaryIO | None = None
        if journal is not None:
            self._seen.update(read_journal(journal))
            self._journal = journal.open("ab", buffering=0)
        self._connections: set[_Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # ---------------------------------------------------------------------------------------- for tests

    @property
    def url(self) -> str:
        """``base_url`` for providers.toml."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def completions(self) -> list[Received]:
        """The chat completion requests, oldest first."""
        return [r for r in list(self.requests) if r.is_completion]

    def script(self, *orders: dict[str, Any]) -> None:
        """Orders for the next requests that have no ``fake`` field, one each."""
        self._script.extend(orders)

    def reset(self) -> None:
        """Forget requests, script and what lists were seen. Streams that run go on."""
        self.requests.clear()
        self._script.clear()
        self._seen.clear()
        self.peak = self.active

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Poll ``condition``. Raises TimeoutError with the requests so far."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds} s: {self.requests}")
            time.sleep(0.005)

    def wait_for(self, completions: int, seconds: float = 60.0) -> list[Received]:
        """Until so many chat completion requests have come in."""
        self.wait_until(lambda: len(self.completions) >= completions, seconds)
        return self.completions

    def start(self) -> Self:
        """Listen, in a thread of its own. After ``stop`` it starts again on the same port."""
        started: list[BaseException | None] = []
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(ready, started), name="fake-backend", daemon=True
        )
        self._thread.start()
        ready.wait()
        if started[0] is not None:
            raise started[0]
        return self

    def stop(self) -> None:
        """Stop listening and reset every connection: a provider that has gone."""
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
        self._loop = self._thread = None
        if self._journal is not None:
            self._journal.close()

    @contextlib.contextmanager
    def down(self) -> Generator[None]:
        """Gone for as long as the ``with`` lasts."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # ---------------------------------------------------------------------------------------- the loop

    def _run(self, ready: threading.Event, started: list[BaseException | None]) -> None:
        loop = new_loop()
        self._loop = loop
        try:
            server = loop.run_until_complete(self.serve())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            started.append(error)
            ready.set()
            loop.close()
            return
        started.append(None)
        ready.set()
        try:
            loop.run_forever()
        finally:
            server.close()
            for connection in list(self._connections):
                connection.reset()
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(server.wait_closed())
            loop.close()

    async def serve(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        self._loop = loop
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        return await loop.create_server(
            lambda: _Connection(self, loop), sock=listening, backlog=self._backlog
        )

    def answer(self, received: Received) -> Plan:
        """What goes out for this request."""
        method, path = received.method, received.path.partition("?")[0]
        if method == "POST" and path.endswith("/chat/completions"):
            return self._completion(received)
        if method == "GET" and path.endswith("/models"):
            if self.models is None:
                return json_answer(404, {"error": {"message": "no list", "type": "fake_error", "code": None}})
            data = [{"id": m, "object": "model", "created": 0, "owned_by": "fake"} for m in self.models]
            return json_answer(200, {"object": "list", "data": data})
        if method == "GET" and path == "/requests":
            return json_answer(200, [r.as_json() for r in self.requests])
        if method == "GET" and path == "/healthz":
            return json_answer(200, {"active": self.active, "peak": self.peak})
        if method == "POST" and path == "/reset":
            self.reset()
            return json_answer(200, {})
        if method == "POST" and path == "/script":
            self.script(*json.loads(received.raw))
            return json_answer(200, {})
        return json_answer(
            404, {"error": {"message": f"no {method} {path}", "type": "fake_error", "code": None}}
        )

    def _completion(self, received: Received) -> Plan:
        try:
            request = _decoder.decode(received.raw)
        except msgspec.MsgspecError:
            # What the fast decoder refuses and JSON allows, such as integers over 64 bits.
            try:
                request = msgspec.convert(json.loads(received.raw), _Request)
            except ValueError as error:
                return _bad(f"not a chat completion request: {error}")
        order = request.fake
        if order is None:
            order = self._script.popleft() if self._script else {}
        attempt, answer = 1, plan
        if request.fake_id is not None or isinstance(order, list):
            tried = dump(order) if request.fake_id is None else request.fake_id.encode()
            self._seen[tried] += 1
            attempt = self._seen[tried]
        if request.fake_id is not None:
            answer = plan.__wrapped__  # nobody asks for this try again: the cache is for others
            if self._journal is not None:
                self._journal.write(request.fake_id.encode() + b"\n")
        if isinstance(order, list):
            orders = cast(list[Any], order)
            order = orders[min(attempt, len(orders)) - 1]
        options = request.stream_options or {}
        include = bool(options.get("include_usage"))
        try:
            return answer(dump(order), request.model, request.n or 1, bool(request.stream), include, attempt)
        except msgspec.ValidationError as error:
            return _bad(f"not an order: {error}")


class _Request(msgspec.Struct):
    model: str
    stream: bool | None = None
    n: int | None = None
    stream_options: dict[str, Any] | None = None
    fake: Any = None
    fake_id: str | None = None


_decoder = msgspec.json.Decoder(_Request)


def read_journal(path: Path) -> list[bytes]:
    """The ``fake_id`` of each request that backends with this journal were asked, oldest first."""
    return path.read_bytes().split() if path.exists() else []


def _bad(message: str) -> Plan:
    return json_answer(
        400, {"error": {"message": message, "type": "fake_error", "param": "fake", "code": "bad_order"}}
    )


class _Connection(asyncio.Protocol):
    """One client connection: one request at a time, kept alive."""

    transport: asyncio.Transport

    def __init__(self, backend: Backend, loop: asyncio.AbstractEventLoop) -> None:
        self.backend = backend
        self.loop = loop
        self.buffer = bytearray()
        self.received: Received | None = None
        self.plan: Plan | None = None
        self.position = 0
        self.started = 0.0  # when step 0 was due, on the loop's clock
        self.timer: asyncio.Handle | None = None
        self.paused = False
        self.continued = False

    # ------------------------------------------------------------------------------------------ request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.backend._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.plan is None:
            self._next()

    def _next(self) -> None:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = self.buffer[:end].decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body, after = self._chunked(end + 4)
            if body is None:
                return
        else:
            after = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < after:
                if headers.get("expect", "").lower() == "100-continue" and not self.continued:
                    self.continued = True
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self.buffer[end + 4 : after])
        del self.buffer[:after]
        self.continued = False
        port: int = self.transport.get_extra_info("peername")[1]
        self._begin(Received(method, path, headers, body, time.time(), port=port))

    def _chunked(self, at: int) -> tuple[bytes | None, int]:
        parts: list[bytes] = []
        while True:
            line = self.buffer.find(b"\r\n", at)
            if line < 0:
                return None, 0
            size = int(self.buffer[at:line].split(b";")[0], 16)
            at = line + 2 + size + 2
            if len(self.buffer) < at:
                return None, 0
            if size == 0:
                return b"".join(parts), at
            parts.append(bytes(self.buffer[line + 2 : at - 2]))

    # ----------------------------------------------------------------------------------------- response

    def _begin(self, received: Received) -> None:
        backend = self.backend
        self.received = received
        if backend.record and received.path not in ("/requests", "/reset", "/script", "/healthz"):
            backend.requests.append(received)
        try:
            self.plan = backend.answer(received)
        except Exception as error:  # noqa: BLE001 - a mistake in the backend must not look like a network fault
            self.plan = json_answer(500, {"error": {"message": f"fake backend: {error!r}", "code": "bug"}})
        if received.is_completion:
            backend.active += 1
            backend.peak = max(backend.peak, backend.active)
        self.position = 0
        if self.plan.headers_delay:
            self.timer = self.loop.call_later(self.plan.headers_delay, self._head)
        else:
            self._head()

    def _head(self) -> None:
        self.timer = None
        p = self._plan
        if p.ending == "drop":
            self._ended("cut")
            self.transport.close()
            return
        if not p.first_delay and not p.interval and not p.separate and p.ending == "complete":
            self._first_byte()
            self.position = len(p.steps)
            self.transport.write(b"".join((p.head, *p.steps)))
            self._finish()
            return
        self.transport.write(p.head)
        self.started = self.loop.time() + p.first_delay
        if p.first_delay:
            self.timer = self.loop.call_at(self.started, self._tick)
        else:
            self._tick()

    @property
    def _plan(self) -> Plan:
        assert self.plan is not None
        return self.plan

    def _first_byte(self) -> None:
        if self.received is not None:
            self.received.first_byte_at = time.time()

    def _tick(self) -> None:
        """Write every step that is due, in one write; set the timer for the next."""
        self.timer = None
        if self.paused:
            return
        p = self._plan
        total = len(p.steps)
        if p.interval:
            # The loop's timers have a resolution of 1 ms: half of it is allowed for.
            due = min(total, int((self.loop.time() + 0.0005 - self.started) / p.interval) + 1)
        else:
            due = min(total, self.position + 1) if p.separate else total
        if due > self.position:
            if self.position == 0:
                self._first_byte()
            self.transport.write(b"".join(p.steps[self.position : due]))
            self.position = due
        if self.position >= total:
            self._finish()
        elif p.interval:
            self.timer = self.loop.call_at(self.started + self.position * p.interval, self._tick)
        elif not self.paused:
            self.timer = self.loop.call_soon(self._tick)

    def _finish(self) -> None:
        p = self._plan
        if p.ending == "stall":
            return
        if p.ending == "reset":
            self._ended("cut")
            # Let what was written leave first: an abort throws away what is still in the transport's buffer.
            self.timer = self.loop.call_later(0.02, self.reset)
            return
        self._ended("complete" if p.ending == "complete" else "cut")
        if p.ending == "close" or not p.keep_alive:
            self.transport.close()
            return
        if self.buffer:
            self._next()

    def _ended(self, how: Literal["complete", "cut", "closed"]) -> None:
        received = self.received
        if received is not None:
            received.sent_steps = self.position
            received.ended = how
            received.ended_at = time.time()
            if received.is_completion:
                self.backend.active -= 1
        self.received = self.plan = None

    # ----------------------------------------------------------------------------------------- transport

    def reset(self) -> None:
        """RST: the client sees the connection reset, not ended."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.plan is not None and self.timer is None and self.position < len(self.plan.steps):
            self._tick()

    def connection_lost(self, exc: Exception | None) -> None:
        self.backend._connections.discard(self)
        if self.timer is not None:
            self.timer.cancel()
        if self.received is not None:
            self._ended("closed")


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class BackendProcess:
    """The backend as a process of its own, for benchmarks and tests that count CPU."""

    def __init__(self, *, port: int = 0, record: bool = False) -> None:
        command = [sys.executable, "-m", "tests.support.backend", "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, *([] if record else ["--no-record"])],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the fake backend did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def main() -> None:
    """Print ``base_url`` once it listens; run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.backend", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--no-record", action="store_true", help="keep no requests: for long runs")
    parser.add_argument("--journal", type=Path, help="file that keeps each request's fake_id over a restart")
    options = parser.parse_args()
    backend = Backend(
        port=options.port,
        models=options.models or None,
        record=not options.no_record,
        journal=options.journal,
    )
    loop = new_loop()
    server = loop.run_until_complete(backend.serve())
    print(backend.url, flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, loop.stop)
    loop.run_forever()
    server.close()
    loop.close()


if __name__ == "__main__":
    main()
