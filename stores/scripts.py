"""The scripts of a generation's life, with a typed face. ``docs/states.md`` says what each does to the state.

Every script declares all its keys, which share a slot, and changes nothing when it runs a second time with the same
arguments, so that a call whose answer was lost is simply made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Literal

import hiredis

from schemas.errors import Unavailable
from schemas.records import Accepted, Attempted, Ended, open_record
from stores.outcomes import (
    ANYTIME,
    NOTHING,
    AcceptResult,
    Append,
    Batch,
    Calm,
    Claim,
    Crashes,
    EndResult,
    Fence,
    Left,
    NotClaimed,
    Rank,
    Renewal,
    end_entry,
)
from stores.redis import PATIENCE, Redis, Script
from stores.wire import Arg

_ACCEPT, _CLAIM, _RENEW, _APPEND = Script("accept"), Script("claim"), Script("renew"), Script("append")
_END, _CANCEL, _SETTLE, _LEAD = Script("end"), Script("cancel"), Script("settle"), Script("lead")
_ANNOTATE, _REAP, _LEAVE, _RESTART = Script("annotate"), Script("reap"), Script("leave"), Script("restart")
_REQUEUE, _SETBACK, _MARK = Script("requeue"), Script("setback"), Script("mark")
_BURY, _REVIVE = Script("bury"), Script("revive")

#: How far ahead indexes go on where Redis may have lost chunks that somebody has read.
SKIP = 1_000_000

#: How long the holder of a lease tries to reach Redis before it gives its attempt up, in seconds.
HOLDER_PATIENCE = 60.0


_APPENDS = {code.value: code for code in Append}


class Scripts:
    """The scripts on one key space."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def accept(
        self,
        record: Accepted,
        request: bytes,
        *,
        timeout_ms: int = 0,
        again: bool = False,
        patience: float = PATIENCE,
    ) -> AcceptResult:
        """Take a completion in, with a generation of the same id; ``timeout_ms`` from now is its deadline, 0 is none.
        ``again``: Redis had it, and lost it.

        Raises Unavailable, also when memory is full.
        """
        keys = self.redis.keys(record.id)
        try:
            fresh, created_ms, seq = await self.redis.script(
                keys.partition,
                _ACCEPT,
                [
                    keys.gen(record.id),
                    keys.req(record.id),
                    keys.outbox,
                    keys.ledger,
                    keys.seq(record.queue),
                    keys.queued(record.queue),
                    keys.deadlines,
                ],
                [
                    *(record.id, record.queue, request, open_record(record)),
                    *(timeout_ms, token_hex(8), int(again)),
                ],
                patience=patience,
            )
        except hiredis.ReplyError as error:
            if str(error).startswith("OOM"):
                raise Unavailable(
                    "Redis has no memory left for new work. Try again later.", retry_after=30
                ) from None
            raise
        return AcceptResult(bool(fresh), created_ms, seq)

    async def published(self, generation: str) -> None:
        """The message is out: clear the outbox entry."""
        keys = self.redis.keys(generation)
        await self.redis.command(keys.partition, "HDEL", keys.outbox, generation)

    async def claim(
        self,
        generation: str,
        *,
        queue: str,
        worker: str,
        lease_ms: int,
        seq: int = 0,
        patience: float = HOLDER_PATIENCE,
    ) -> Claim | NotClaimed:
        keys = self.redis.keys(generation)
        answer = await self.redis.script(
            keys.partition,
            _CLAIM,
            [
                keys.gen(generation),
                keys.req(generation),
                keys.lease,
                keys.queued(queue),
                keys.mark(queue),
                keys.outbox,
                keys.recovery,
                keys.suspects,
            ],
            [generation, worker, lease_ms, seq, token_hex(8)],
            patience=patience,
        )
        if answer[0] != b"claimed":
            return NotClaimed(answer[0].decode())
        _, attempt, next_index, base, created_ms, request, info, tries, waited_ms, skip, head, call = answer
        return Claim(
            generation=generation,
            attempt=attempt,
            next=next_index,
            base=base,
            created_ms=created_ms,
            request=request or b"",
            info=info,
            tries=tries,
            waited_ms=waited_ms,
            skip=bool(skip),
            head=head,
            call=call.decode(),
        )

    async def renew(
        self, partition: int, held: Mapping[str, Fence], *, lease_ms: int, patience: float = PATIENCE
    ) -> dict[str, Renewal]:
        """All leases (generation → fence) that a process holds in one partition, in one call."""
        keys = self.redis.keyspace[partition]
        args: list[Arg] = [lease_ms]
        for generation, fence in held.items():
            args += [generation, fence]
        answer = await self.redis.script(
            partition, _RENEW, [keys.lease, *(keys.gen(g) for g in held)], args, patience=patience
        )
        return {g: Renewal(code) for g, code in zip(held, answer, strict=True)}

    async def append(self, generation: str, fence: Fence, batch: Batch) -> Append:
        """Append chunks to one log."""
        partition = self.redis.partition(generation)
        return (await self.append_all(partition, [(generation, fence, batch)]))[0]

    async def append_all(self, partition: int, appends: Sequence[tuple[str, Fence, Batch]]) -> list[Append]:
        """Appends (generation, fence, chunks) to several logs of one partition, in one call."""
        keys = self.redis.keyspace[partition]
        names: list[str] = []
        args: list[Arg] = []
        for generation, fence, batch in appends:
            names += (keys.gen(generation), keys.log(generation), keys.channel(generation))
            args += (fence, batch.first, batch.count, batch.items, batch.head)
        answer = await self.redis.script(partition, _APPEND, names, args, patience=HOLDER_PATIENCE)
        return [_APPENDS[code] for code in answer]

    async def end(
        self,
        ended: Ended,
        fence: Fence,
        batch: Batch = NOTHING,
        *,
        expired_only: bool = False,
        patience: float = HOLDER_PATIENCE,
    ) -> EndResult:
        """End a generation under an attempt. ``expired_only`` is the reaper's: only when the lease ran out."""
        generation = ended.generation
        keys = self.redis.keys(generation)
        return EndResult(
            await self.redis.script(
                keys.partition,
                _END,
                [
                    keys.gen(generation),
                    keys.req(generation),
                    keys.log(generation),
                    keys.lease,
                    keys.ledger,
                    keys.channel(generation),
                    keys.deadlines,
                ],
                [
                    generation,
                    fence,
                    batch.first,
                    batch.count,
                    batch.items,
                    batch.head,
                    ended.state,
                    end_entry(ended),
                    open_record(ended),
                    "1" if expired_only else "0",
                ],
                patience=patience,
            )
        )

    async def reap(
        self,
        generation: str,
        attempt: int,
        past: Attempted,
        *,
        crashes: Crashes,
        skip: bool = False,
        calm: Calm = ANYTIME,
    ) -> Literal["recovering", "crashed", "cancelled", "held", "gone", "early"]:
        """An attempt whose lease ran out: its generation waits for the next one, or is to be ended by the caller.

        ``skip``: Redis may have lost chunks of it.
        """
        keys = self.redis.keys(generation)
        answer: bytes = await self.redis.script(
            keys.partition,
            _REAP,
            [keys.gen(generation), keys.lease, keys.recovery, keys.suspects, keys.control, keys.heard],
            [
                *(generation, attempt, crashes.allowed, crashes.suspicious, int(skip)),
                *(calm.lasts_ms, calm.gap_ms, open_record(past)),
            ],
        )
        return answer.decode()  # type: ignore[return-value]

    async def leave(
        self,
        generation: str,
        past: Attempted,
        batch: Batch = NOTHING,
        *,
        crashes: Crashes,
        fence: Fence | None = None,
        pause_ms: int = 0,
        failed: bool = False,
        skip: bool = False,
        patience: float = HOLDER_PATIENCE,
    ) -> Left:
        """Give an attempt up: its generation is parked for ``pause_ms``, or (0) waits to be recovered at once.

        ``failed`` counts a provider call that failed. ``fence`` is the attempt's number where it isn't given.
        """
        keys = self.redis.keys(generation)
        return Left(
            await self.redis.script(
                keys.partition,
                _LEAVE,
                [
                    keys.gen(generation),
                    keys.log(generation),
                    keys.lease,
                    keys.channel(generation),
                    keys.control,
                    keys.recovery,
                    keys.suspects,
                    keys.parked,
                ],
                [
                    generation,
                    past.number if fence is None else fence,
                    batch.first,
                    batch.count,
                    batch.items,
                    batch.head,
                    pause_ms,
                    int(failed),
                    int(skip),
                    crashes.suspicious,
                    open_record(past),
                ],
                patience=patience,
            )
        )

    async def restart(self, generation: str, fence: Fence) -> int | None:
        """Abandon what earlier attempts published; the index of this one's first chunk, None for a stale attempt."""
        keys = self.redis.keys(generation)
        base: int = await self.redis.script(
            keys.partition,
            _RESTART,
            [keys.gen(generation), keys.log(generation), keys.channel(generation)],
            [fence, SKIP],
            patience=HOLDER_PATIENCE,
        )
        return None if base < 0 else base

    async def setback(self, generation: str, fence: Fence, next_index: int) -> bool:
        """Whether Redis has lost something of what an attempt had published, up to ``next_index``; if so, the next one
        is told.
        """
        keys = self.redis.keys(generation)
        return bool(
            await self.redis.script(keys.partition, _SETBACK, [keys.gen(generation)], [fence, next_index])
        )

    async def mark(self, partition: int, queue: str, seq: int) -> None:
        """A probe was taken from its queue."""
        await self.redis.script(partition, _MARK, [self.redis.keyspace[partition].mark(queue)], [seq])

    async def requeue(self, generation: str, queue: str, lost: int = 0) -> int:
        """A new message's number for parked work that is due, or for queued work whose message ``lost`` was lost.

        0 where there is nothing to do. The caller publishes the message.
        """
        keys = self.redis.keys(generation)
        return await self.redis.script(
            keys.partition,
            _REQUEUE,
            [keys.gen(generation), keys.parked, keys.seq(queue), keys.queued(queue), keys.outbox],
            [generation, queue, lost],
        )

    async def cancel(
        self, ended: Ended, queue: str
    ) -> Literal["cancelled", "failed", "cancelling", "leased", "ended", "gone"]:
        """End a generation that waits, as cancelled or (its deadline passed) failed; ``ended`` is what the ledger gets.

        A leased one is told to cancel, and otherwise left alone.
        """
        generation = ended.generation
        keys = self.redis.keys(generation)
        answer: bytes = await self.redis.script(
            keys.partition,
            _CANCEL,
            [
                keys.gen(generation),
                keys.req(generation),
                keys.log(generation),
                keys.ledger,
                keys.channel(generation),
                keys.queued(queue),
                keys.outbox,
                keys.control,
                keys.recovery,
                keys.suspects,
                keys.parked,
                keys.deadlines,
            ],
            [generation, ended.state, end_entry(ended), open_record(ended)],
        )
        return answer.decode()  # type: ignore[return-value]

    async def annotate(self, generation: str, metadata: bytes) -> bool:
        """Replace the metadata (JSON) of a completion that Redis still has."""
        keys = self.redis.keys(generation)
        return bool(await self.redis.script(keys.partition, _ANNOTATE, [keys.gen(generation)], [metadata]))

    async def lead(
        self,
        partition: int,
        role: str,
        token: str,
        ttl_ms: int,
        rank: Rank = Rank.FIRST,
        calm: Calm = ANYTIME,
    ) -> bool:
        """Become or stay the leader of a role in a partition; ``token`` names the process. Asking shows that Redis is
        reachable."""
        keys = self.redis.keyspace[partition]
        names = [keys.lock(role), keys.rank(role), keys.heard]
        return bool(
            await self.redis.script(partition, _LEAD, names, [token, ttl_ms, rank.value, calm.gap_ms])
        )

    async def settle(
        self, partition: int, role: str, token: str, entries: Sequence[bytes], ttls: Mapping[str, int]
    ) -> bool:
        """Drop ledger entries that SQL has, and give keys their TTL (ms). False: the lock is somebody else's by now."""
        keys = self.redis.keyspace[partition]
        answer = await self.redis.script(
            partition,
            _SETTLE,
            [keys.lock(role), keys.ledger, *ttls],
            [token, len(entries), *entries, *ttls.values()],
        )
        return answer >= 0

    async def bury(self, partition: int, role: str, token: str, refused: Mapping[bytes, str]) -> bool:
        """Move ledger entries (id → why) to the dead letters. False: the lock is somebody else's by now."""
        keys = self.redis.keyspace[partition]
        args: list[Arg] = [token]
        for entry, reason in refused.items():
            args += (entry, reason)
        answer = await self.redis.script(partition, _BURY, [keys.lock(role), keys.ledger, keys.dead], args)
        return answer >= 0

    async def revive(self, partition: int, entries: Sequence[bytes]) -> int:
        """Put dead letters back on the ledger; how many of them were still there."""
        keys = self.redis.keyspace[partition]
        return await self.redis.script(partition, _REVIVE, [keys.dead, keys.ledger], [*entries])
