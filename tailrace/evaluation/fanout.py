"""Rows as batches: sent, watched and fetched, so that whoever is killed meanwhile nothing is lost or asked twice.

Each step is in the manifest before the next one begins: the key of a batch before its file is sent, the file before
the batch is made, the batch before it is watched. Its lines are in the folder before it is forgotten.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, BinaryIO, Protocol

import tailrace
from tailrace.batches import Batch
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
#: Nano-dollars to the dollar.
NANO = 10**9


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
        self.stopped: str | None = None
        self.failures: list[str] = []

    @property
    def spent_nano(self) -> int:
        """What this run has cost by now, as far as it is known."""
        return self._folder.manifest.spent_nano + sum(cost for _, cost in self._live.values())

    async def check(self, work: Work) -> None:
        """Have the server look at some rows before anything is asked. Raises TailraceError where it would refuse them,
        or where there is a budget and nobody knows the price."""
        pending = work.pending()[:CHECKED]
        if not pending:
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

    async def finish(self, work: Work) -> None:
        """Until every row of it has had its try. Raises TailraceError; cancelled, the batches go on."""
        failed: set[str] = set()
        batch = await self._left(work)
        if batch is not None:
            failed = await self._follow(work, batch)
        self._spend()
        pending = [id for id in work.pending() if id not in failed]
        if pending and self.stopped is None:
            await self._follow(work, await self._submit(work, pending))

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

    async def _left(self, work: Work) -> Batch | None:
        """The batch that an earlier command left, also where that one ended before it knew of it."""
        job = self._job(work)
        if job.batch is not None:
            try:
                await self._client.batches.batch(job.batch).retrieve()
            except tailrace.NotFound:
                self._observer.told(
                    f"the server knows {job.batch} no more: what has no answer is asked again"
                )
                self._forget(work)
                return None
            return self._client.batches.batch(job.batch)
        if job.file is None:
            return None
        try:
            return await self._create(work, job.file)
        except (tailrace.NotFound, tailrace.InvalidRequest):
            self._forget(work)
            return None

    def _forget(self, work: Work) -> None:
        self._save(work, key=None, file=None, batch=None, rows=0)

    async def _submit(self, work: Work, pending: list[str]) -> Batch:
        self._save(work, key=str(uuid.uuid4()), rows=len(pending), concurrency=work.concurrency)
        with tempfile.TemporaryFile() as spool:
            for id in pending:
                spool.write(encode(work.row(id)))
                spool.write(b"\n")
            spool.flush()
            file = await self._client.files.upload(spool, name=f"{work.name.replace('/', '-')}.jsonl")
        self._save(work, file=file["id"])
        return await self._create(work, file["id"])

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

    async def _follow(self, work: Work, batch: Batch) -> set[str]:
        """Watch it to its end and keep its lines; the rows that failed."""
        now: dict[str, Any] = {}
        self._live[work.name] = (batch, 0)
        looking = asyncio.create_task(self._look(work, batch))
        try:
            async with aclosing(batch.watch()) as looks:
                async for now in looks:
                    self._live[work.name] = (batch, int(now.get("cost") or 0))
                    self._observer.batch(work, now)
                    self._spend()
                    if self.stopped is not None and now["status"] == "in_progress":
                        await self._cancel(batch)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        failed = await self._collect(work, batch)
        cost = None if now.get("cost") is None else int(now["cost"])
        self._folder.manifest.spent.append(Spent(work.name, batch.id, cost))
        del self._live[work.name]
        self._forget(work)
        await self._observer.collected(work)
        if now["status"] in ("failed", "expired"):
            self.failures.append(f"{work.label}: {_reason(now)}")
        elif now["status"] == "cancelled" and self.stopped is None:
            self.failures.append(f"{work.label}: batch {batch.id} was cancelled")
        return failed

    def _spend(self) -> None:
        if self._budget is not None and self.spent_nano >= self._budget:
            self.stop(f"the budget of {dollars(self._budget / NANO)} is spent")

    async def _collect(self, work: Work, batch: Batch) -> set[str]:
        with tempfile.TemporaryFile(dir=self._folder.path) as fetched:
            await batch.download(fetched)
            return await asyncio.to_thread(work.lines.merge, results(fetched), work.asked)

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
        file = await client.files.upload(spool, name="estimate.jsonl")
    try:
        return await client.batches.estimate(file["id"], sample=sample)
    finally:
        await client.files.delete(file["id"])


def _reason(batch: dict[str, Any]) -> str:
    """Why it has not completed."""
    found: dict[str, Any] = batch.get("errors") or {}
    errors: list[dict[str, Any]] = found.get("data") or []
    told = "; ".join(str(error.get("message") or error.get("code")) for error in errors[:3])
    return told or f"batch {batch['id']} is {batch['status']}"
