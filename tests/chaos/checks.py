"""Whether one completion became what it had to become, by its readers and by the books. No I/O.

``problems_of`` says all that is wrong with one, in sentences that name the place; nothing wrong is an empty list.
"""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.reading import Reading, canonical, digest
from tests.chaos.shapes import Ask, Place
from tests.support.tries import read_sampled

ENDED = ("completed", "failed", "cancelled")
#: How a completion may fail when everything around it does. ``lost`` is Redis's last second, ``ordered`` the fake
#: backend's own code, which is told where the tries are used up.
ALLOWED_FAILURES = frozenset({"worker_lost", "lost", "ordered"})


@dataclass(slots=True)
class Stored:
    """One completion as the books have it. ``chunks`` is the text as readers see it, None where none is kept."""

    id: str
    number: int | None
    status: str
    ended: bool
    base: int = 0
    next: int = 0
    attempt: int = 0
    code: str | None = None
    abandoned: bool = False  # it ended before its generation, which then restarted
    usage: Sequence[str] = ()  # the status in each usage record
    attempts: Sequence[int] = ()  # the number in each attempt's row
    chunks: list[bytes] | None = None


@dataclass(slots=True)
class Tracked:
    """One completion that was asked for, and what was seen of it. ``ids``: each that an answer named."""

    ask: Ask
    ids: list[str] = field(default_factory=list[str])
    #: The outcome of the last try is unknown, and there is no key to ask again with.
    unknown: bool = False
    readings: list[Reading] = field(default_factory=list[Reading])
    #: The status that the answer to a cancel named.
    cancelled: str | None = None
    problems: list[str] = field(default_factory=list[str])

    @property
    def id(self) -> str | None:
        return self.ids[0] if self.ids else None


def said(chunks: Iterable[bytes]) -> dict[Place, str]:
    """The concatenated text of every choice, field and tool call."""
    places: dict[Place, list[str]] = defaultdict(list)
    for data in chunks:
        chunk: dict[str, Any] = json.loads(data)
        for choice in chunk.get("choices") or ():
            delta: dict[str, Any] = choice.get("delta") or {}
            for name in ("content", "reasoning_content"):
                if delta.get(name):
                    places[choice["index"], name].append(delta[name])
            for call in delta.get("tool_calls") or ():
                text = call["function"].get("arguments")
                if text:
                    places[choice["index"], f"tool_calls[{call['index']}]"].append(text)
    return {place: "".join(parts) for place, parts in places.items()}


def problems_of(tracked: Tracked, stored: Stored | None) -> list[str]:
    """All that is wrong with a completion that was accepted."""
    found = list(tracked.problems)
    for reading in tracked.readings:
        found += reading.problems
    if len(set(tracked.ids)) > 1:
        found.append(f"one Idempotency-Key, several completions: {tracked.ids}")
    if stored is None:
        return [*found, "accepted, and not in the books"]
    if not stored.ended or stored.status not in ENDED:
        return [*found, f"accepted, and not finished: the books say {stored.status}"]
    found += _records(tracked, stored)
    chunks, source = stored.chunks, "the books"
    if chunks is None:
        kept = next((r for r in tracked.readings if r.keep and r.whole and r.end not in (None, "gone")), None)
        chunks, source = (kept.chunks, kept.name) if kept is not None else (None, "")
    elif stored.base + len(chunks) != stored.next:
        found.append(f"the books keep {len(chunks)} chunks from {stored.base}, and the end is {stored.next}")
    if chunks is not None:
        found += [f"{source}: {problem}" for problem in _text(tracked.ask, stored, chunks)]
    found += _readers(tracked.readings, stored, chunks)
    return found


def problems_of_stray(stored: Stored) -> list[str]:
    """All that is wrong with a completion whose acceptance nobody was told of: it must be finished all the same."""
    if not stored.ended:
        return [f"nobody was told of it, and it is not finished: the books say {stored.status}"]
    return _usage(stored)


def _usage(stored: Stored) -> list[str]:
    if len(stored.usage) != 1:
        return [f"{len(stored.usage)} usage records"]
    if stored.usage[0] != stored.status:
        return [f"its usage record says {stored.usage[0]}, and it {stored.status}"]
    return []


def _records(tracked: Tracked, stored: Stored) -> list[str]:
    """Usage, attempts, and whether it could end as it did."""
    ask, found = tracked.ask, _usage(stored)
    if sorted(stored.attempts) != list(range(1, stored.attempt + 1)):
        found.append(f"attempts {sorted(stored.attempts)} in the books, and the last one is {stored.attempt}")
    if stored.status == "failed":
        code = stored.code or "none"
        allowed = code in ALLOWED_FAILURES or code.startswith("provider_")
        if not allowed and not (code == "deadline_exceeded" and ask.deadline):
            found.append(f"failed with the code {code}")
    if stored.status == "cancelled" and ask.cancel_at is None and not ask.leaves:
        found.append("cancelled, and nobody asked for it")
    if tracked.cancelled in ENDED and tracked.cancelled != stored.status:
        found.append(f"the answer to its cancel said {tracked.cancelled}, and it {stored.status}")
    if ask.refused and stored.status == "completed":
        found.append("completed, and the provider refused it")
    return found


def _text(ask: Ask, stored: Stored, chunks: Sequence[bytes]) -> list[str]:
    """Whether the text is the one that was to be said: all of it where it completed, else what begins it."""
    found: list[str] = []
    whole = stored.status == "completed"
    try:
        text = said(chunks)
    except (ValueError, KeyError, TypeError) as error:
        return [f"a chunk that is none: {error!r}"]
    for choice, name in sorted(text.keys() - ask.says.keys()):
        found += [f"choice {choice} says {name}, and nothing of that was to come"]
    tries: set[int] = set()
    for place, wanted in ask.says.items():
        got, where = text.get(place, ""), f"choice {place[0]}, {place[1]}"
        if isinstance(wanted, str):
            if got != wanted if whole else not wanted.startswith(got):
                found.append(f"{where}: {_difference(got, wanted)}")
            continue
        try:
            words = read_sampled(got) if whole else read_sampled(got[: max(0, got.rfind(" "))])
        except ValueError as error:
            found.append(f"{where}: {error}")
            continue
        tries |= {attempt for attempt, _, _ in words}
        if [at for _, at, _ in words] != list(range(len(words))) or {c for _, _, c in words} - {place[0]}:
            found.append(f"{where}: its words are not in order: {got[:300]!r}")
        if whole and len(words) != wanted:
            found.append(f"{where}: {len(words)} words of {wanted}")
    if len(tries) > 1:
        found.append(f"spliced: words of the tries {sorted(tries)} in one answer")
    return found


def _difference(got: str, wanted: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), None)
    if at is None:
        return f"{len(got)} characters of {len(wanted)}"
    return f"{got[max(0, at - 20) : at + 20]!r} where {wanted[max(0, at - 20) : at + 20]!r} was to come"


def _readers(readings: Sequence[Reading], stored: Stored, chunks: Sequence[bytes] | None) -> list[str]:
    """Whether each reader saw what the books have from its place to the end, and that end."""
    found: list[str] = []
    raw = parsed = None
    for reading in readings:
        name = reading.name
        if reading.end is None:
            found.append(f"{name}: never got an end; it was at {reading.last}")
            continue
        if reading.end == "gone":
            continue
        if reading.end in ("done", "failed", "cancelled") and (reading.end == "done") != (
            stored.status == "completed"
        ):
            found.append(
                f"{name}: its end was {reading.end} ({reading.code}), and the books say {stored.status}"
            )
        if stored.abandoned:
            continue
        if reading.first is None:
            if reading.whole and stored.next > stored.base and reading.end != "stopped":
                found.append(f"{name}: saw no chunk of {stored.next - stored.base}")
            continue
        if reading.first < stored.base:
            found.append(f"{name}: has index {reading.first}, and the final attempt begins at {stored.base}")
            continue
        if reading.whole and reading.first != stored.base:
            found.append(f"{name}: began at {reading.first}, and the final attempt begins at {stored.base}")
        if reading.last + 1 != stored.next:
            found.append(f"{name}: ended behind {reading.last}, and the log ends at {stored.next}")
        if chunks is None:
            continue
        if reading.parsed:
            truth = parsed = parsed or array("q", [canonical(json.loads(data)) for data in chunks])
        else:
            truth = raw = raw or array("q", [digest(data) for data in chunks])
        at = reading.first - stored.base
        if reading.digests != truth[at : at + len(reading.digests)]:
            places = zip(reading.digests, truth[at:], strict=False)
            where = next((i for i, (a, b) in enumerate(places) if a != b), len(truth) - at)
            found.append(f"{name}: index {reading.first + where} differs from what the others have")
    return found
