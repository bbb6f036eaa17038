"""The lines of batches that a run has kept: one file for each arm and each judge, and an index of it in memory.

A line is the server's, and beside it ``asked``: a digest of what was asked, so that an answer is only taken for a
request that is the same. ``run`` names the run that it was taken from, where that is another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from tailrace.atomic import replacing
from tailrace.batches import UNSENT


class _Response(msgspec.Struct):
    status_code: int | None = None


class _Error(msgspec.Struct):
    code: str | None = None


class _Line(msgspec.Struct):
    custom_id: str | None = None
    response: _Response | None = None
    error: _Error | None = None
    asked: str | None = None


class Kept(NamedTuple):
    """Where a line is, what it answers, and whether it is an answer: a row may have failed."""

    at: int
    size: int
    asked: str | None
    answered: bool


_decode_fast = msgspec.json.Decoder(_Line).decode


def decode(line: bytes) -> dict[str, Any]:
    """A line, also one whose answer has half of a surrogate pair in it. Raises ValueError."""
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        return json.loads(line)


def _decode(line: bytes) -> _Line:
    try:
        return _decode_fast(line)
    except msgspec.DecodeError:
        return msgspec.convert(json.loads(line), _Line)


class Lines:
    """The lines in a file; without one there are none. The last of several for one row stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, Kept] = {}
        if path.exists():
            with path.open("rb") as file:
                for id, kept, _ in _read(file):
                    self._kept[id] = kept

    def __contains__(self, id: str) -> bool:
        return id in self._kept

    def answers(self, id: str, asked: str) -> bool:
        """Whether there is an answer to just this request."""
        kept = self._kept.get(id)
        return kept is not None and kept.answered and kept.asked == asked

    def failed(self, id: str, asked: str) -> bool:
        kept = self._kept.get(id)
        return kept is not None and not kept.answered and kept.asked == asked

    def read(self) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
        """Each row's custom_id, what was asked, and its line."""
        if not self._kept:
            return
        with self.path.open("rb") as file:
            for id, kept, line in _read(file):
                if self._kept[id].at == kept.at:
                    yield id, kept.asked, decode(line)

    def by_request(self) -> Iterator[tuple[str, bytes]]:
        """What was asked, and the line, of all answers."""
        if not self._kept:
            return
        with self.path.open("rb") as file:
            for _, kept, line in _read(file):
                if kept.answered and kept.asked:
                    yield kept.asked, line

    def merge(self, fetched: Iterable[tuple[str, bytes]], asked: Mapping[str, str]) -> set[str]:
        """Keep lines (custom_id and text) of rows that are ``asked``, in one step; those that failed. Rows that were
        never sent have no line, and a row that is answered keeps its answer."""
        failed: set[str] = set()
        fresh: dict[str, bytes] = {}
        for id, text in fetched:
            digest = asked.get(id)
            if digest is None:
                continue
            line = _decode(text)
            answered = _answered(line)
            if not answered:
                if line.response is None and line.error is not None and line.error.code in UNSENT:
                    continue
                failed.add(id)
                if self.answers(id, digest):
                    continue
            fresh[id] = text if line.asked == digest else with_fields(text, asked=digest)
        if fresh:
            self._write(fresh)
        return failed

    def _write(self, fresh: Mapping[str, bytes]) -> None:
        kept: dict[str, Kept] = {}
        with replacing(self.path) as out:
            if self._kept:
                with self.path.open("rb") as file:
                    for id, old, line in _read(file):
                        if id not in fresh and self._kept[id].at == old.at:
                            _put(out, id, line, kept)
            for id, line in fresh.items():
                _put(out, id, line, kept)
        self._kept = kept


def results(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """custom_id and text of each line of a batch's results."""
    file.seek(0)
    for id, _, line in _read(file):
        yield id, line


def with_fields(line: bytes, **fields: str) -> bytes:
    """A JSON object with some more fields at its end."""
    more = msgspec.json.encode(fields)
    return line.rstrip()[:-1] + b"," + more[1:]


def _put(out: BinaryIO, id: str, line: bytes, kept: dict[str, Kept]) -> None:
    line = line.rstrip()
    decoded = _decode(line)
    kept[id] = Kept(out.tell(), len(line) + 1, decoded.asked, _answered(decoded))
    out.write(line + b"\n")


def _read(file: BinaryIO) -> Iterator[tuple[str, Kept, bytes]]:
    at = 0
    for line in file:
        try:
            decoded = _decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            decoded = None  # not one of ours
        if decoded is not None and decoded.custom_id is not None:
            yield decoded.custom_id, Kept(at, len(line), decoded.asked, _answered(decoded)), line
        at += len(line)


def _answered(line: _Line) -> bool:
    return line.response is not None and line.response.status_code == 200
