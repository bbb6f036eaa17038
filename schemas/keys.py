"""Names of the Redis keys and channels. ``docs/architecture.md`` says what each holds and who removes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

#: How many partitions there are. Lives in partition 0 whatever their number.
PARTITIONS_KEY = "tailrace:{p0}:partitions"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one partition; they share a hash tag, so they share a slot."""

    partition: int

    @property
    def prefix(self) -> str:
        return f"tailrace:{{p{self.partition}}}:"

    def gen(self, generation: str) -> str:
        return f"{self.prefix}gen:{generation}"

    def req(self, generation: str) -> str:
        return f"{self.prefix}req:{generation}"

    def log(self, generation: str) -> str:
        return f"{self.prefix}log:{generation}"

    def ptr(self, completion: str) -> str:
        return f"{self.prefix}ptr:{completion}"

    def members(self, generation: str) -> str:
        """The completions that joined the generation."""
        return f"{self.prefix}members:{generation}"

    def channel(self, generation: str) -> str:
        """Carries every entry of the generation's chunk log."""
        return f"{self.prefix}ch:{generation}"

    @property
    def control(self) -> str:
        """The channel that tells workers of cancels, and of work to recover."""
        return f"{self.prefix}ctl"

    @property
    def outbox(self) -> str:
        return f"{self.prefix}outbox"

    @property
    def lease(self) -> str:
        return f"{self.prefix}lease"

    @property
    def recovery(self) -> str:
        """Work that had an attempt and waits for another one."""
        return f"{self.prefix}recovery"

    @property
    def suspects(self) -> str:
        """As ``recovery``, one at a time: work that was there when workers died, again and again."""
        return f"{self.prefix}suspects"

    @property
    def parked(self) -> str:
        return f"{self.prefix}parked"

    @property
    def deadlines(self) -> str:
        return f"{self.prefix}deadlines"

    @property
    def ledger(self) -> str:
        return f"{self.prefix}ledger"

    @property
    def dead(self) -> str:
        """Records of the ledger that can't be entered into SQL."""
        return f"{self.prefix}dead"

    def queued(self, queue: str) -> str:
        return f"{self.prefix}queued:{queue}"

    def seq(self, queue: str) -> str:
        return f"{self.prefix}seq:{queue}"

    def mark(self, queue: str) -> str:
        return f"{self.prefix}mark:{queue}"

    def lock(self, role: str) -> str:
        return f"{self.prefix}lock:{role}"

    @property
    def heard(self) -> str:
        """When workers last reached this partition, and since when without a gap."""
        return f"{self.prefix}heard"

    @property
    def bulk(self) -> str:
        """The living workers for bulk. In partition 0."""
        return f"{self.prefix}bulk"

    def rank(self, role: str) -> str:
        return f"{self.prefix}lock:{role}:rank"

    def permits(self, provider: str, part: str) -> str:
        """Of a provider with limits, in the partition of its name."""
        return f"{self.prefix}permits:{provider}:{part}"

    def keylimit(self, key_id: str, part: str) -> str:
        """Of an API key with limits, in the partition of its id."""
        return f"{self.prefix}keylimit:{key_id}:{part}"

    def circuit(self, provider: str) -> str:
        """Calls of a provider that failed in a row, and whether it is asked at all. All are in partition 0."""
        return f"{self.prefix}circuit:{provider}"

    def idempotency(self, digest: str) -> str:
        return f"{self.prefix}idem:{digest}"

    def fingerprint(self, digest: str) -> str:
        return f"{self.prefix}fp:{digest}"

    def flight(self, fingerprint: str) -> str:
        """Who fetches the answer to equal requests."""
        return f"{self.prefix}flight:{fingerprint}"

    def hot(self, fingerprint: str) -> str:
        """A copy of a cached result."""
        return f"{self.prefix}hot:{fingerprint}"


def deadline_of(generation: str, completion: str) -> str:
    """The member of ``deadlines`` for one completion of a generation that several may share."""
    return f"{generation}/{completion}"


def partition_in(name: str) -> int:
    """The partition in the name of one of our keys or channels."""
    return int(name[name.index("{p") + 2 : name.index("}")])


def scoped_digest(*parts: str | None) -> str:
    """A key name for a tuple of strings: no two different tuples share one, and nothing of them can be read in it."""
    h = hashlib.sha256()
    for part in parts:
        data = b"\xff" if part is None else part.encode("utf-8", "surrogatepass")
        h.update(len(data).to_bytes(8, "big") + data)
    return h.hexdigest()
