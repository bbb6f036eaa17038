"""Files and batches: many completions from one JSONL file, as OpenAI's Batch API has them, and what is ours beside it.

batch = await client.batches.submit("requests.jsonl")
async for now in batch.watch():
    print(now["request_counts"])
await batch.save("results.jsonl")
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from tailrace import backoff
from tailrace._http import Http
from tailrace.atomic import replacing
from tailrace.errors import ConnectionFailed, NotFound, Unavailable

#: Batches and files asked for in one page of a list.
PAGE = 100
#: How long a batch may take where nobody says otherwise.
WINDOW = "30d"
#: Seconds between two looks at a batch that changes, and at most between two looks at one that doesn't.
LOOK, LONGEST_LOOK = 0.5, 5.0
#: How long ``Batch.watch`` goes on asking a server that doesn't answer, in seconds.
PATIENCE = 600.0

#: Statuses after which a batch stays as it is.
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
#: Codes of rows that nobody was asked about, as the batch ended first.
UNSENT = frozenset({"batch_expired", "batch_cancelled", "batch_stopped"})


class Files:
    """The files of the server, by id."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def upload(
        self,
        file: BinaryIO | Path | str,
        *,
        purpose: str = "batch",
        name: str | None = None,
        expires_after: int | None = None,
    ) -> dict[str, Any]:
        """Send a file, or what is open and can be read again from its start; the server's ``file`` object.

        It is read and sent piece by piece. ``expires_after``: seconds after which the server removes it, from an hour
        to 30 days. Raises APIError, ConnectionFailed, OSError.
        """
        if isinstance(file, (str, Path)):
            with _opened(Path(file)) as opened:
                return await self.upload(
                    opened, purpose=purpose, name=name or Path(file).name, expires_after=expires_after
                )
        fields = {"purpose": purpose}
        if expires_after is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_after)}
        return await self._http.upload("/v1/files", file, name or "batch.jsonl", fields)

    async def retrieve(self, id: str) -> dict[str, Any]:
        return await self._http.request("GET", f"/v1/files/{_part(id)}")

    async def delete(self, id: str) -> None:
        await self._http.request("DELETE", f"/v1/files/{_part(id)}")

    async def download(self, id: str, file: BinaryIO) -> int:
        """Write the content behind where ``file`` stands; its length in bytes."""
        return await self._http.download(f"/v1/files/{_part(id)}/content", file)

    async def list(self, *, purpose: str | None = None) -> AsyncGenerator[dict[str, Any]]:
        async for file in _pages(self._http, "/v1/files", {"purpose": purpose} if purpose else {}):
            yield file


class Batch:
    """The handle of a batch. Any number of them, anywhere, may stand for the same one."""

    def __init__(self, http: Http, id: str) -> None:
        self.id = id
        self._http = http
        self._path = f"/v1/batches/{_part(id)}"

    def __repr__(self) -> str:
        return f"Batch({self.id!r})"

    async def retrieve(self) -> dict[str, Any]:
        """The ``batch`` object as it is now: ``status``, ``request_counts``, ``usage``, …"""
        return await self._http.request("GET", self._path)

    async def watch(self) -> AsyncGenerator[dict[str, Any]]:
        """The ``batch`` object now, whenever it has changed, and at last the one of its end.

        Raises APIError, and ConnectionFailed when the server stays away for ``PATIENCE``.
        """
        last: dict[str, Any] | None = None
        pause, since = LOOK, None
        while True:
            try:
                now = await self.retrieve()
            except (ConnectionFailed, Unavailable):
                since = since or time.monotonic()
                if time.monotonic() - since > PATIENCE:
                    raise
                await asyncio.sleep(backoff.LONGEST)
                continue
            since = None
            pause = LOOK if now != last else min(LONGEST_LOOK, pause * 1.5)
            if now != last:
                yield now
            if now["status"] in ENDED:
                return
            last = now
            await asyncio.sleep(pause)

    async def wait(self) -> dict[str, Any]:
        """The ``batch`` object of its end."""
        last: dict[str, Any] = {}
        async for now in self.watch():
            last = now
        return last

    async def cancel(self) -> dict[str, Any]:
        """Ask for the end of it: what was answered stays, the rest is not sent."""
        return await self._http.request("POST", f"{self._path}/cancel")

    async def retry(self, *, errors: Sequence[str] = (), idempotency_key: str | None = None) -> Batch:
        """A new batch of the rows that failed, or only of those that failed with one of the codes ``errors``."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        body = {"codes": [*errors]} if errors else {}
        made = await self._http.request("POST", f"{self._path}/retry", body=body, headers=headers)
        return Batch(self._http, made["id"])

    async def failures(self) -> Sequence[dict[str, Any]]:
        """Reasons of failed rows: ``{"code", "status", "message", "count", "example": {"custom_id", "line"}}``."""
        return (await self._http.request("GET", f"{self._path}/failures"))["data"]

    async def download(self, file: BinaryIO) -> int:
        """Write the lines of all rows that have an end, failed ones too, behind where ``file`` stands; so many bytes.

        While the batch runs these are the rows that have ended by now, in the order of the input; after it the answers,
        then the failed rows.
        """
        now = await self.retrieve()
        ids = [now[name] for name in ("output_file_id", "error_file_id") if now.get(name)]
        if now["status"] in ENDED and ids:
            start = file.tell()
            try:
                return sum([await Files(self._http).download(id, file) for id in ids])
            except NotFound:  # a file has been deleted, or is past its time; the rows may not be
                file.seek(start)
                file.truncate()
        return await self._http.download(f"{self._path}/results", file)

    async def save(self, path: Path | str) -> None:
        """The same as a file, which is there in one step."""
        with replacing(Path(path)) as file:
            await self.download(file)

    async def results(self) -> AsyncGenerator[bytes]:
        """The same lines one by one, by way of a temporary file: whoever is slow to read them holds nothing up."""
        with tempfile.TemporaryFile() as file:
            await self.download(file)
            file.seek(0)
            for line in file:
                yield line


class Batches:
    """Where batches are submitted, found again and listed."""

    def __init__(self, http: Http, files: Files) -> None:
        self._http = http
        self._files = files

    async def submit(self, file: BinaryIO | Path | str, **settings: Any) -> Batch:
        """Send a file in the Batch format and make a batch of it; ``settings`` are those of ``create``."""
        return await self.create((await self._files.upload(file))["id"], **settings)

    async def create(
        self,
        input_file_id: str,
        *,
        endpoint: str = "/v1/chat/completions",
        completion_window: str = WINDOW,
        metadata: Mapping[str, str] | None = None,
        max_concurrency: int | None = None,
        max_error_rate: float | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Make a batch of a file. A try that got lost on the way is adopted by the next one under the same key.

        ``completion_window`` is ``<n>h`` or ``<n>d``. ``max_concurrency``: rows under way at once.
        ``max_error_rate``: the share of failed rows, after 100, at which it stops by itself.
        """
        settings = {
            "metadata": dict(metadata) if metadata is not None else None,
            "max_concurrency": max_concurrency,
            "max_error_rate": max_error_rate,
        }
        body = {
            "input_file_id": input_file_id,
            "endpoint": endpoint,
            "completion_window": completion_window,
            **{name: value for name, value in settings.items() if value is not None},
        }
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        made = await self._http.request("POST", "/v1/batches", body=body, headers=headers)
        return Batch(self._http, made["id"])

    def batch(self, id: str) -> Batch:
        """A handle for a batch that exists already; asks nothing of the server."""
        return Batch(self._http, id)

    async def list(self, *, limit: int | None = None) -> AsyncGenerator[dict[str, Any]]:
        """``batch`` objects, the newest first."""
        async for batch in _pages(self._http, "/v1/batches", {}, limit):
            yield batch

    async def estimate(self, input_file_id: str, *, sample: int = 1000) -> dict[str, Any]:
        """What a batch of the file would come to, by a look at the first ``sample`` rows (100,000 at most): ``rows``,
        ``cached`` among those that were ``sampled``, tokens and ``cost`` of all. Nothing is sent."""
        body = {"input_file_id": input_file_id, "sample": sample}
        return await self._http.request("POST", "/v1/batches/estimate", body=body)


async def _pages(
    http: Http, path: str, filters: Mapping[str, Any], limit: int | None = None
) -> AsyncGenerator[dict[str, Any]]:
    left, after = limit, None
    while left is None or left > 0:
        params: dict[str, Any] = {**filters, "limit": PAGE if left is None else min(PAGE, left)}
        if after is not None:
            params["after"] = after
        page = await http.request("GET", path, params=params)
        for item in page["data"]:
            yield item
            after = item["id"]
        if left is not None:
            left -= len(page["data"])
        if not page.get("has_more") or not page["data"]:
            return


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def _part(id: str) -> str:
    return quote(id, safe="")
