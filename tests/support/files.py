"""Uploads as a client on the wire makes them, and where their bytes are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert

from schemas.ids import new_batch_id
from schemas.tables import batches
from stores.sql import writing
from tests.support.api import Api
from tests.support.stack import Stack

FILES = "/v1/files"
LINE = b'{"custom_id": "1"}\n'
BOUNDARY = "xyz"


def upload(
    api: httpx.Client,
    data: bytes = LINE,
    /,
    *,
    filename: str = "input.jsonl",
    url: str = FILES,
    headers: list[tuple[bytes, bytes]] | None = None,
    **fields: str,
) -> httpx.Response:
    form = {"purpose": "batch", **fields}
    return api.post(url, data=form, files={"file": (filename, data)}, headers=headers)


def stored(api: httpx.Client, data: bytes = LINE, /, **more: Any) -> dict[str, Any]:
    answer = upload(api, data, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def listed(api: httpx.Client, query: str = "", **more: Any) -> list[str]:
    answer = api.get(f"{FILES}{query}", **more)
    assert answer.status_code == 200, answer.text
    return [file["id"] for file in answer.json()["data"]]


def folder_of(stack: Stack) -> Path:
    return stack.folder / "home" / "files"


def names(stack: Stack) -> set[str]:
    return {path.name for path in folder_of(stack).iterdir()}


def part(name: str, value: bytes = b"", more: str = "", headers: str = "") -> bytes:
    """A part of a multipart body."""
    disposition = f'Content-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'
    return f"--{BOUNDARY}\r\n{disposition}".encode() + value + b"\r\n"


def send(api: httpx.Client, *parts: bytes, end: bytes = f"--{BOUNDARY}--\r\n".encode()) -> httpx.Response:
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return api.post(FILES, content=b"".join(parts) + end, headers=kind)


PURPOSE = part("purpose", b"batch")
FILE = part("file", LINE, '; filename="input.jsonl"')


def open_batch(stack: Stack, api: Api, input_file_id: str) -> str:
    """A batch that has not ended, and that nobody works at."""
    id, now = new_batch_id(), int(time.time() * 1000)
    counts = ("total", "completed", "failed")
    tokens = ("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens")
    row: dict[str, Any] = {
        "id": id,
        "tenant": api.tenant,
        "key_id": api.key_id,
        "endpoint": "/v1/chat/completions",
        "input_file_id": input_file_id,
        "status": "finalizing",
        "completion_window": "24h",
        "max_concurrency": 1,
        "max_error_rate": 0.5,
        **dict.fromkeys((*counts, *tokens), 0),
        "created_ms": now,
        "expires_ms": now + 3_600_000,
        "token": "nobody",
        "until_ms": now + 3_600_000,
    }
    with writing(stack.engine) as connection:
        connection.execute(insert(batches).values(row))
    return id
