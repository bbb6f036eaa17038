"""Readers: on the seed's framing and through ``tailrace.Client``; they leave at random indexes and come back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from random import Random
from typing import Any

import aiohttp

from tailrace import Client, errors
from tests.chaos.checks import Tracked
from tests.chaos.reading import Reading, canonical, digest

CHAT = "/v1/chat/completions"
SEED = "/api/v1/llm/chat/completions/stream"
#: Seconds without a byte after which a connection is given up; comments come every 5 s.
SILENCE = 12.0
#: Seconds between tries where the server is away.
PAUSES = (0.1, 0.8)
#: A stay ends by the reader's own will with this probability, after at most so many chunks.
LEAVES, LONGEST_STAY = 0.6, 25
#: So often a reader starts over for no reason: it throws away what it has and reads from the first chunk.
STARTS_OVER = 0.04

#: What a connection can raise that the server, or its end, has cut.
BROKEN = (aiohttp.ClientError, OSError, asyncio.TimeoutError)

Frame = tuple[str, int | None, bytes]  # event, id, data


class Left(Exception):
    """The reader went away of its own will."""


async def frames(response: aiohttp.ClientResponse) -> AsyncGenerator[Frame]:
    """The frames of the seed's framing, without comments."""
    left = b""
    async for piece in response.content.iter_any():
        *blocks, left = (left + piece).split(b"\n\n")
        for block in blocks:
            if not block.startswith(b":"):
                yield _frame(block)


def _frame(block: bytes) -> Frame:
    event, id, data = "message", None, b""
    for line in block.split(b"\n"):
        name, _, value = line.partition(b": ")
        if name == b"event":
            event = value.decode()
        elif name == b"id":
            id = int(value)
        elif name == b"data":
            data = value
    return event, id, data


class Readers:
    """What all readers share. ``counts`` is for the report."""

    def __init__(self, session: aiohttp.ClientSession, client: Client, counts: Counter[str]) -> None:
        self.session = session
        self.client = client
        self.counts = counts

    # ------------------------------------------------------------------------------------- the seed's framing

    async def consume(
        self, response: aiohttp.ClientResponse, reading: Reading, after: int, stay: int | None
    ) -> None:
        """Take what comes after index ``after`` until the end. Raises Left after ``stay`` chunks."""
        expected = None if after == -1 else after + 1
        async with aclosing(frames(response)) as found:
            async for event, id, data in found:
                if event == "message":
                    if id is None:
                        reading.problems.append(f"{reading.name}: a chunk without an index: {data[:100]!r}")
                        continue
                    reading.take(id, digest(data), data, expected=expected)
                    expected = id + 1
                    if stay is not None:
                        stay -= 1
                        if stay < 0:
                            raise Left
                elif event == "done":
                    reading.finish("done", next=id)
                    return
                elif event == "error":
                    self._error(reading, id, json.loads(data))
                    return
        raise ConnectionResetError("the stream stopped before its end")

    def _error(self, reading: Reading, next: int | None, text: str) -> None:
        code = text.partition(": ")[0]
        if code == "restarted":
            self._restart(reading)
        elif next is None:  # this way of reading failed; the completion goes on
            self.counts[f"stream broke: {code}"] += 1
            raise ConnectionResetError(text)
        else:
            reading.finish("cancelled" if code == "cancelled" else "failed", next=next, code=code)

    def _restart(self, reading: Reading) -> None:
        reading.start_again()
        self.counts["restarts told"] += 1

    async def follow(self, tracked: Tracked, reading: Reading, after: int | None, random: Random) -> None:
        """Read until the end, leaving and coming back. ``after`` None: the reading goes on behind what it has."""
        assert tracked.id is not None
        while reading.end is None:
            if after is None:
                after = self._place(reading, random)
            if after == -1:
                reading.start_again()
            stay = random.randint(0, LONGEST_STAY) if random.random() < LEAVES else None
            try:
                async with self._open(tracked, after, random) as response:
                    if response.status == 200:
                        self.counts["streams opened"] += 1
                        self.counts["resumed behind the start"] += after >= 0
                        await self.consume(response, reading, after, stay)
                    else:
                        await self._answered(response, tracked, reading)
            except Left:
                self.counts["left"] += 1
                await asyncio.sleep(random.random() * 2)
            except BROKEN:
                self.counts["cut off"] += 1
                await asyncio.sleep(random.uniform(*PAUSES))
            after = None

    def _place(self, reading: Reading, random: Random) -> int:
        """Behind what the reading has, or somewhere in it, or from the start."""
        if reading.first is None or (reading.whole and random.random() < STARTS_OVER):
            return -1
        return random.randint(reading.first, reading.last) if random.random() < 0.4 else reading.last

    def _open(self, tracked: Tracked, after: int, random: Random) -> Any:
        """One of the ways in which a stream can be resumed."""
        headers = _user(tracked, random)
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=SILENCE)
        way = random.random()
        if way < 0.25 and tracked.ask.how != "bulk":
            headers |= {"x-last-chunk-index": str(after), "x-completion-id": str(tracked.id)}
            if tracked.ask.end_user:
                headers["X-On-Behalf-Of"] = tracked.ask.end_user
            return self.session.post(SEED, json=tracked.ask.body, headers=headers, timeout=timeout)
        if way < 0.4:
            headers["Last-Event-ID"] = str(after)
            return self.session.get(f"{CHAT}/{tracked.id}/stream", headers=headers, timeout=timeout)
        url = f"{CHAT}/{tracked.id}/stream?after={after}"
        return self.session.get(url, headers=headers, timeout=timeout)

    async def _answered(self, response: aiohttp.ClientResponse, tracked: Tracked, reading: Reading) -> None:
        """Not a stream."""
        status = response.status
        if status == 204:
            reading.finish("stopped")
            return
        code = await error_code(response)
        if status == 409 and code == "restarted":
            self._restart(reading)
            return
        if status == 404 and not tracked.ask.stored:
            reading.finish("gone")
            return
        self.counts[f"reader answered {status} {code}"] += 1
        if status not in (409, 503):
            reading.problems.append(f"{reading.name}: answered {status} {code}")
            if status < 500:
                reading.finish("gone")
                return
        raise ConnectionResetError(code)

    # ------------------------------------------------------------------------------------------- the client

    async def follow_by_client(self, tracked: Tracked, reading: Reading, random: Random) -> None:
        """The same through ``tailrace.Client``."""
        assert tracked.id is not None
        completion = self.client.completion(tracked.id)
        while reading.end is None:
            after = self._place(reading, random)
            if after == -1:
                reading.start_again()
            stay = random.randint(0, LONGEST_STAY) if random.random() < LEAVES else None
            expected = None if after == -1 else after + 1
            try:
                async with aclosing(completion.chunks(after)) as chunks:
                    async for chunk in chunks:
                        reading.take(chunk.index, canonical(chunk.data), expected=expected)
                        expected = chunk.index + 1
                        if stay is not None:
                            stay -= 1
                            if stay < 0:
                                raise Left
                reading.finish("done")
            except Left:
                await asyncio.sleep(random.random() * 2)
            except errors.Restarted:
                self._restart(reading)
            except errors.CompletionCancelled:
                reading.finish("cancelled")
            except errors.CompletionFailed as error:
                reading.finish("failed", code=error.code)
            except errors.NotFound as error:
                if tracked.ask.stored:
                    reading.problems.append(f"{reading.name}: {error}")
                reading.finish("gone")
            except errors.ConnectionFailed:
                self.counts["client gave up, for now"] += 1
            except AttributeError as error:
                if not closed_under_uvloop(error):
                    raise
                self.counts["client: closed as it was opened"] += 1
            except errors.APIError as error:
                self.counts[f"client answered {error.status} {error.code}"] += 1
                if error.status not in (409, 503):
                    reading.problems.append(f"{reading.name}: answered {error.status} {error.code}")
                await asyncio.sleep(random.uniform(*PAUSES))


def _user(tracked: Tracked, random: Random) -> dict[str, str]:
    """As the end user, or as the tenant that sees them all."""
    user = tracked.ask.end_user
    return {"X-On-Behalf-Of": user} if user is not None and random.random() < 0.5 else {}


def closed_under_uvloop(error: AttributeError) -> bool:
    """What anyio raises, below httpx, where uvloop's connection is closed again just as it was opened."""
    return error.name == "getpeername"


async def error_code(response: aiohttp.ClientResponse) -> str:
    try:
        body: Mapping[str, Any] = await response.json()
        return str(body["error"]["code"])
    except (ValueError, KeyError, TypeError, aiohttp.ContentTypeError):
        return "that is not in the shape of an error"
