"""An S3 server of its own: moto's, over real HTTP, with its objects in memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Self

import httpx

from tests.support.ports import free_port
from tests.support.valkey import wait_until

START_SECONDS = 60.0


class S3Server:
    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._buckets = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._client = httpx.Client(base_url=self.url, trust_env=False, verify=False, timeout=30)
        wait_until(self._answers, START_SECONDS, "S3 server")
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None
        try:
            return self._client.get("/moto-api/").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def environment(self) -> dict[str, str]:
        """What tells a process of ours where it is, and who we are."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        assert self._client.put(f"/{name}").status_code == 200
        return name

    def objects(self, bucket: str) -> list[str]:
        """The keys of all objects."""
        text = self._client.get(f"/{bucket}?list-type=2").text
        return [part.partition("</Key>")[0] for part in text.split("<Key>")[1:]]
