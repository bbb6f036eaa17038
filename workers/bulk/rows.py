"""A row of a batch as a completion: what it asks for, and what is known of how far it is."""

from __future__ import annotations

import msgspec

from producers.submit import never_ran
from schemas.caching import CachePolicy, cache_policy
from schemas.errors import Failure
from schemas.headers import cache_directives
from schemas.providers import Resolved
from schemas.records import Accepted, Ended
from schemas.states import Queue, State
from stores.flights import Result
from stores.slices import RowAsked, Slice


class _Body(msgspec.Struct, frozen=True):
    """What decides how a request is answered."""

    model: str
    temperature: float | None = None
    store: bool | None = None
    n: float | None = None
    metadata: dict[str, str] | None = None


_body_decoder = msgspec.json.Decoder(_Body)


class Row:
    """``queued``: its generation waits for a worker; ``parked``: for its time; ``streamed``: it has ended, and the
    books are to learn of it; ``known``: it was accepted, by whomever; ``lost``: and Redis has nothing of it. ``since``:
    when it was last heard of.
    """

    __slots__ = ("asked", "body", "cancelled_at", "known", "lost", "parked", "policy", "queued", "running",
                 "since", "streamed")  # fmt: skip

    def __init__(self, asked: RowAsked) -> None:
        self.asked = asked
        self.body = _body_decoder.decode(asked.body)
        self.policy: CachePolicy = cache_policy(
            {} if asked.cache_control is None else cache_directives(asked.cache_control),
            temperature=self.body.temperature,
            sample=asked.sample,
            store=self.body.store is not False,
        )
        self.known = self.lost = self.queued = self.running = self.parked = self.streamed = False
        self.since = 0.0
        self.cancelled_at = 0.0

    @property
    def id(self) -> str:
        return self.asked.completion_id

    def record(self, slice: Slice, resolved: Resolved, *, fingerprint: str | None = None) -> Accepted:
        """Stored whatever it asks for: until the batch has its files."""
        return Accepted(
            id=self.id,
            generation=self.id,
            tenant=slice.tenant,
            key_id=slice.key_id,
            end_user=self.asked.end_user,
            model=self.body.model,
            provider=resolved.provider,
            resolved_model=resolved.model,
            queue=Queue.BULK.value,
            fingerprint=fingerprint or self.asked.fingerprint,
            metadata=self.body.metadata,
            cache="miss" if self.policy.writes else "bypass",
            choices=int(self.body.n or 1) if self.policy.writes else 1,
            batch_id=slice.batch,
        )

    def hit(self, slice: Slice, result: Result, now_ms: int) -> Accepted:
        """As answered by what is cached."""
        resolved = Resolved(self.body.model, result.provider, result.model, ())
        return msgspec.structs.replace(
            self.record(slice, resolved), generation=result.generation, cache="hit", created_ms=now_ms
        )

    def taken(self, slice: Slice, now_ms: int, result: Result, age_ms: int) -> Accepted | None:
        """As answered by what is cached, unless that is too old."""
        return self.hit(slice, result, now_ms) if self.takes(age_ms) else None

    def forget_body(self) -> None:
        """It is not sent."""
        self.asked = msgspec.structs.replace(self.asked, body=b"")

    def takes(self, age_ms: int) -> bool:
        """Whether an answer so old will do."""
        return self.policy.max_age is None or age_ms <= self.policy.max_age * 1000


def refused(record: Accepted, failure: Failure, now_ms: int) -> tuple[Accepted, Ended]:
    """The records of a row that failed before it was anybody's work."""
    end = msgspec.structs.replace(
        never_ran(record), state=State.FAILED.value, created_ms=now_ms, ended_ms=now_ms, failure=failure
    )
    return msgspec.structs.replace(record, created_ms=now_ms), end
