"""What the scripts are given and answer, as values."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from schemas.records import Ended, encode
from schemas.states import Queue


class AcceptResult(msgspec.Struct, frozen=True):
    """``fresh`` is False where the id had been accepted before. ``seq`` numbers the message on its queue."""

    fresh: bool
    created_ms: int
    seq: int


#: An attempt: by its number, or by its claim's ``fence``.
Fence = int | str


class Claim(msgspec.Struct, frozen=True):
    """A lease on a generation: ``attempt`` is its number, ``next`` the index of the next chunk to append."""

    generation: str
    attempt: int
    next: int
    base: int
    created_ms: int
    request: bytes
    info: bytes
    #: Provider calls that failed.
    tries: int = 0
    #: Since the first claim, in milliseconds.
    waited_ms: int = 0
    #: Redis may have lost chunks of an earlier attempt.
    skip: bool = False
    #: What the chunks of the log have in common.
    head: bytes = b""
    call: str = ""
    #: The provider and model that the last attempt asked, where they are not the first ones.
    target: tuple[str, str] | None = None
    #: The queue that it belongs to now.
    queue: str = Queue.INTERACTIVE.value

    @property
    def fence(self) -> str:
        """The fencing token. Where a rollback of Redis gives a number twice, it still names one claim."""
        return f"{self.attempt}:{self.call}"


_target_decoder = msgspec.json.Decoder(tuple[str, str])


def decode_target(data: bytes) -> tuple[str, str]:
    """A provider and a model, as a generation's state has them."""
    return _target_decoder.decode(data)


class NotClaimed(msgspec.Struct, frozen=True):
    """Nothing to do: ``reason`` is gone, ended, held, parked or newer."""

    reason: str


class Append(IntEnum):
    """What became of an append."""

    OK = 0
    CANCEL_ASKED = 1
    STALE = -1
    GAP = -2


class EndResult(IntEnum):
    """What became of an end."""

    ENDED = 1
    REPEATED = 0
    STALE = -1
    GAP = -2


class Left(IntEnum):
    """What became of an attempt that was given up."""

    LEFT = 1
    REPEATED = 0
    CANCEL_ASKED = 2
    STALE = -1
    GAP = -2


class Crashes(msgspec.Struct, frozen=True):
    """How many workers a generation may lose: with the ``allowed``-th it ends, from ``suspicious`` on it is suspect."""

    allowed: int = 3

    @property
    def suspicious(self) -> int:
        return max(self.allowed - 1, 1)


class Calm(msgspec.Struct, frozen=True):
    """Leases are reaped only where workers have reached Redis for ``lasts_ms``, and never not for ``gap_ms``: an outage
    must not look like dead workers."""

    lasts_ms: int
    gap_ms: int


#: Nothing to wait for.
ANYTIME = Calm(0, 0)


class Renewal(IntEnum):
    OK = 0
    CANCEL_ASKED = 1
    LOST = -1


class Rank(IntEnum):
    """Who leads where several would."""

    FIRST = 0
    SECOND = 1


class EndEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the last entry of a chunk log says. ``error`` is ``{code, message, type, param, status}``."""

    state: str
    error: dict[str, object] | None = None


class OwnEnd(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one of several completions ended before their generation. ``tail`` is the index after its last chunk."""

    state: str
    tail: int
    ended_ms: int
    error: dict[str, object] | None = None
    id: str = ""

    @property
    def entry(self) -> EndEntry:
        return EndEntry(self.state, self.error)


def end_entry(ended: Ended) -> bytes:
    error = msgspec.to_builtins(ended.failure) if ended.failure is not None else None
    return encode(EndEntry(ended.state, error))


class Batch(msgspec.Struct, frozen=True):
    """Consecutive chunks to append: ``items`` one a line. ``head`` goes along with an attempt's first chunks.

    Without any (``count`` 0), ``first`` says where the log is to stand at least.
    """

    first: int
    count: int
    items: bytes
    head: bytes = b""


NOTHING = Batch(0, 0, b"")
