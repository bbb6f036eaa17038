"""Uploads that are large, that are cut off, or whose storage is S3 or away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery
from sqlalchemy import select, update

from schemas.messaging import HOUSEKEEPING, celery_config
from schemas.settings import Settings
from schemas.tables import files
from stores.files import GRACE_MS
from stores.sql import writing
from stores.storage import ABANDONED
from tests.gateway.test_files import (
    BOUNDARY,
    FILE,
    FILES,
    LINE,
    PURPOSE,
    folder_of,
    listed,
    names,
    stored,
    upload,
)
from tests.support.api import Api, error_of
from tests.support.ports import free_port
from tests.support.s3 import S3Server
from tests.support.stack import Stack
from tests.support.valkey import wait_until

MIB = 1024 * 1024


@pytest.fixture
def gateway(stack: Stack) -> Iterator[tuple[str, int]]:
    """One that a test may watch or kill: its URL and its process."""
    port = free_port()
    part = stack.add_gateway("uploads", port)
    yield f"http://127.0.0.1:{port}", part.pid
    stack.remove("uploads")


@contextmanager
def watched(pid: int) -> Generator[list[int]]:
    """The resident memory of a process, in bytes, from before the block on and as long as it lasts."""
    process = psutil.Process(pid)
    sizes = [process.memory_info().rss]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            sizes.append(process.memory_info().rss)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def test_memory_stays_flat_whatever_the_size(api: Api, gateway: tuple[str, int], tmp_path: Path) -> None:
    """300 MiB go through a gateway in both directions, which takes less than 100 MiB more than at rest."""
    url, pid = gateway
    large = tmp_path / "large.bin"
    with large.open("wb") as out:
        for number in range(300):
            out.write(number.to_bytes(2, "big") * (MIB // 2))
    id = stored(api, url=f"{url}{FILES}")["id"]  # all that is made for the first one
    assert api.get(f"{url}{FILES}/{id}/content").content == LINE
    with watched(pid) as sizes:
        with large.open("rb") as data:
            answer = api.post(f"{url}{FILES}", data={"purpose": "batch"}, files={"file": data}, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["bytes"] == 300 * MIB
        uploaded = len(sizes)
        with (
            large.open("rb") as data,
            api.stream("GET", f"{url}{FILES}/{answer.json()['id']}/content", timeout=120) as content,
        ):
            for piece in content.iter_bytes(MIB):
                assert data.read(len(piece)) == piece
            assert data.read(1) == b""
    assert uploaded > 5
    assert len(sizes) > uploaded + 5
    assert max(sizes) - sizes[0] < 100 * MIB
    assert api.delete(f"{FILES}/{answer.json()['id']}").status_code == 200


def housekeep(stack: Stack) -> None:
    app: Any = Celery("test", set_as_current=False)
    app.conf.update(celery_config(Settings(redis_url=stack.valkey.url)))
    with app:
        app.send_task(HOUSEKEEPING, queue="bulk")


@contextmanager
def half_an_upload(stack: Stack, api: Api, url: str) -> Generator[socket.socket]:
    """A connection on which the rest of a file doesn't come; most of what came is in the storage."""
    before = names(stack)
    head = (
        f"POST {FILES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.api_key}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: 9000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as client:
        client.sendall(head.encode() + PURPOSE + FILE.removesuffix(b"\r\n") + b"x" * 3_000_000)

        def written() -> int:
            return sum((folder_of(stack) / name).stat().st_size for name in names(stack) - before)

        wait_until(lambda: written() >= 2 * MIB, 60, "bytes in the storage")
        yield client


def rows_of(stack: Stack, tenant: str) -> list[str]:
    """All that are there, hidden ones too."""
    with stack.engine.connect() as connection:
        return [*connection.scalars(select(files.c.id).where(files.c.tenant == tenant))]


def test_a_gateway_that_is_killed_leaves_no_row(stack: Stack, api: Api, gateway: tuple[str, int]) -> None:
    """And the temporary that it leaves goes with house-keeping, when nobody has written to it for a day."""
    before = names(stack)
    url, pid = gateway
    with half_an_upload(stack, api, url) as client:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
    assert rows_of(stack, api.tenant) == []
    (left,) = names(stack) - before
    old = time.time() - ABANDONED - 60
    os.utime(folder_of(stack) / left, (old, old))
    housekeep(stack)
    wait_until(lambda: names(stack) == before, 60, "a folder without temporaries")


def test_a_gateway_that_stops_leaves_nothing(stack: Stack, api: Api, gateway: tuple[str, int]) -> None:
    """When the upload's grace is over."""
    before = names(stack)
    url, pid = gateway
    with half_an_upload(stack, api, url) as client:
        os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1000):
                pass
    wait_until(lambda: not stack.parts["uploads"].alive, 60, "its end")
    assert names(stack) == before
    assert rows_of(stack, api.tenant) == []


def test_house_keeping_removes_what_expired(each_stack: Stack, each_api: Api) -> None:
    """An hour later, with its bytes; and what was announced and never published."""
    expired, kept = stored(each_api)["id"], stored(each_api)["id"]
    past = int(time.time() * 1000) - GRACE_MS - 1000
    with writing(each_stack.engine) as connection:
        connection.execute(update(files).where(files.c.id == expired).values(expires_ms=past))
    housekeep(each_stack)
    wait_until(lambda: expired not in names(each_stack), 60, "the end of the bytes")
    wait_until(lambda: rows_of(each_stack, each_api.tenant) == [kept], 60, "the end of the row")
    assert each_api.get(f"{FILES}/{kept}/content").content == LINE


def test_files_in_s3(stack: Stack, s3: S3Server, api: Api) -> None:
    """The same, with the bytes in a bucket; without it, 503 and nothing is kept."""
    bucket = s3.new_bucket()
    port, away = free_port(), free_port()
    where = {**s3.environment, "TAILRACE_FILES": f"s3://{bucket}/files"}
    stack.add_gateway("in-s3", port, **where)
    stack.add_gateway("s3-away", away, **{**where, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"})
    try:
        url = f"http://127.0.0.1:{port}{FILES}"
        data = os.urandom(20 * MIB)
        small, large = stored(api, url=url)["id"], stored(api, data, url=url)["id"]
        assert sorted(s3.objects(bucket)) == [f"files/{small}", f"files/{large}"]
        assert api.get(f"{url}/{small}/content").content == LINE
        assert api.get(f"{url}/{large}/content").content == data
        assert upload(api, b"x" * 10 * MIB, url=url, purpose="no").status_code == 400
        url = f"http://127.0.0.1:{away}{FILES}"
        for answer in (upload(api, url=url), upload(api, data, url=url), api.get(f"{url}/{small}/content")):
            assert answer.status_code == 503
            assert "storage" in error_of(answer)["message"]
        assert listed(api) == [large, small]
        url = f"http://127.0.0.1:{port}{FILES}"
        assert api.delete(f"{url}/{small}").status_code == 200
        assert s3.objects(bucket) == [f"files/{large}"]
        assert api.delete(f"{url}/{large}").status_code == 200
        assert s3.objects(bucket) == []
    finally:
        stack.remove("in-s3")
        stack.remove("s3-away")


def test_a_storage_that_cannot_be_used_is_told_at_the_start(stack: Stack, tmp_path: Path) -> None:
    """In one line."""
    (tmp_path / "file").touch()
    for where in (str(tmp_path / "file" / "x"), "gs://bucket/x", "s3://"):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "gateway", "--port", str(free_port())],
            env={**stack.environment, "TAILRACE_FILES": where},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "TAILRACE_FILES" in line
