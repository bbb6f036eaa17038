"""Rows as batches: sent, watched and fetched, so that whoever is killed meanwhile nothing is lost or asked twice.

Each step is in the manifest before the next one begins: the key of a batch before its file is sent, the file before
the batch is made, the batch before it is watched. Its lines are in the folder before it is forgotten, and it is
forgotten in the same step in which its cost is noted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, BinaryIO, Protocol

import tailrace
from tailrace.amounts import NANO
from tailrace.batches import ENDED, Batch
from tailrace.errors import APIError, ConnectionFailed, TailraceError
from tailrace.evaluation.folder import Folder, Job, Spent
from tailrace.evaluation.formats import dollars
from tailrace.evaluation.lines import Lines, results
from tailrace.evaluation.results import encode

#: Rows of each arm that the server checks before anything is asked.
CHECKED = 20
#: Seconds between two looks at the answers of a batch that runs; a look that takes longer than 1/RARE of that makes the
#: next one wait.
LOOK, RARE = 2.0, 20
#: Reasons of a failed batch that are told.
REASONS = 3
#: Seconds that a file for an estimate stays at most: what nobody has removed, as the command was killed.
ESTIMATED = 3600
#: Seconds that two clocks of a server may be apart.
CLOCKS = 60


@dataclasses.dataclass(slots=True)
class Work:
    """The rows of one arm or judge. ``asked``: custom_id → digest, in the order in which they are sent; ``row`` makes
    the line of one. ``concurrency``: rows under way at once."""

    name: str
    label: str
    lines: Lines
    asked: Mapping[str, str]
    row: Callable[[str], dict[str, Any]]
    concurrency: int = 1

    def pending(self) -> list[str]:
        return [id for id, digest in self.asked.items() if not self.lines.answers(id, digest)]


class Observer(Protocol):
    """Who shows how it is going. ``looked`` has lines of a batch that runs, in a file; when it is ``collected``, all of
    its lines are in the folder."""

    def batch(self, work: Work, now: dict[str, Any]) -> None: ...

    async def collected(self, work: Work) -> None: ...

    async def looked(self, work: Work, file: BinaryIO) -> None: ...

    def told(self, line: str) -> None: ...


class Fanout:
    """``budget_nano``: what all batches of the run may cost. ``stopped`` says why nothing more is sent."""

    def __init__(
        self,
        client: tailrace.Client,
        folder: Folder,
        observer: Observer,
        *,
        budget_nano: int | None = None,
        max_error_rate: float = 0.5,
    ) -> None:
        self._client = client
        self._folder = folder
        self._observer = observer
        self._budget = budget_nano
        self._error_rate = max_error_rate
        self._live: dict[str, tuple[Batch, int]] = {}
        self._stopping: set[asyncio.Task[Any]] = set()
        self._checked: set[str] = set()
        self._failed: dict[str, set[str]] = {}
        self._sent: dict[str, list[str]] = {}
        self._failures: dict[str, str] = {}
        self.stopped: str | None = None
        self._spend()

    @property
    def spent_nano(self) -> int:
        """What this run has cost by now, as far as it is known."""
        return self._folder.manifest.spent_nano + sum(cost for _, cost in self._live.values())

    @property
    def failures(self) -> list[str]:
        """Why the last batch of one has not completed, for each where that is so."""
        return [*self._failures.values()]

    def is_under_way(self, work: Work) -> bool:
        """Whether an earlier command has sent a file or made a batch of it, and nobody knows yet what came of that."""
        return self._job(work).file is not None

    async def catch_up(self, work: Work) -> None:
        """Keep what the batch of an earlier command has come to, if it has ended: whatever is wrong by now with models
        or prices, what was answered is not lost. Raises TailraceError."""
        now = await self._found(work)
        if now is not None and now["status"] in ENDED:
            await self._keep(work, self._client.batches.batch(now["id"]), now)

    async def check(self, work: Work) -> None:
        """Have the server look at some rows before anything is asked. Raises TailraceError where it would refuse them,
        or where there is a budget and nobody knows the price."""
        pending = work.pending()[:CHECKED]
        if not pending or self.stopped is not None or work.name in self._checked:
            return
        found = await estimate(self._client, [work.row(id) for id in pending])
        errors: list[dict[str, Any]] = found.get("errors") or []
        for error in errors:
            raise TailraceError(f"{work.label}: the server refuses its requests: {error['message']}")
        if self._budget is not None and found["cost"] is None:
            raise TailraceError(
                f"budget: nobody knows what {work.label} costs, so no budget can hold: "
                "give its model a price in providers.toml, or leave the budget out"
            )
        self._checked.add(work.name)

    async def finish(self, work: Work) -> None:
        """Until every row of it has had its try. Raises TailraceError; cancelled, the batches go on."""
        batch = await self._left(work)
        if batch is not None:
            await self._follow(work, batch)
        failed = self._failed.get(work.name, set())
        pending = [id for id in work.pending() if id not in failed]
        if pending and self.stopped is None:
            await self.check(work)
            batch = await self._submit(work, pending)
            if batch is not None:
                await self._follow(work, batch)

    def stop(self, reason: str) -> None:
        """Send nothing more, and cancel what runs: what is answered stays."""
        if self.stopped is not None:
            return
        self.stopped = reason
        for batch, _ in self._live.values():
            task = asyncio.create_task(self._cancel(batch))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _cancel(self, batch: Batch) -> None:
        try:
            await batch.cancel()
        except (APIError, ConnectionFailed) as error:
            if not isinstance(error, tailrace.Conflict):  # it has ended
                self._observer.told(f"{batch.id} could not be cancelled: {error}")

    # ------------------------------------------------------------------------------------------------ one batch

    def _job(self, work: Work) -> Job:
        return self._folder.manifest.jobs.setdefault(work.name, Job())

    def _save(self, work: Work, **fields: Any) -> None:
        job = self._job(work)
        for name, value in fields.items():
            setattr(job, name, value)
        self._folder.save()

    def _forget(self, work: Work) -> None:
        self._save(work, key=None, file=None, uploaded=0, batch=None, rows=0)

    async def _found(self, work: Work) -> dict[str, Any] | None:
        """The batch that an earlier command left as it is now, also where that one ended before it knew of it."""
        job = self._job(work)
        if job.batch is not None:
            try:
                return await self._client.batches.batch(job.batch).retrieve()
            except tailrace.NotFound:
                self._observer.told(
                    f"the server knows {job.batch} no more: what has no answer is asked again"
                )
                self._spent(work, job.batch, None)
                self._forget(work)
                return None
        if job.file is None:
            return None
        # Its Idempotency-Key is remembered for a day, and not by a Redis that has lost all it had.
        async with aclosing(self._client.batches.list()) as batches:
            async for there in batches:
                if there["input_file_id"] == job.file:
                    self._save(work, batch=there["id"])
                    return there
                if there["created_at"] < job.uploaded - CLOCKS:
                    break
        return None

    async def _left(self, work: Work) -> Batch | None:
        """What an earlier command left, to be followed: its batch, or that of the file that it has sent."""
        now = await self._found(work)
        if now is not None:
            return self._client.batches.batch(now["id"])
        job = self._job(work)
        if job.file is None or self.stopped is not None:
            return None
        try:
            return await self._create(work, job.file)
        except (tailrace.NotFound, tailrace.InvalidRequest):  # the file is gone
            self._forget(work)
            return None

    async def _submit(self, work: Work, pending: list[str]) -> Batch | None:
        """None where it was stopped meanwhile."""
        self._sent[work.name] = pending
        self._failures.pop(work.name, None)
        self._save(work, key=str(uuid.uuid4()), rows=len(pending), concurrency=work.concurrency)
        with tempfile.TemporaryFile(dir=self._folder.path) as spool:
            for id in pending:
                spool.write(encode(work.row(id)))
                spool.write(b"\n")
            spool.flush()
            file = await self._client.files.upload(spool, name=f"{work.name.replace('/', '-')}.jsonl")
        self._save(work, file=file["id"], uploaded=file["created_at"])
        return None if self.stopped is not None else await self._create(work, file["id"])

    async def _create(self, work: Work, file: str) -> Batch:
        """The batch of an uploaded file. Made twice with the same words under the same key, it is one batch."""
        manifest, job = self._folder.manifest, self._job(work)
        batch = await self._client.batches.create(
            file,
            idempotency_key=job.key,
            max_concurrency=job.concurrency,
            max_error_rate=self._error_rate,
            metadata={"eval": manifest.name, "run": manifest.id, "part": work.label[:512]},
        )
        self._save(work, batch=batch.id)
        return batch

    async def _follow(self, work: Work, batch: Batch) -> None:
        """Watch it to its end and keep its lines."""
        now: dict[str, Any] = {}
        self._live[work.name] = (batch, 0)
        looking = asyncio.create_task(self._look(work, batch))
        try:
            async with aclosing(batch.watch()) as looks:
                async for now in looks:
                    self._live[work.name] = (batch, int(now.get("cost") or 0))
                    self._observer.batch(work, now)
                    self._spend()
                    if self.stopped is not None and now["status"] in ("validating", "in_progress"):
                        await self._cancel(batch)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        await self._keep(work, batch, now)
        await self._observer.collected(work)

    async def _keep(self, work: Work, batch: Batch, now: dict[str, Any]) -> None:
        """Keep the lines of a batch that has ended. When they are in the folder, what it has cost is noted, and the
        batch forgotten, in one step: so its cost counts once, whatever is killed."""
        with tempfile.TemporaryFile(dir=self._folder.path) as fetched:
            await batch.download(fetched)
            failed = await asyncio.to_thread(work.lines.merge, results(fetched), work.asked)
        self._failed[work.name] = failed
        self._spent(work, batch.id, None if now.get("cost") is None else int(now["cost"]))
        self._live.pop(work.name, None)
        self._forget(work)
        if now["status"] in ("failed", "expired"):
            self._failures[work.name] = f"{work.label}: {_reason(now, self._sent.get(work.name, []))}"
        elif now["status"] == "cancelled" and self.stopped is None:
            self._failures[work.name] = f"{work.label}: batch {batch.id} was cancelled"

    def _spent(self, work: Work, batch: str, cost: int | None) -> None:
        self._folder.manifest.spent.append(Spent(work.name, batch, cost))

    def _spend(self) -> None:
        if self._budget is not None and self.spent_nano >= self._budget:
            self.stop(f"the budget of {dollars(self._budget / NANO)} is spent")

    async def _look(self, work: Work, batch: Batch) -> None:
        """Show the observer now and then what is answered by now."""
        pause = LOOK
        while True:
            await asyncio.sleep(pause)
            start = time.monotonic()
            try:
                with tempfile.TemporaryFile() as file:
                    await batch.download(file)
                    await self._observer.looked(work, file)
            except (APIError, ConnectionFailed):
                pass  # the watching says what is wrong
            pause = max(LOOK, RARE * (time.monotonic() - start))


async def estimate(
    client: tailrace.Client, rows: list[dict[str, Any]], *, sample: int = 1000
) -> dict[str, Any]:
    """What rows would come to, by the server's own look at them; see ``Batches.estimate``."""
    with tempfile.TemporaryFile() as spool:
        for row in rows:
            spool.write(encode(row))
            spool.write(b"\n")
        file = await client.files.upload(spool, name="estimate.jsonl", expires_after=ESTIMATED)
    found = await client.batches.estimate(file["id"], sample=sample)
    with suppress(APIError, ConnectionFailed):
        await client.files.delete(file["id"])
    return found


def _reason(batch: dict[str, Any], sent: list[str]) -> str:
    """Why it has not completed. ``sent``: its rows, where this command has sent them."""
    found: dict[str, Any] = batch.get("errors") or {}
    errors: list[dict[str, Any]] = found.get("data") or []
    if not errors:
        return f"batch {batch['id']} is {batch['status']}"
    told: list[str] = []
    for error in errors[:REASONS]:
        line = error.get("line")
        row = f"{sent[line - 1]}: " if line and line <= len(sent) else f"row {line}: " if line else ""
        told.append(f"{row}{error.get('message') or error.get('code')}")
    if len(errors) > REASONS:
        told.append(f"and {len(errors) - REASONS:,} more")
    reasons = "; ".join(told)
    if batch.get("in_progress_at") is not None:
        return reasons
    return (
        f"the server refuses its requests, and none of them was sent: {reasons}. Mend the suite or its items, and run "
        "that: it takes the answers that this run has"
    )
