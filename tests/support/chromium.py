"""Debian's Chromium without a screen, driven by selenium."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def started_chromium(
    profile: Path, *, logs: Mapping[str, str] | None = None, hosts: Sequence[str] = ()
) -> Generator[Chrome]:
    """A browser with a profile of its own, an empty folder. ``hosts``: rules for names of hosts, ``MAP name
    address:port``. ``logs``: what ``get_log`` is to hold, log → level."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary is not None, "install Debian's chromium"
    assert driver is not None, "install Debian's chromium-driver"
    options = ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if hosts:
        options.add_argument("--host-resolver-rules=" + ", ".join(hosts))
    if logs is not None:
        options.set_capability("goog:loggingPrefs", dict(logs))
    browser = Chrome(options, ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()
