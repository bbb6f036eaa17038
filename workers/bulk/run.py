"""One slice of a batch: its rows are begun, waited for and counted, and it is done or handed back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from secrets import token_hex

from sqlalchemy.exc import SQLAlchemyError

from producers.submit import never_ran
from producers.work import Work, encode_work
from schemas.batches import JOB_LEASE_MS, SliceState
from schemas.errors import TailraceError, Unavailable
from schemas.fingerprint import fingerprint
from schemas.providers import Resolved
from schemas.records import Record
from schemas.request import parse_request
from schemas.states import ENDED, Queue, State
from stores.answers import Take
from stores.slices import RowAsked, RowEnd, Slice, Sums, sums_of
from workers.bulk.budgets import NoRoom
from workers.bulk.rows import Row, refused
from workers.bulk.tools import FAILURE_PAUSE, Tools, persist

log = logging.getLogger("tailrace.batches")

#: After so long no more rows are begun, in seconds: others have their turn.
TURN = 60.0
#: Slices that are answered at once without being dealt, and how often, while the cache answers all of their rows.
PAGE, PAGES = 10, 10
#: Between looks at rows that others have, that wait for their time, or that should be in the books by now, in seconds.
LOOK_PAUSE = 0.5
#: How long the books may take before a row is looked for in Redis again, and a cancel to have effect before it is asked
#: for again, in seconds.
BOOKS_LATE, CANCEL_LATE = 5.0, 5.0
#: The lease was not renewed for so long: nothing more is begun, in seconds.
STALE = JOB_LEASE_MS / 1000 * 2 / 3

_ENDED = frozenset(state.value.encode() for state in ENDED)


class SliceRun:
    """``again``: somebody had the slice before. ``on_idle`` is told once when all of it has been streamed and the books
    are to learn of it. Everything here happens on the loop of the streams, and SQL in a thread.
    """

    def __init__(
        self, tools: Tools, slice: Slice, *, again: bool, on_idle: Callable[[SliceRun], Awaitable[None]]
    ) -> None:
        self.slice = slice
        self._again = again
        self._on_idle = on_idle
        self._idle = False
        self._tools = tools
        self._loop = asyncio.get_running_loop()
        self._began = self._kept_at = self._loop.time()
        self._pending: deque[Row] = deque()
        self._open: dict[str, Row] = {}
        self._ends: dict[str, RowEnd] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._stopped = slice.stopped
        self._lost = self._released = False
        self._pause_until = self._look_at = 0.0
        self._cached = self._is_read = False
        self._more = PAGES

    @property
    def counts(self) -> tuple[int, int]:
        """Rows that were answered, and that failed."""
        good = sum(end.status == State.COMPLETED for end in self._ends.values())
        return good, len(self._ends) - good

    @property
    def concurrency(self) -> int:
        """What it needs of the batch's: all of its own while there is something to begin, or may be."""
        if not self._is_read or (self._pending and not self._stopped):
            return self.slice.concurrency
        return min(self.slice.concurrency, len(self._tasks))

    def kept(self, now: float, *, stopped: bool | None) -> None:
        """``stopped``: whether the batch is; None where the slice is another's."""
        if stopped is None:
            self._lost = True
        else:
            self._kept_at = now
            self._stopped = self._stopped or stopped
        self._changed.set()

    def release(self) -> None:
        self._released = True
        self._changed.set()

    async def run(self) -> str:
        """What became of the slice, once no row of it streams here."""
        outcome = await self._run()
        if self._tasks:
            await asyncio.wait(self._tasks)
        return outcome

    async def _run(self) -> str:
        try:
            if await persist(self._read, f"{self.slice.batch}: its rows can't be read") is None:
                return "unavailable"
            while True:
                self._changed.clear()
                outcome = await self._step()
                if outcome is not None:
                    return outcome
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), LOOK_PAUSE)
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            raise
        finally:
            for id in self._open:
                self._tools.ends.forget(id)

    async def _step(self) -> str | None:
        """What there is to do now; what became of the slice, once that is known."""
        if self._lost:
            return "lost"
        if self._released:
            await self._finish(SliceState.READY)
            return "released"
        if not self._open and not self._pending:
            if self._cached and self._more and not self._stopped:
                await self._go_ahead()
                return None
            return "done" if await self._finish(SliceState.DONE) else "lost"
        now = self._loop.time()
        if self._stopped:
            self._pending.clear()
            await self._cancel(now)
        elif now - self._began < TURN:
            self._begin(now)
            if not (self._tasks or self._pending or self._idle):
                self._idle = True
                await self._on_idle(self)
        elif not self._tasks and (self._pending or not all(r.streamed for r in self._open.values())):
            await self._finish(SliceState.READY)
            return "handed back"
        if now >= self._look_at:
            self._look_at = now + LOOK_PAUSE
            await self._look(now)
        return None

    async def _go_ahead(self) -> None:
        """It cost its provider nothing, and so may the batch's next ones."""
        self._more -= 1
        what = f"{self.slice.batch}: rows can't be answered by the cache"
        tools, slice = self._tools, self.slice

        async def page() -> bool:
            now_ms = await tools.redis.now_ms(0)

            def judge(asked: RowAsked) -> Take | None:
                row = Row(asked)
                row.forget_body()
                return partial(row.taken, slice, now_ms) if row.policy.reads else None

            async with tools.answering:
                return await asyncio.to_thread(tools.answers.ahead, slice, token_hex(8), PAGE, judge)

        if not await persist(page, what):
            self._more = 0
        self._changed.set()

    async def _finish(self, state: SliceState) -> bool:
        sums: Sums = sums_of(self._ends.values())
        what = f"{self.slice.batch}: rows from {self.slice.first} are {state.value}"
        finish = self._tools.table.finish
        return bool(await persist(lambda: asyncio.to_thread(finish, self.slice, state, sums), what))

    # The rows as they are found

    async def _read(self) -> bool:
        """What is left to do: rows that have no end, after those that an earlier holder began."""
        asked = await asyncio.to_thread(self._tools.table.rows, self.slice)
        rows = [Row(each) for each in asked]
        if self._again:
            rows = await self._left(rows)
        self._again = True  # where this fails and is done once more
        self._pending.clear()
        self._open.clear()
        for row in rows:
            if row.queued:
                self._start(row, claim=True)
            elif row.known:
                self._wait(row)
        fresh = [row for row in rows if not row.known]
        self._cached = not self._open
        if not self._stopped:
            self._pending.extend(await self._answer(fresh))
            self._cached = self._cached and not self._pending
        self._is_read = True
        return True

    async def _left(self, rows: Sequence[Row]) -> list[Row]:
        """Those without an end, and how far they are."""
        # Redis first: what it has forgotten by now, the books have had before.
        await self._see(rows)
        ids = [row.id for row in rows]
        self._ends = await asyncio.to_thread(self._tools.table.ended, ids, early=True)
        left = [row for row in rows if row.id not in self._ends]
        absent = [row.id for row in left if not row.known]
        known = await asyncio.to_thread(self._tools.table.known, absent) if absent else {}
        for row in left:
            generation = known.get(row.id)
            if generation is not None:
                # Redis has lost what it was accepted with; one that pointed elsewhere is the reconciler's.
                row.known, row.lost = generation != row.id, generation == row.id
        return left

    async def _see(self, rows: Sequence[Row]) -> None:
        """How far Redis says that they are. Raises Unavailable."""
        by_partition: dict[int, list[Row]] = {}
        for row in rows:
            by_partition.setdefault(self._tools.redis.partition(row.id), []).append(row)
        now = self._loop.time()
        for partition, some in by_partition.items():
            keys = self._tools.redis.keyspace[partition]
            queued = keys.queued(Queue.BULK.value)
            states = await self._tools.redis.commands(
                partition, [("HGET", keys.gen(row.id), "state") for row in some]
            )
            places = await self._tools.redis.commands(partition, [("ZSCORE", queued, row.id) for row in some])
            points = await self._tools.redis.commands(
                partition, [("EXISTS", keys.ptr(row.id)) for row in some]
            )
            for row, state, place, point in zip(some, states, places, points, strict=True):
                row.known = state is not None or bool(point)
                row.streamed = state in _ENDED
                row.parked = state == State.PARKED.value.encode() or (row.parked and place is not None)
                if row.known:
                    row.since = now
                row.queued = place is not None and state == State.QUEUED.value.encode()

    async def _answer(self, rows: Sequence[Row]) -> list[Row]:
        """Those that nothing in the cache answers; the others have their end in the books."""
        reads = [row for row in rows if row.policy.reads and not row.lost]
        if not reads:
            return list(rows)
        wanted = list({row.asked.fingerprint for row in reads})
        found = await asyncio.to_thread(self._tools.cache.find_all, self.slice.tenant, wanted)
        now_ms = await self._tools.redis.now_ms(0)
        answered: set[str] = set()
        records: list[Record] = []
        for row in reads:
            hit = found.get(row.asked.fingerprint)
            if hit is not None and row.takes(hit[1]):
                records.append(row.hit(self.slice, hit[0], now_ms))
                answered.add(row.id)
        if records:
            await asyncio.to_thread(self._tools.books.apply, records, {})
            self._ends |= await asyncio.to_thread(self._tools.table.ended, [*answered])
        return [row for row in rows if row.id not in self._ends]

    # Under way

    def _begin(self, now: float) -> None:
        if now < self._pause_until or now - self._kept_at > STALE or self._tools.admission.closed is not None:
            return
        if any(row.parked for row in self._open.values()):
            return
        while self._pending and len(self._tasks) < self.slice.concurrency:
            self._start(self._pending.popleft(), claim=False)

    def _start(self, row: Row, *, claim: bool) -> None:
        """Begin a row, or (``claim``) go on with one that waits in the queue."""
        if row.running or self._stopped or self._released:
            return
        row.running, row.parked = True, False
        self._open[row.id] = row
        task = self._loop.create_task(self._claim(row) if claim else self._carry(row))
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            row.running, row.since = False, self._loop.time()
            self._tasks.discard(task)
            self._changed.set()
            error = None if task.cancelled() else task.exception()
            if error is not None:
                if not isinstance(error, Unavailable | SQLAlchemyError):
                    log.error("%s of %s failed", row.id, self.slice.batch, exc_info=error)
                self._pause_until = self._loop.time() + FAILURE_PAUSE
            if row.id in self._open:
                self._wait(row)

        task.add_done_callback(over)

    def _wait(self, row: Row) -> None:
        self._open[row.id] = row
        row.since = self._loop.time()

        def ended(end: RowEnd) -> None:
            self._ends[row.id] = end
            self._open.pop(row.id, None)
            self._changed.set()

        self._tools.ends.wait(row.id, ended, early=not row.streamed)

    async def _carry(self, row: Row) -> None:
        """Raises Unavailable and SQLAlchemy's errors; then nobody knows how far it came."""
        async with self._tools.streams:
            if self._stopped or self._released:
                return
            try:
                await self._send(row)
            except Unavailable:
                raise
            except NoRoom as error:
                self._later(row)
                if error.reason is not None:
                    await self._stop(error.reason)
            except TailraceError as error:
                await self._refuse(row, error)

    async def _send(self, row: Row) -> None:
        """Raises what a request is refused with, beside Unavailable."""
        tools = self._tools
        request = parse_request(row.asked.body)
        params = request.params()
        resolved = await tools.resolve(request.model)
        timeout_ms = 0 if request.timeout is None else max(1, int(request.timeout * 1000))
        digest = None
        if row.policy.writes:  # whom the model's name means may have changed since it was checked
            digest = fingerprint(
                tenant=self.slice.tenant,
                provider=resolved.provider,
                model=resolved.model,
                params=params,
                sample=row.asked.sample,
            )
        record = row.record(self.slice, resolved, fingerprint=digest)
        row.known = True
        if not row.lost and await tools.sharing.share(record, row.policy, timeout_ms=timeout_ms, books=False):
            return
        work = Work(
            params=params,
            targets=[(target.provider, target.model) for target in resolved.targets],
            end_user=row.asked.end_user,
            choices=request.n_choices,
        )
        try:
            await tools.budgets.charge(record, params)
            await tools.scripts.accept(record, encode_work(work), timeout_ms=timeout_ms, again=row.lost)
        except (Unavailable, NoRoom):
            if row.policy.joins:
                await tools.sharing.abandon(record)
            raise
        row.lost = False
        if row.policy.joins:
            await tools.sharing.accepted(record)
        await self._generate(row)

    def _later(self, row: Row) -> None:
        """It was not begun, and is again in a while."""
        row.known = False
        self._open.pop(row.id, None)
        self._pending.append(row)
        self._pause_until = self._loop.time() + FAILURE_PAUSE

    async def _stop(self, reason: TailraceError) -> None:
        """The whole batch. Raises SQLAlchemy's errors."""
        error = {"code": reason.code, "message": reason.message, "param": None, "line": None}
        await asyncio.to_thread(self._tools.table.stop, self.slice.batch, error)
        self._stopped = True

    async def _refuse(self, row: Row, error: TailraceError) -> None:
        """It ends as failed, and never was anybody's work."""
        asked = row.body.model
        nobody = Resolved(asked, self._tools.catalog.providers.default, asked, ())
        now_ms = await self._tools.redis.now_ms(0)
        records = refused(row.record(self.slice, nobody), error.failure(), now_ms)
        await asyncio.to_thread(self._tools.books.apply, records, {})

    async def _claim(self, row: Row) -> None:
        async with self._tools.streams:
            await self._generate(row)

    async def _generate(self, row: Row) -> None:
        # Without a number: other rows' messages, which wait for a worker, are not to be taken for lost.
        outcome = await self._tools.generator.run(row.id, Queue.BULK.value, 0)
        row.streamed = outcome in ("completed", "failed", "cancelled", "ended")
        row.parked = outcome == "parked"

    # Rows that are not streamed here

    async def _look(self, now: float) -> None:
        rows = [
            row
            for row in self._open.values()
            if not row.running and (not row.streamed or now - row.since > BOOKS_LATE)
        ]
        if not rows:
            return
        try:
            await self._see(rows)
            for row in rows:
                if row.queued:
                    self._start(row, claim=True)
            gone = [row for row in rows if not row.known and not row.running]
            if gone:
                await self._find(gone)
        except (Unavailable, SQLAlchemyError):
            return

    async def _find(self, rows: Sequence[Row]) -> None:
        """Redis has nothing of these: the books have, or they begin again."""
        ids = [row.id for row in rows]
        ends = await asyncio.to_thread(self._tools.table.ended, ids, early=True)
        known = await asyncio.to_thread(self._tools.table.known, ids)
        for row in rows:
            if row.id in ends or row.id not in self._open:
                self._ends.update({row.id: ends[row.id]} if row.id in ends else {})
            elif row.id in known and (known[row.id] != row.id or self._stopped):
                continue  # the reconciler ends what is lost, if nobody begins it again
            elif not self._stopped:
                row.lost, row.streamed, row.parked = row.id in known, False, False
                self._pending.append(row)
            self._open.pop(row.id, None)
            self._tools.ends.forget(row.id)

    async def _cancel(self, now: float) -> None:
        """Whatever is under way; what is told once is told again where nothing comes of it."""
        for row in list(self._open.values()):
            if row.streamed or now - row.cancelled_at < CANCEL_LATE:
                continue
            row.cancelled_at = now
            try:
                await self._cancel_row(row)
            except Unavailable:
                return

    async def _cancel_row(self, row: Row) -> None:
        tools = self._tools
        state = await tools.log.state(row.id)
        if state is not None:
            if not state.ended:
                await tools.scripts.cancel(never_ran(state.info), state.queue)
            return
        record = await tools.flights.pointer(row.id)
        if record is not None:
            generation = await tools.log.state(record.generation)
            queue = Queue.BULK.value if generation is None else generation.queue
            await tools.scripts.cancel(never_ran(record), queue, who=record)
