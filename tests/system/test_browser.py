"""Chromium: a page with an EventSource follows a stream by token, loses its connection, resumes, and stops at the end."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.support.api import CHAT, Api, ordered
from tests.support.proxy import Proxy
from tests.support.stack import ORIGIN, Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.system

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
)

#: Notes what an EventSource does. ``done`` closes it only where the page says so.
PAGE = """<!doctype html><title>tail</title><script>
window.seen = []; window.ends = []; window.opens = 0; window.errors = 0;
function follow(url, closing) {
  const source = window.source = new EventSource(url);
  source.onopen = () => window.opens++;
  source.onmessage = (e) => window.seen.push([e.lastEventId, JSON.parse(e.data)]);
  source.addEventListener("done", (e) => { window.ends.push(["done", e.lastEventId, e.data]);
    if (closing) source.close(); });
  source.addEventListener("error", (e) => {
    if (e.data === undefined) window.errors++; else window.ends.push(["error", e.lastEventId, e.data]); });
}
</script>"""


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The page's URL, on another origin than the gateway's."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    binary, driver_binary = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary and driver_binary, "apt-get install chromium chromium-driver"
    options.binary_location = binary
    profile: Path = tmp_path_factory.mktemp("chromium")
    # The page's origin is the one that TAILRACE_CORS_ORIGINS names.
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(driver_binary))
    try:
        yield driver
    finally:
        driver.quit()
