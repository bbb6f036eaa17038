"""``kind = "replay"``: recorded streams from a file, with their timing; no model, no network.

A line of the file is a recording (``docs/providers.md``). A request gets the first one whose ``request`` it agrees
with, else one of those without, chosen by the request alone: so the same request has the same answer in every process,
and where an attempt was interrupted another one can go on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import msgspec

from schemas.codec import BadChunk, dumps, loads
from schemas.errors import ConfigurationError, ProviderError
from schemas.fingerprint import answer_params, canonical_json
from schemas.providers import Provider
from workers.providers.kind import DONE, Call, refusal


class Recording(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer. ``chunks`` are (milliseconds since the request, chunk); a stream that is not ``whole`` breaks off
    after them. ``request`` holds fields that a request must have to get this answer, ``model`` among them."""

    chunks: list[tuple[float, dict[str, Any]]] = []
    request: dict[str, Any] | None = None
    status: int = 200
    error: dict[str, Any] | None = None
    whole: bool = True


class Replay:
    """Raises ConfigurationError for a file that has no recordings."""

    def __init__(self, provider: Provider, _: httpx.AsyncBaseTransport) -> None:
        self._name = provider.name
        self._speed = provider.speed
        recordings = read_recordings(Path(provider.file))
        self._for_requests = [(r.request, r) for r in recordings if r.request is not None]
        self._for_any = [r for r in recordings if r.request is None]

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncGenerator[AsyncGenerator[list[bytes]]]:
        recording = self._find(answer_params(call.params) | {"model": call.model})
        if recording.status != 200:
            raise refusal(self._name, recording.status, dumps({"error": recording.error}))
        yield self._play(recording)

    def _find(self, request: dict[str, Any]) -> Recording:
        for fields, recording in self._for_requests:
            if all(name in request and request[name] == value for name, value in fields.items()):
                return recording
        if not self._for_any:
            raise ProviderError(
                f"The provider '{self._name}' has no recording for this request.",
                code="no_recording",
                provider_status=404,
            )
        digest = hashlib.sha256(canonical_json(request)).digest()
        return self._for_any[int.from_bytes(digest[:8], "big") % len(self._for_any)]

    async def _play(self, recording: Recording) -> AsyncGenerator[list[bytes]]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for offset, chunks in groupby(recording.chunks, key=lambda chunk: self._due(chunk[0])):
            wait = began + offset - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            yield [dumps(chunk) for _, chunk in chunks]
        if recording.whole:
            yield [DONE]

    def _due(self, offset_ms: float) -> float:
        """Seconds after the request."""
        return offset_ms / 1000 / self._speed if self._speed else 0.0


def read_recordings(path: Path) -> list[Recording]:
    """Raises ConfigurationError, which names the line."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigurationError(f"can't read the recordings in {path}: {error.strerror}.") from None
    found: list[Recording] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(msgspec.convert(loads(line), Recording))
            except (BadChunk, msgspec.ValidationError) as error:
                raise ConfigurationError(f"{path}, line {number}: no recording: {error}.") from None
    if not found:
        raise ConfigurationError(f"{path} has no recordings.")
    return found
