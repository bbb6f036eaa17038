"""A small model of a generation's life: what each script must answer, and what Redis must hold after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from schemas.states import State
from stores.outcomes import Fence
from stores.scripts import SKIP
from tests.support.generations import HEAD

ENDS = (State.COMPLETED, State.FAILED, State.CANCELLED)
Entry = tuple[str, dict[str, str]]
Place = Literal["queued:interactive", "recovery", "suspects", "parked", "lease"]


@dataclass
class Hand:
    """What a worker believes of an attempt that it has claimed."""

    fence: str
    attempt: int
    start: int  # the index of the first chunk that it wrote or will write
    next: int
    head: bool  # its first chunks bring a head
    restart: bool  # it abandons what is published before it writes anything

    def items(self, first: int, count: int) -> list[str]:
        """An attempt's chunk of one index is always the same, and no other attempt's."""
        return [f'"{self.fence}/{index}"' for index in range(first, first + count)]


@dataclass
class Life:
    """What a generation must look like."""

    id: str
    seq: int
    deadline: bool
    state: State = State.QUEUED
    place: Place | None = "queued:interactive"
    attempt: int = 0
    fence: str = ""
    next: int = 0
    base: int = 0
    live: bool = False  # its lease has not run out
    due: bool = False  # parked, and its time has come
    cancel: bool = False
    skip: bool = False
    restarted: int = 0
    crashes: int = 0
    tries: int = 0
    past: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    in_outbox: bool = True
    in_ledger: bool = False  # its end is not settled yet
    head: bool = False
    log: list[Entry] = field(default_factory=list[Entry])
    shaken: bool = False  # Redis was set back, and the attempt that it shows may have published more
    own: State | None = None  # how the completion that created it ended, where that left before the others
    joined: dict[str, State | None] = field(default_factory=dict[str, "State | None"])  # the others, likewise
    mark: tuple[int, int] | None = (
        None  # the place of the last marker, once there is one of somebody who left
    )
    switched: bool = False  # to another target than the first one
    continued: set[str] = field(
        default_factory=set[str]
    )  # fences of attempts that went on where another one left off

    @property
    def ended(self) -> bool:
        return self.state in ENDS

    def held_by(self, fence: Fence) -> bool:
        return self.state is State.LEASED and self.named(fence)

    def named(self, fence: Fence) -> bool:
        return fence in (self.attempt, self.fence)

    def takes(self, first: int, count: int) -> Literal["new", "again", "gap"]:
        """What becomes of chunks."""
        if first + count <= self.next:
            return "again"
        return "gap" if first != self.next or self.skip else "new"

    @property
    def whole(self) -> bool:
        """Whether its answer may serve others."""
        return self.state is State.COMPLETED

    @property
    def sharers(self) -> list[str]:
        """The completions that it runs for."""
        creator = [] if self.own else [self.id]
        return creator + [completion for completion, own in self.joined.items() if own is None]

    def marker_place(self) -> str:
        if self.mark is not None and self.mark[0] == self.next:
            return f"{self.next}-{self.mark[1] + 1}"
        return f"{self.next}-{2 if self.base == self.next and self.next > 0 else 1}"

    def left_by(self, completion: str, state: State, entry: Entry) -> list[str]:
        """The messages on the channel."""
        assert entry[0] == self.marker_place()
        if completion == self.id:
            self.own = state
        else:
            self.joined[completion] = state
        last, order = entry[0].split("-")
        self.mark = (int(last), int(order))
        self.log.append(entry)
        return [f"{entry[0]} l\n{entry[1]['l']}"]

    def append(self, items: list[str], *, head: bool) -> list[str]:
        """The messages on the channel."""
        self.next += len(items)
        self.head = self.head or head
        self.shaken = False
        body = "\n".join(items)
        self.log.append((f"{self.next}-0", {"c": body}))
        return [f"{self.next}-0 h\n{HEAD.decode()}\n{body}" if head else f"{self.next}-0 c\n{body}"]

    def restart(self) -> list[str]:
        """The messages on the channel."""
        if self.restarted == self.attempt or (self.base == self.next and not self.skip):
            return []
        entry = self.marker_place()
        if self.mark is not None:
            last, order = entry.split("-")
            self.mark = (int(last), int(order))
        self.base = self.next = self.next + (SKIP if self.skip else 0)
        self.restarted, self.skip, self.head, self.shaken = self.attempt, False, False, False
        self.log.append((entry, {"r": str(self.base)}))
        return [f"{entry} r\n{self.base}"]

    def claim(self, fence: str) -> None:
        self.state, self.place, self.live = State.LEASED, "lease", True
        self.in_outbox = self.due = False
        self.attempt += 1
        self.fence = fence

    def fail_over(self, fence: str) -> None:
        """The attempt's provider failed; the next one begins under the same lease."""
        self.past.append((self.attempt, "failed"))
        self.attempt += 1
        self.fence = fence

    def wait(self, place: Place, how: str) -> None:
        """Its attempt is over."""
        self.state = State.PARKED if place == "parked" else State.QUEUED
        self.place, self.live, self.due, self.shaken = place, False, False, False
        self.past.append((self.attempt, how))

    def wait_unasked(self) -> None:
        """Its attempt has asked no provider: it leaves no trace."""
        self.state, self.place = State.PARKED, "parked"
        self.live, self.due, self.shaken = False, False, False
        self.attempt -= 1
        self.fence = f"{self.attempt}:{self.fence.partition(':')[2]}"

    def requeue(self, seq: int) -> None:
        self.state, self.place, self.due, self.seq, self.in_outbox = (
            State.QUEUED,
            "queued:interactive",
            False,
            seq,
            True,
        )

    def end(self, state: State, entry: str) -> list[str]:
        """The messages on the channel."""
        self.state, self.place = state, None
        self.live = self.due = self.cancel = self.skip = self.deadline = self.in_outbox = False
        self.in_ledger = True
        place = self.marker_place()
        self.log.append((place, {"e": entry}))
        return [f"{place} e\n{entry}"]

    def reads_well(self, log: list[Entry]) -> None:
        """As readers understand the log, whatever the model says."""
        base = at = 0
        places: list[tuple[int, int]] = []
        for entry_id, fields in log:
            last, kind = map(int, entry_id.split("-"))
            places.append((last, kind))
            assert (kind == 0) is ("c" in fields)
            if "c" in fields:
                at += fields["c"].count("\n") + 1
            assert last == at, "indexes follow each other"
            if "r" in fields:
                base = int(fields["r"])
                assert base == at or base >= at + SKIP
                at = base
        assert places == sorted(set(places)), "ids only grow"
        assert (at, base) == (self.next, self.base)
        assert ["e" in fields for _, fields in log].count(True) == self.ended
        assert not self.ended or "e" in log[-1][1]
        final = [text for index, text in sorted(texts_of(log).items()) if index >= base]
        authors = list(dict.fromkeys(text.split("/")[0].strip('"') for text in final))
        assert set(authors[1:]) <= self.continued, "who goes on where another one left off means to"


def texts_of(log: list[Entry]) -> dict[int, str]:
    """The chunks of a log by index."""
    found: dict[int, str] = {}
    for entry_id, fields in log:
        if "c" in fields:
            items = fields["c"].split("\n")
            first = int(entry_id.split("-")[0]) - len(items)
            found |= dict(enumerate(items, first))
    return found
