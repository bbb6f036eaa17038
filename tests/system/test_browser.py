"""A page in Chromium follows streams with nothing but EventSource, through connections that break."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome

from tests.support.api import CHAT, Api, ordered, text_of
from tests.support.chromium import started_chromium
from tests.support.stack import ORIGIN, Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.system

STRANGE_ORIGIN = "http://other.example"
#: EventSource.readyState
CONNECTING, CLOSED = 0, 2

PAGE = b"""<!doctype html><title>follows</title><script>
const seen = [], ends = [];
let source, failure = null;
async function follow(gateway, key, id) {
  try {
    const path = `/v1/chat/completions/${id}`, headers = {Authorization: `Bearer ${key}`};
    const answer = await fetch(`${gateway}${path}/token`, {method: "POST", headers});
    listen(gateway + (await answer.json()).url);
  } catch (error) { failure = String(error); }
}
function listen(url) {
  source = new EventSource(url);
  source.addEventListener("message", (e) => seen.push([Number(e.lastEventId), JSON.parse(e.data)]));
  for (const name of ["done", "error"])  // a broken connection is an "error" too, one without data
    source.addEventListener(name, (e) => { if (e.data !== undefined) ends.push([name, JSON.parse(e.data)]); });
}
</script>"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page_port() -> Iterator[int]:
    """A server whose every path is the page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def chromium(page_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser to which our two origins are the page's server."""
    names = [urlsplit(origin).hostname for origin in (ORIGIN, STRANGE_ORIGIN)]
    hosts = [f"MAP {name} 127.0.0.1:{page_port}" for name in names]
    with started_chromium(tmp_path_factory.mktemp("chromium"), hosts=hosts) as browser:
        yield browser


class Wire:
    """A TCP proxy before the gateway whose connections can be cut; it knows which requests went through."""

    def __init__(self, port: int) -> None:
        self._far = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def streams(self) -> list[str]:
        """The heads of the requests for a stream."""
        return [r for r in self.requests if r.startswith("GET ") and "/stream?token=" in r]

    def cut(self) -> None:
        """Break every connection that is open."""
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._far)
                self._open |= {near, far}
                for source, target in ((near, far), (far, near)):
                    asks = source is near
                    threading.Thread(target=self._pump, args=(source, target, asks), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if asks:
                    self.requests.append(data.decode("latin-1"))
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()


@pytest.fixture
def wire(stack: Stack) -> Iterator[Wire]:
    made = Wire(stack.port)
    yield made
    made.close()


class Reader:
    """The page, following one completion."""

    def __init__(self, browser: Chrome, origin: str = ORIGIN) -> None:
        self._browser = browser
        browser.get(f"{origin}/")

    def follow(self, gateway: str, api: Api, completion_id: str) -> None:
        """The page gets itself a token and listens."""
        self._browser.execute_script("follow(...arguments)", gateway, api.api_key, completion_id)

    def listen(self, url: str) -> None:
        """The page has got the token's URL from somebody."""
        self._browser.execute_script("listen(...arguments)", url)

    def value(self, expression: str) -> Any:
        return self._browser.execute_script(f"return {expression}")

    def until(self, expression: str) -> None:
        """Wait until it is true in the page."""
        wait_until(lambda: bool(self.value(expression)), 30.0, expression)

    def until_stopped(self) -> None:
        """Wait until the browser has given up coming back, which is for good."""
        self.until(f"source && source.readyState === {CLOSED}")

    @property
    def indexes(self) -> list[int]:
        return [index for index, _ in self.value("seen")]

    @property
    def text(self) -> str:
        return text_of(chunk for _, chunk in self.value("seen"))


def test_a_page_resumes_where_its_connection_broke_and_stops_at_the_end(
    chromium: Chrome, wire: Wire, api: Api
) -> None:
    """No gap and no repeat, ``done`` once, and after 204 the browser asks no more."""
    page = Reader(chromium)
    completion_id = api.background(fake={"chunks": 120, "interval_ms": 50})
    page.follow(wire.url, api, completion_id)
    page.until("seen.length >= 10")
    wire.cut()
    page.until(f"source.readyState === {CONNECTING}")
    before = page.indexes
    page.until_stopped()
    assert page.value("failure") is None
    assert page.value("ends") == [["done", None]]
    assert page.indexes == list(range(len(page.indexes)))
    assert page.text == ordered(120)
    assert len(before) < len(page.indexes)
    first, resumed, stopped = wire.streams()
    assert "last-event-id" not in first.lower()
    assert f"last-event-id: {before[-1]}\r\n" in resumed.lower()
    assert f"last-event-id: {len(page.indexes)}\r\n" in stopped.lower()


def test_a_failed_completion_is_an_error_event_with_data_and_an_end(
    chromium: Chrome, wire: Wire, api: Api
) -> None:
    """The page tells it from a broken connection by its data; coming back stops it."""
    order = {"chunks": 20, "interval_ms": 20, "error_event_after": 10, "error": {"message": "out of tokens"}}
    completion_id = api.background(fake=order)
    page = Reader(chromium)
    page.follow(wire.url, api, completion_id)
    page.until_stopped()
    assert page.value("ends") == [["error", "ordered: out of tokens"]]
    assert page.indexes == list(range(len(page.indexes)))
    assert page.text == ordered(10)
    assert len(wire.streams()) == 2


def test_a_page_of_another_origin_gets_nothing(chromium: Chrome, wire: Wire, api: Api) -> None:
    """Neither a token with a key, nor a stream with a token."""
    completion_id = api.seed().id
    page = Reader(chromium, STRANGE_ORIGIN)
    page.follow(wire.url, api, completion_id)
    page.until("failure")
    assert not any(r.startswith("POST ") for r in wire.requests), "the preflight let it through"
    page.listen(wire.url + api.post(f"{CHAT}/{completion_id}/token").json()["url"])
    page.until_stopped()
    assert page.value("seen") == []
    assert page.value("ends") == []


def test_the_docs_page_is_readable(chromium: Chrome, stack: Stack) -> None:
    """Every operation is on it and opens, and nothing is loaded from elsewhere."""
    chromium.get(f"{stack.url}/docs")
    assert chromium.title == "Tailrace API"
    shown = chromium.execute_script("return document.body.innerText")
    for part in ("POST", CHAT, "/v1/models", "Bearer"):
        assert part in shown
    assert "x-last-chunk-index" not in shown
    chromium.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert "x-last-chunk-index" in chromium.execute_script("return document.body.innerText")
    loaded = chromium.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(urlsplit(name).path == "/favicon.ico" for name in loaded)
