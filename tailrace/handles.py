"""What a user holds: the handle of one completion, and the chunks that come out of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator
from typing import Any, Literal, cast
from urllib.parse import quote

import httpx
from httpx_sse import EventSource, ServerSentEvent

from tailrace import backoff
from tailrace._http import Http, retry_after
from tailrace.errors import (
    CompletionCancelled,
    CompletionFailed,
    ConnectionFailed,
    Restarted,
    TailraceError,
    api_error,
)

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]

#: A stream gives up after this many failures in a row with no chunk between them: about 70 s of outage.
STREAM_FAILURES = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: its index in the stream, and the ``chat.completion.chunk`` object."""

    index: int
    data: dict[str, Any]

    @property
    def text(self) -> str:
        """The content that this chunk adds to choice 0; empty for all else that a chunk may carry."""
        choices: list[dict[str, Any]] = self.data.get("choices") or []
        for choice in choices:
            if choice.get("index", 0) == 0:
                delta: dict[str, Any] = choice.get("delta") or {}
                return delta.get("content") or ""
        return ""


class Completion:
    """The handle of an accepted completion. Any number of them, anywhere, may stand for the same one."""

    def __init__(self, http: Http, id: str) -> None:
        self.id = id
        self._http = http
        self._path = f"/v1/chat/completions/{quote(id, safe='')}"

    def __repr__(self) -> str:
        return f"Completion({self.id!r})"

    async def retrieve(self) -> dict[str, Any]:
        """The ``chat.completion`` as it is now: ``choices: []`` while it waits or runs. Raises APIError."""
        return await self._http.request("GET", self._path)

    async def status(self) -> Status:
        return (await self.retrieve())["status"]

    async def chunks(self, after: int = -1) -> AsyncGenerator[Chunk]:
        """Every chunk after the index ``after``, live or from the books, each exactly once and in order.

        A lost, silent or stopped connection is opened again behind the last chunk seen. Raises
        CompletionFailed or CompletionCancelled where the completion ended so, Restarted where the chunks up to
        ``after`` or those seen were abandoned, APIError where the server refuses, ConnectionFailed where it stays away.
        """
        failures = 0
        while True:
            try:
                async with self._http.stream(f"{self._path}/stream", {"after": after}) as response:
                    if response.status_code == 204:  # `after` is the last index of a finished log, or beyond
                        await self._check_end()
                        return
                    if not response.is_success:
                        await response.aread()
                        error = api_error(response.status_code, response.headers, response.content)
                        if error.code == "restarted":
                            base = response.headers.get("x-base-index", "")
                            raise Restarted(
                                error.message, id=self.id, base=int(base) if base.isdigit() else None
                            )
                        if retry_after(response) is None:
                            raise error
                        raise _Interrupted(error)
                    async for event in EventSource(response).aiter_sse():
                        if event.event == "done":
                            return
                        if event.event == "error":
                            await self._raise_end(event)
                        elif event.data:  # a keep-alive comment reaches us as an event without data
                            chunk = _chunk(event)
                            if chunk.index > after:
                                after, failures = chunk.index, 0
                                yield chunk
                raise _Interrupted(ConnectionFailed(f"the stream of {self.id} stopped before its end"))
            except httpx.TransportError as cause:
                error = self._http.connection_failed(cause)
            except _Interrupted as interruption:
                error = interruption.error
            failures += 1
            if failures >= STREAM_FAILURES:
                raise error
            await asyncio.sleep(backoff.delay(failures))

    async def result(self) -> dict[str, Any]:
        """Wait for the end and return the ``chat.completion``.

        Raises CompletionFailed, CompletionCancelled, and what ``chunks`` and ``retrieve`` raise.
        """
        async with self._http.followers:
            seen, rounds = -1, 0
            while True:
                completion = await self.retrieve()
                _raise_unless_answered(self.id, completion)
                if completion["status"] == "completed":
                    return completion
                if rounds:  # the stream has its end, and the record is about to follow
                    await asyncio.sleep(backoff.delay(rounds, first=0.02, longest=1.0))
                rounds += 1
                try:
                    async for chunk in self.chunks(seen):
                        seen, rounds = chunk.index, 0
                except Restarted:
                    seen = -1

    async def text(self) -> str:
        """Wait for the end and return the text of choice 0."""
        choices = (await self.result())["choices"]
        return next((c["message"].get("content") or "" for c in choices if c["index"] == 0), "")

    async def cancel(self) -> Status:
        """Ask for the end of it; returns the status after that. One that has ended stays as it is."""
        return (await self._http.request("POST", f"{self._path}/cancel"))["status"]

    async def delete(self) -> None:
        """Drop the text; the usage record stays."""
        await self._http.request("DELETE", self._path)

    async def _check_end(self) -> None:
        """A log with nothing more to send doesn't say how it ended: raise if it was not well."""
        _raise_unless_answered(self.id, await self.retrieve())

    async def _raise_end(self, event: ServerSentEvent) -> None:
        """Raise what an error event (data: a JSON string ``code: message``) means for this completion."""
        text = cast("object", json.loads(event.data)) if event.data else ""
        code, _, message = str(text).partition(": ")
        if code == "restarted":
            # The event's id is that of the last chunk that was abandoned.
            raise Restarted(message, id=self.id, base=int(event.id) + 1 if event.id.isdigit() else None)
        _raise_unless_answered(self.id, await self.retrieve())
        # The completion is alive or well: what failed is this way of reading it.
        raise _Interrupted(ConnectionFailed(f"the stream of {self.id} broke: {text}"))


def _chunk(event: ServerSentEvent) -> Chunk:
    try:
        return Chunk(int(event.id), json.loads(event.data))
    except ValueError as error:
        raise ConnectionFailed("the server sent what is not a chunk") from error


class _Interrupted(Exception):
    """This try at a stream is over; another may go on."""

    def __init__(self, error: TailraceError) -> None:
        super().__init__(str(error))
        self.error = error


def _raise_unless_answered(id: str, completion: dict[str, Any]) -> None:
    status = completion["status"]
    if status == "cancelled":
        raise CompletionCancelled(f"{id} was cancelled", id=id)
    if status == "failed":
        error: dict[str, Any] = completion.get("error") or {}
        raise CompletionFailed(
            str(error.get("message") or f"{id} failed"),
            id=id,
            code=error.get("code"),
            type=error.get("type"),
            param=error.get("param"),
        )
