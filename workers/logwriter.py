"""Writing chunk logs: what all streams of a process have to append goes out together.

An appender has one call per partition in flight. What arrives meanwhile, of any stream, goes out with the next one: so
at a human pace each chunk goes alone and at once, and under load chunks share entries and entries share calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from schemas.codec import ChunkEncoder
from stores.outcomes import Append, Batch, Claim
from stores.scripts import Scripts

#: Bytes of one stream that may wait for Redis before its provider is no longer read.
PENDING_LIMIT = 1024 * 1024
#: A call that carried this many logs shows a load at which calls cost more than they bring: the next one waits this
#: many seconds for more, so that entries hold several chunks and each costs Redis and the gateway less. Measured with
#: 100 streams of a chunk every 2 ms. At a human pace no call comes near it.
BUSY_LOGS, BUSY_PAUSE = 24, 0.004
#: Bytes of chunks and logs of one call.
CALL_BYTES, CALL_LOGS = 1024 * 1024, 256


class Fenced(Exception):
    """Another attempt has the generation by now: this one may write nothing more."""


class Behind(Exception):
    """Redis has lost chunks that this attempt had published."""


class LogWriter:
    """One attempt's way into its log."""

    __slots__ = ("_appender", "_departed", "_encoder", "_error", "_head_sent", "_in_flight", "_items", "_on_cancel",
                 "_size", "_waiter", "fence", "generation", "next", "published")  # fmt: skip

    def __init__(self, appender: Appender, claim: Claim, *, on_cancel: Callable[[], None]) -> None:
        self.generation = claim.generation
        self.fence = claim.fence
        self.next = self.published = claim.next
        self._appender = appender
        self._encoder = ChunkEncoder()
        self._departed = claim.next
        self._on_cancel = on_cancel
        self._items: list[bytes] = []
        self._size = 0
        self._head_sent = False
        self._in_flight = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def begin(self, encoder: ChunkEncoder, *, base: int | None = None) -> None:
        """The chunks to come are the encoder's: with its head where they begin at ``base``, else with the log's."""
        self._encoder = encoder
        self._head_sent = base is None
        if base is not None:
            self.next = self.published = base

    def put(self, items: list[bytes]) -> None:
        """Take items to append.

        Raises Fenced or Behind where an append was refused, Unavailable where Redis stayed away.
        """
        if self._error is not None:
            raise self._error
        if not self._items and not self._in_flight:
            self._appender.mark(self)
        self._items += items
        for item in items:
            self._size += len(item)

    @property
    def full(self) -> bool:
        return self._size > PENDING_LIMIT

    async def settled(self) -> None:
        """Until no append is in flight. Raises as ``put`` does."""
        while self._in_flight:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error

    async def rest(self) -> Batch:
        """What is left, for the end to carry. Raises as ``put`` does."""
        self._appender.unmark(self)
        if self._in_flight:
            kept, self._items = self._items, []  # nothing more goes out by itself
            await self.settled()
            self._items = kept
        if self._error is not None:
            raise self._error
        return self.take()

    def take(self) -> Batch:
        items, self._items = self._items, []
        self._size = 0
        head = b"" if self._head_sent or not items else self._encoder.head
        batch = Batch(self.next, len(items), b"\n".join(items), head)
        self._head_sent = self._head_sent or bool(items)
        self.next += len(items)
        return batch

    def departed(self) -> Batch:
        """As ``take``, for the appender: an append of it is in flight from here on."""
        self._in_flight = True
        batch = self.take()
        self._departed = self.next
        return batch

    def arrived(self, outcome: Append | Exception) -> None:
        """What became of the append in flight."""
        self._in_flight = False
        if outcome is Append.OK or outcome is Append.CANCEL_ASKED:
            self.published = self._departed
        if isinstance(outcome, Exception):
            self._error = outcome
        elif outcome is Append.CANCEL_ASKED:
            self._on_cancel()
        elif outcome is not Append.OK:
            self._error = Behind() if outcome is Append.GAP else Fenced()
        if self._items and self._error is None:
            self._appender.mark(self)
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None

    @property
    def size(self) -> int:
        return self._size


class Appender:
    """Sends what the writers of a process have, partition by partition."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._marked: dict[int, dict[LogWriter, None]] = {}
        self._running: dict[int, asyncio.Task[None]] = {}

    def mark(self, writer: LogWriter) -> None:
        """The writer has something to send."""
        partition = self._scripts.redis.partition(writer.generation)
        self._marked.setdefault(partition, {})[writer] = None
        if partition not in self._running:
            self._running[partition] = asyncio.create_task(self._run(partition))

    def unmark(self, writer: LogWriter) -> None:
        self._marked.get(self._scripts.redis.partition(writer.generation), {}).pop(writer, None)

    async def _run(self, partition: int) -> None:
        marked = self._marked[partition]
        try:
            while marked:
                writers: list[LogWriter] = []
                size = 0
                while marked and size < CALL_BYTES and len(writers) < CALL_LOGS:
                    writer = next(iter(marked))
                    del marked[writer]
                    writers.append(writer)
                    size += writer.size
                appends = [(w.generation, w.fence, w.departed()) for w in writers]
                try:
                    codes = await self._scripts.append_all(partition, appends)
                except Exception as error:  # noqa: BLE001 (its writers wait for an answer, whatever went wrong)
                    for writer in writers:
                        writer.arrived(error)
                else:
                    for writer, code in zip(writers, codes, strict=True):
                        writer.arrived(code)
                if len(writers) >= BUSY_LOGS:
                    await asyncio.sleep(BUSY_PAUSE)
        finally:
            del self._running[partition]
