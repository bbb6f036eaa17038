"""The scripts of a generation's life, with a typed face. ``docs/states.md`` says what each does to the state.

Every script declares all its keys, which share a slot, and changes nothing when it runs a second time with the same
arguments, so that a call whose answer was lost is simply made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Literal

import hiredis
import msgspec

from schemas.caching import whole_choices
from schemas.keys import deadline_of
from schemas.records import Accepted, Attempted, Ended, encode_record, open_record
from schemas.states import State, other
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
    decode_target,
    end_entry,
)
from stores.redis import PATIENCE, Redis, Script, full
from stores.wire import Arg

_ACCEPT, _CLAIM, _RENEW, _APPEND = Script("accept"), Script("claim"), Script("renew"), Script("append")
_END, _CANCEL, _SETTLE, _LEAD = Script("end"), Script("cancel"), Script("settle"), Script("lead")
_ANNOTATE, _REAP, _LEAVE, _RESTART = Script("annotate"), Script("reap"), Script("leave"), Script("restart")
_REQUEUE, _SETBACK, _MARK = Script("requeue"), Script("setback"), Script("mark")
_BURY, _REVIVE, _DISCARD, _FAILOVER = Script("bury"), Script("revive"), Script("discard"), Script("failover")

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
                    *(timeout_ms, token_hex(8)),
                    deadline_of(record.id, record.id) if record.cache == "miss" else record.id,
                    int(again),
                ],
                patience=patience,
            )
        except hiredis.ReplyError as error:
            raise full(error) from None
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
                keys.queued(other(queue)),
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
        _, attempt, next_index, base, created_ms, request, info, *rest = answer
        tries, waited_ms, skip, head, call, target, now_in = rest
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
            target=decode_target(target) if target else None,
            queue=now_in.decode() if now_in else queue,
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
                    *(keys.gen(generation), keys.req(generation), keys.log(generation), keys.lease),
                    *(keys.ledger, keys.channel(generation), keys.deadlines, keys.members(generation)),
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
                    whole_choices(ended.finish_reasons) if ended.state == State.COMPLETED else 0,
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

    async def failover(
        self, claim: Claim, target: tuple[str, str] | None, past: Attempted | None, *, call: str
    ) -> Claim | None:
        """Turn an attempt to another target, None for the first one. With ``past``, the record of a call that failed,
        this is the next one, and ``call`` its own word. None for a stale attempt; its number is 0 where a cancel is
        asked for instead.
        """
        keys = self.redis.keys(claim.generation)
        number: int = await self.redis.script(
            keys.partition,
            _FAILOVER,
            [keys.gen(claim.generation)],
            [
                claim.fence,
                b"" if target is None else msgspec.json.encode(target),
                b"" if past is None else open_record(past),
                call,
            ],
            patience=HOLDER_PATIENCE,
        )
        if number < 0:
            return None
        return msgspec.structs.replace(
            claim, attempt=number, target=target, call=claim.call if past is None else call
        )

    async def leave(
        self,
        generation: str,
        past: Attempted | None,
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

        ``failed`` counts a provider call that failed. ``past`` None: no provider was asked, and nothing of the
        attempt is kept. ``fence`` is the attempt's number, as in ``past``, where it isn't given.
        """
        if fence is None:
            assert past is not None
            fence = past.number
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
                    fence,
                    batch.first,
                    batch.count,
                    batch.items,
                    batch.head,
                    pause_ms,
                    int(failed),
                    int(skip),
                    crashes.suspicious,
                    b"" if past is None else open_record(past),
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

    async def requeue(self, generation: str, queue: str, lost: int = 0, *, early: bool = False) -> int:
        """A new message's number for parked work that is due (or not, ``early``), or for queued work whose message
        ``lost`` was lost.

        0 where there is nothing to do. The caller publishes the message.
        """
        keys = self.redis.keys(generation)
        return await self.redis.script(
            keys.partition,
            _REQUEUE,
            [keys.gen(generation), keys.parked, keys.seq(queue), keys.queued(queue), keys.outbox],
            [generation, queue, -1 if early else lost],
        )

    async def cancel(
        self, ended: Ended, queue: str, *, who: Accepted | None = None, due: bool = False
    ) -> Literal["cancelled", "failed", "left", "cancelling", "leased", "ended", "gone"]:
        """End a generation that waits, as cancelled or (its deadline passed) failed; ``ended`` is what the ledger gets.

        A leased one is told to cancel, and otherwise left alone: past its deadline its worker looks itself. ``who`` is
        the completion that wants it, by default the one that created the generation: where others share it, only that
        one ends. ``due``: the deadline is that one's alone, and the worker doesn't know of it.
        """
        generation = ended.generation
        joined = who if who is not None and who.id != generation else None
        keys = self.redis.keys(generation)
        answer: bytes = await self.redis.script(
            keys.partition,
            _CANCEL,
            [
                *(keys.gen(generation), keys.req(generation), keys.log(generation), keys.ledger),
                *(keys.channel(generation), keys.queued(queue), keys.queued(other(queue)), keys.outbox),
                *(
                    keys.control,
                    keys.recovery,
                    keys.suspects,
                    keys.parked,
                    keys.deadlines,
                    keys.members(generation),
                ),
            ],
            [
                generation,
                ended.state,
                end_entry(ended),
                open_record(ended),
                generation if joined is None else joined.id,
                b"" if joined is None else encode_record(joined),
                int(due),
            ],
        )
        return answer.decode()  # type: ignore[return-value]

    async def annotate(self, completion: str, metadata: bytes) -> bool:
        """Replace the metadata (JSON) of a completion that Redis still has."""
        keys = self.redis.keys(completion)
        names = [keys.gen(completion), keys.ptr(completion)]
        return bool(await self.redis.script(keys.partition, _ANNOTATE, names, [metadata]))

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

    async def discard(self, partition: int, entries: Sequence[bytes]) -> int:
        """Drop dead letters; how many of them were still there."""
        return await self.redis.script(partition, _DISCARD, [self.redis.keyspace[partition].dead], [*entries])
