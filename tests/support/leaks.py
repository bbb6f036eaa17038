"""What a test left in Redis: every key has a TTL or a named owner that removes it (``docs/architecture.md``)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import msgspec
import redis

#: Never removed, or not by us: counters, the number of partitions, and what Celery's broker keeps.
PERMANENT = ("partitions", "seq:*", "mark:*", "broker:interactive", "broker:bulk", "broker:_kombu.binding*")

IN_FLIGHT = frozenset({"queued", "leased", "parked"})

#: Whose members each of these keys may name: generations in these states.
MEMBERS = {
    "outbox": frozenset({"queued"}),
    "queued": frozenset({"queued"}),
    "recovery": frozenset({"queued"}),
    "suspects": frozenset({"queued"}),
    "parked": frozenset({"parked"}),
    "lease": frozenset({"leased"}),
    "deadlines": IN_FLIGHT,
}


@dataclass(frozen=True, slots=True)
class _Name:
    raw: bytes
    partition: str
    kind: str
    rest: str

    @property
    def tail(self) -> str:
        return f"{self.kind}:{self.rest}" if self.rest else self.kind


def leaks(client: redis.Redis, *, allow: Iterable[str] = (), settled: bool = False) -> list[str]:
    """The keys that nobody would ever remove, each with the reason, sorted.

    Work in flight is its generation's: a queued generation may have its request, a place in the queue and an outbox
    entry; an ended one may wait for the ledger. With ``settled`` nothing may be in flight either.
    ``allow``: patterns (fnmatch) of what comes after ``tailrace:{p<n>}:``, or of whole foreign names.
    """
    found = _Found(client, tuple(allow), settled)
    return sorted(filter(None, (found.reason(raw) for raw in found.names)))


def cluster_leaks(urls: Iterable[str], *, allow: Iterable[str] = (), settled: bool = False) -> list[str]:
    """The same for every node of a cluster."""
    result: list[str] = []
    for url in urls:
        with redis.Redis.from_url(url) as client:
            result.extend(leaks(client, allow=allow, settled=settled))
    return sorted(result)


class _Found:
    def __init__(self, client: redis.Redis, allow: tuple[str, ...], settled: bool) -> None:
        # The server's own encoding of names and values, whatever the client was made for.
        options: dict[str, Any] = {**client.connection_pool.connection_kwargs, "decode_responses": False}
        self.client = redis.Redis(connection_pool=redis.ConnectionPool(**options))
        self.allow = allow
        self.settled = settled
        try:
            self.names = [bytes(name) for name in cast(Iterable[Any], self.client.scan_iter(count=1000))]
            self.ttl = self._each("pttl")
            self.type = {name: value.decode() for name, value in self._each("type").items()}
            self.states: dict[tuple[str, str], str] = {}
            self.unsettled: dict[str, set[tuple[str, str]]] = {}
            for name in filter(None, map(parse, self.names)):
                if name.kind == "gen" and self.ttl[name.raw] == -1:
                    state = cast(bytes | None, self.client.hget(name.raw, "state")) or b"?"
                    self.states[name.partition, name.rest] = state.decode()
                elif name.kind == "ledger":
                    self.unsettled[name.partition] = self._ledger(name.raw)
            self.members = {
                name.raw: self._members(name.raw)
                for name in filter(None, map(parse, self.names))
                if name.kind in MEMBERS
            }
        finally:
            self.client.close()
            self.client.connection_pool.disconnect()

    def _each(self, command: str) -> dict[bytes, Any]:
        with self.client.pipeline(transaction=False) as pipeline:
            for name in self.names:
                getattr(pipeline, command)(name)
            return dict(zip(self.names, pipeline.execute(), strict=True))

    def _members(self, name: bytes) -> list[str]:
        if self.type[name] == "hash":
            return [field.decode() for field in cast(list[bytes], self.client.hkeys(name))]
        if self.type[name] == "zset":
            return [member.decode() for member in cast(list[bytes], self.client.zrange(name, 0, -1))]
        return []

    def _ledger(self, name: bytes) -> set[tuple[str, str]]:
        """What the ledger still has: ``("accepted", completion)`` and ``("ended", generation)``."""
        ids: set[tuple[str, str]] = set()
        for _, fields in cast(list[tuple[bytes, dict[bytes, bytes]]], self.client.xrange(name)):
            record = msgspec.json.decode(fields[b"r"]) if b"r" in fields else {}
            for tag, field in (("accepted", "id"), ("ended", "generation")):
                if record.get("t") == tag:
                    ids.add((tag, record[field]))
        return ids

    def reason(self, raw: bytes) -> str | None:
        """Why this key is a leak, None if it is none."""
        text = raw.decode("utf-8", "replace")
        name = parse(raw)
        if self.ttl[raw] != -1:
            return None  # has a TTL, or went away between SCAN and PTTL
        if name is None:
            return None if _any(text, self.allow) else f"{text}: no key of Tailrace's, no TTL"
        if _any(name.tail, (*PERMANENT, *self.allow)):
            return None
        if name.kind == "ledger" and not self.unsettled[name.partition]:
            return None
        if self.settled:
            return f"{text}: no TTL, and all work should be settled"
        problem = self._orphaned(name)
        return f"{text}: no TTL, {problem}" if problem else None

    def _orphaned(self, name: _Name) -> str | None:
        state = self.states.get((name.partition, name.rest))
        unsettled = self.unsettled.get(name.partition, set())
        match name.kind:
            case "gen":
                if state in IN_FLIGHT or ("ended", name.rest) in unsettled:
                    return None
                return f"state {state}, and the ledger has no record that would settle it"
            case "req":
                return None if state in IN_FLIGHT else "its generation is not in flight"
            case "log" | "members":
                return None if state is not None else "its generation is gone or has its TTL already"
            case "ptr":
                return (
                    None
                    if ("accepted", name.rest) in unsettled
                    else "the ledger has no record that would settle it"
                )
            case "ledger":
                return None
            case "dead":
                return None  # the operator's: ``tailrace doctor`` names what is there
            case kind if kind in MEMBERS:
                states = self.states
                others = [
                    m
                    for m in self.members[name.raw]
                    if states.get((name.partition, m.partition("/")[0])) not in MEMBERS[kind]
                ]
                return (
                    f"it names {others}, which are not {' or '.join(sorted(MEMBERS[kind]))}"
                    if others
                    else None
                )
            case _:
                return "no owner"


def parse(raw: bytes) -> _Name | None:
    """``tailrace:{p<n>}:<kind>[:<rest>]``; None for a foreign name."""
    match = re.fullmatch(r"tailrace:\{p(\d+)\}:([^:]+)(?::(.*))?", raw.decode("utf-8", "replace"), re.DOTALL)
    return _Name(raw, match[1], match[2], match[3] or "") if match else None


def _any(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)
