"""What one reader of one completion has, and what it finds wrong as it reads. No I/O."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import Any


def digest(data: bytes) -> int:
    """Of the chunk as it came over the wire. Holds within one process."""
    return hash(data)


def canonical(chunk: Any) -> int:
    """Of the chunk as parsed, for readers that don't see the bytes."""
    return digest(json.dumps(chunk, ensure_ascii=True).encode())


@dataclass(slots=True)
class Reading:
    """``digests[k]`` is of the chunk with index ``first + k``. A ``whole`` reading began before the first chunk.

    ``end``: "done", "failed", "cancelled", "stopped" (204: nothing after what it has), "gone" (its text isn't kept);
    None while there is none.
    """

    name: str
    parsed: bool = False  # digests are ``canonical``
    keep: bool = False  # keep the chunks too
    whole: bool = True
    first: int | None = None
    digests: array[int] = field(default_factory=lambda: array("q"))
    chunks: list[bytes] = field(default_factory=list[bytes])
    end: str | None = None
    code: str | None = None  # of the error event at the end
    problems: list[str] = field(default_factory=list[str])

    @property
    def last(self) -> int:
        """The index of the last chunk; -1 where there is none yet and everything is wanted."""
        return -1 if self.first is None else self.first + len(self.digests) - 1

    def take(self, index: int, found: int, data: bytes = b"", *, expected: int | None) -> None:
        """One chunk, where ``expected`` is the index that has to come now; None: any may be the first."""
        if expected is not None and index != expected:
            what = "a hole" if index > expected else "out of order"
            self.problems.append(f"{self.name}: {what}: index {index} where {expected} had to come")
        if self.first is None:
            self.first = index
        place = index - self.first
        if 0 <= place < len(self.digests):
            if self.digests[place] != found:
                self.problems.append(f"{self.name}: index {index} came twice, and differs")
        elif place == len(self.digests):
            self.digests.append(found)
            if self.keep:
                self.chunks.append(data)

    def start_again(self) -> None:
        """Throw away what there is: the next chunk is the first one of all."""
        self.first, self.whole = None, True
        self.digests = array("q")
        self.chunks.clear()

    def finish(self, end: str, *, next: int | None = None, code: str | None = None) -> None:
        """``next``: the index that the end names, the one after the last chunk."""
        self.end, self.code = end, code
        if next is not None and self.first is not None and next != self.last + 1:
            self.problems.append(f"{self.name}: the end says {next} chunks, and the last one was {self.last}")
