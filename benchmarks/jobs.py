"""What a load generator is asked to do and what it answers: lines of JSON on its standard input and output."""

from __future__ import annotations

from typing import Any

import msgspec


class Target(msgspec.Struct, frozen=True):
    """Where completions are asked for. ``url`` is the full one of the endpoint, ``model`` the name there."""

    name: str
    url: str
    model: str
    headers: dict[str, str] = {}


class Flood(msgspec.Struct, frozen=True, tag=True):
    """So many streams at once, one after the other on each connection. Chunks are counted from ``begin`` to ``end``
    (seconds of the machine's monotonic clock)."""

    target: Target
    order: dict[str, Any]
    streams: int
    begin: float
    end: float


class Flooded(msgspec.Struct, frozen=True, tag=True):
    """``chunks`` within the window; ``per_stream`` in a whole one; ``durations`` of whole streams, in seconds."""

    chunks: int
    seconds: float
    per_stream: int
    streams: int
    broken: int
    durations: list[float]
    completions: list[str] = []
    complaint: str = ""

    @property
    def streams_per_second(self) -> float:
        return self.chunks / self.per_stream / self.seconds if self.per_stream else 0.0


class FirstChunks(msgspec.Struct, frozen=True, tag=True):
    """One request at a time, the targets in turn, ``count`` for each."""

    targets: list[Target]
    order: dict[str, Any]
    count: int


class Paced(msgspec.Struct, frozen=True, tag=True):
    """So many streams at once, ``repeats`` one after the other, of chunks that carry their time."""

    target: Target
    interval_ms: float
    chunks: int
    streams: int
    repeats: int


class Resume(msgspec.Struct, frozen=True, tag=True):
    """A GET for each index in turn, ``count`` times; the client leaves at the first chunk. ``url`` ends so that an
    index can follow."""

    url: str
    headers: dict[str, str]
    indexes: list[int]
    count: int


class Times(msgspec.Struct, frozen=True, tag=True):
    """Milliseconds, by name."""

    by_name: dict[str, list[float]]


Job = Flood | FirstChunks | Paced | Resume
Done = Flooded | Times
