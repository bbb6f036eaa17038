"""Keeps so many completions going: submits, reads, cancels, and counts what it was told."""

from __future__ import annotations

import asyncio
import itertools
import json
import traceback
from collections import Counter
from random import Random
from typing import Any

import aiohttp

from producers.submit import Caller, Submitter
from schemas.errors import Unavailable
from schemas.request import parse_request
from schemas.states import Queue
from tailrace import errors
from tests.chaos.checks import Tracked
from tests.chaos.readers import BROKEN, CHAT, PAUSES, SEED, Left, Readers, closed_under_uvloop, error_code
from tests.chaos.reading import Reading
from tests.chaos.shapes import Ask, Shapes

#: How long an answer to a request may take until it is taken for lost, in seconds.
PATIENCE = 20.0
#: Between looks at whether more is to be submitted, in seconds, and the most that begin at once then.
TICK, BURST = 0.05, 12
#: How much later than the end a late reader comes, in seconds: before and after the log left Redis.
LATE = (5.0, 90.0)


class Traffic:
    """``wanted`` completions are kept going until ``stop``; then ``wind_down`` waits for what is left."""

    def __init__(
        self,
        shapes: Shapes,
        readers: Readers,
        *,
        seed: int,
        wanted: int,
        bulk: tuple[Submitter, Caller],
        late: tuple[float, float] = LATE,
    ) -> None:
        self.tracked: list[Tracked] = []
        self.running = 0  # accepted, and no reader has seen the end
        #: Tracebacks of what the driver itself did not expect.
        self.failures: list[str] = []
        self._begun = 0  # being submitted, or running
        self._shapes = shapes
        self._readers = readers
        self._seed = seed
        self._wanted = wanted
        self._bulk = bulk
        self._late = late
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = readers.counts

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    @property
    def readers_open(self) -> int:
        return len(self._tasks)

    async def run(self) -> None:
        """Until ``stop``."""
        while not self._stopping.is_set():
            for _ in range(min(BURST, self._wanted - self._begun)):
                self._start()
            await asyncio.sleep(TICK)

    def stop(self) -> None:
        """Nothing new from here on, and late readers come now."""
        self._stopping.set()

    async def wind_down(self, seconds: float) -> None:
        """Wait until each reader has its end; those that have none by then are left without."""
        end = asyncio.get_running_loop().time() + seconds
        while self._tasks and asyncio.get_running_loop().time() < end:
            await asyncio.wait(self._tasks, timeout=1.0)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _start(self) -> None:
        ask = self._shapes.next()
        tracked = Tracked(ask)
        self.tracked.append(tracked)
        self._begun += 1
        self._spawn(self._complete(tracked, Random(f"{self._seed}:{ask.number}")))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append("".join(traceback.format_exception(error)))

    # ------------------------------------------------------------------------------------- one completion

    async def _complete(self, tracked: Tracked, random: Random) -> None:
        ask = tracked.ask
        ended = asyncio.Event()
        first = Reading("reader 0", keep=not ask.stored)
        tracked.readings.append(first)
        try:
            await self._submit(tracked, first, random)
            if tracked.id is None:
                return
            if ask.idempotency_key is not None and ask.how in ("seed", "async") and random.random() < 0.1:
                await self._ask_again(tracked, random)
            for number in range(1, 1 + random.choices((0, 1, 2), (0.3, 0.5, 0.2))[0] * (not ask.leaves)):
                self._spawn(self._another(tracked, f"reader {number}", ended, random.random()))
            if ask.cancel_at is not None:
                self._spawn(self._cancel(tracked, first, ask.cancel_at))
            await self._readers.follow(tracked, first, None, random)
        finally:
            ended.set()
            self._begun -= 1
            self.running -= bool(tracked.ids)

    async def _another(self, tracked: Tracked, name: str, ended: asyncio.Event, luck: float) -> None:
        """A reader that comes later: soon, or after the end; from the start, or from where another one is."""
        random = Random(f"{luck}")
        parsed = random.random() < 0.15
        reading = Reading(f"{name} (client)" if parsed else name, parsed=parsed)
        tracked.readings.append(reading)
        if random.random() < 0.12:
            reading.name += ", late"
            await ended.wait()
            await self._pause(random.uniform(*self._late))
        else:
            await self._pause(random.random() * 4)
        if parsed:
            await self._readers.follow_by_client(tracked, reading, random)
            return
        known = tracked.readings[0]
        after = -1
        if random.random() < 0.4 and known.first is not None:
            after, reading.whole = random.randint(known.first, known.last), False
        await self._readers.follow(tracked, reading, after, random)

    async def _pause(self, seconds: float) -> None:
        """Shorter where the run stops."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            pass

    async def _cancel(self, tracked: Tracked, reading: Reading, at: int) -> None:
        while len(reading.digests) < at and reading.end is None:
            await asyncio.sleep(0.1)
        headers = {"X-On-Behalf-Of": tracked.ask.end_user} if tracked.ask.end_user else {}
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        while tracked.cancelled is None:
            try:
                url = f"{CHAT}/{tracked.id}/cancel"
                async with self._readers.session.post(url, headers=headers, timeout=timeout) as response:
                    if response.status == 200:
                        tracked.cancelled = (await response.json())["status"]
                        self.counts[f"cancel answered {tracked.cancelled}"] += 1
                        continue
                    code = await error_code(response)
                    self.counts[f"cancel answered {response.status} {code}"] += 1
                    if response.status == 404 and not tracked.ask.stored:
                        return
                    if response.status != 503:
                        tracked.problems.append(f"cancel answered {response.status} {code}")
                        return
            except BROKEN:
                self.counts["cancel cut off"] += 1
            await asyncio.sleep(PAUSES[1])

    # ---------------------------------------------------------------------------------------------- submitting

    def _accepted(self, tracked: Tracked, id: str) -> None:
        self.running += not tracked.ids
        tracked.ids.append(id)

    async def _submit(self, tracked: Tracked, reading: Reading, random: Random) -> None:
        """Ask until it is accepted; without a key only as long as no try can have been."""
        ask = tracked.ask
        ways = {
            "seed": self._by_stream,
            "async": self._by_request,
            "client": self._by_client,
            "bulk": self._by_producer,
        }
        for tries in itertools.count(1):
            try:
                if await ways[ask.how](tracked, reading, random):
                    self.counts["submitted again"] += tries > 1
                    return
                self.counts["not accepted"] += 1
            except Left:
                return
            except aiohttp.ClientConnectorError:
                self.counts["refused connection"] += 1
            except BROKEN:
                self.counts["submit cut off"] += 1
                if tracked.id is not None:
                    return  # accepted: the stream broke
                if ask.idempotency_key is None:
                    tracked.unknown = True
                    return
            await asyncio.sleep(random.uniform(*PAUSES))

    async def _ask_again(self, tracked: Tracked, random: Random) -> None:
        """The same key once more, after the answer: it has to lead to the same completion."""
        try:
            await self._by_request(tracked, tracked.readings[0], random)
        except BROKEN:
            self.counts["asked again, cut off"] += 1

    async def _refused(self, tracked: Tracked, response: aiohttp.ClientResponse) -> bool:
        code = await error_code(response)
        self.counts[f"submit answered {response.status} {code}"] += 1
        if response.status != 503:
            tracked.problems.append(f"submit answered {response.status} {code}")
            if tracked.ask.idempotency_key is None:
                raise ConnectionResetError(code)
        return False

    async def _by_stream(self, tracked: Tracked, reading: Reading, random: Random) -> bool:
        """The seed's endpoint; the answer is read on for a while."""
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=PATIENCE)
        post = self._readers.session.post(
            SEED, json=tracked.ask.body, headers=tracked.ask.headers, timeout=timeout
        )
        async with post as response:
            if response.status != 200:
                return await self._refused(tracked, response)
            self._accepted(tracked, response.headers["x-completion-id"])
            stay = random.randint(0, 25) if random.random() < 0.7 or tracked.ask.leaves else None
            await self._readers.consume(response, reading, -1, stay)
            return True

    async def _by_request(self, tracked: Tracked, reading: Reading, random: Random) -> bool:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        headers = {**tracked.ask.headers, "Prefer": "respond-async"}
        post = self._readers.session.post(CHAT, json=tracked.ask.body, headers=headers, timeout=timeout)
        async with post as response:
            if response.status != 202:
                return await self._refused(tracked, response)
            self._accepted(tracked, (await response.json())["id"])
            return True

    async def _by_client(self, tracked: Tracked, reading: Reading, random: Random) -> bool:
        try:
            completion = await self._readers.client.submit(
                idempotency_key=tracked.ask.idempotency_key, **tracked.ask.body
            )
        except errors.ConnectionFailed:
            return False
        except AttributeError as error:
            if not closed_under_uvloop(error):
                raise
            return False
        except errors.APIError as error:
            self.counts[f"client answered {error.status} {error.code}"] += 1
            if error.status != 503:
                tracked.problems.append(f"submit answered {error.status} {error.code}")
            return False
        self._accepted(tracked, completion.id)
        return True

    async def _by_producer(self, tracked: Tracked, reading: Reading, random: Random) -> bool:
        """Work for the bulk queue comes from producers, not through the gateway."""
        submitter, caller = self._bulk
        ask: Ask = tracked.ask
        caller = Caller(caller.tenant, caller.key_id, ask.end_user)
        try:
            submission = await submitter.submit(
                parse_request(json.dumps(ask.body).encode()),
                caller,
                queue=Queue.BULK,
                idempotency_key=ask.idempotency_key,
            )
        except Unavailable:
            return False
        self._accepted(tracked, submission.id)
        return True
