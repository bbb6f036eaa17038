"""One run: start, load and faults, mend, wait, count, stop."""

from __future__ import annotations

import asyncio
import os
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random
from statistics import median

import aiohttp
import httpx
import msgspec

from producers.catalog import Catalog
from producers.publish import make_publisher
from producers.submit import Caller, Submitter
from stores.books import Books
from stores.config import read_providers
from stores.redis import Redis
from tailrace import Client
from tests.chaos import audit
from tests.chaos.checks import Stored, Tracked, problems_of, problems_of_stray
from tests.chaos.faults import NAMES, Faults, counted
from tests.chaos.readers import Readers
from tests.chaos.reading import Reading
from tests.chaos.report import Report, fault_rows, histogram, percentiles
from tests.chaos.shapes import Shapes
from tests.chaos.stack import TENANT, ChaosStack, Supervisor
from tests.chaos.traffic import LATE, Traffic
from tests.chaos.watch import Watch
from tests.support.backend import read_journal
from tests.support.leaks import leaks
from tests.support.stack import NOT_OURS

#: The full run, whose minima those of others are fractions of.
FULL_SECONDS, FULL_WANTED = 600.0, 300
FAULTS_EACH, KILLS, ENOUGH = 5, 30, 20
#: How many more completions are kept going than have to be, for those between two of them.
MORE = 1.12
#: Seconds before the first fault, in which streams begin.
WARM_UP = 8.0
#: Seconds: in a shorter run than this the answers are quicker too, so that it ends soon.
UNHURRIED = 120.0
#: Between lines of progress, in seconds.
PROGRESS = 10.0
#: Completions that are read once more through the gateway at the end, the first time after the faults.
REPLAYED = 300


class Options(msgspec.Struct, kw_only=True):
    seed: int
    seconds: float = FULL_SECONDS
    wanted: int = FULL_WANTED
    settle: float = 120.0
    faults: bool = True
    only: frozenset[str] = frozenset()

    @property
    def fault_minimum(self) -> int:
        return max(1, int(FAULTS_EACH * self.seconds / FULL_SECONDS)) if self.faults else 0

    @property
    def kills_minimum(self) -> int:
        return max(1, int(KILLS * self.seconds / FULL_SECONDS)) if self.faults else 0

    @property
    def enough(self) -> int:
        return max(2, ENOUGH * self.wanted // FULL_WANTED)


async def run(options: Options, stack: ChaosStack, say: Callable[[str], None]) -> Report:
    """The stack is started, and still runs afterwards."""
    report = Report(
        seed=options.seed,
        seconds=options.seconds,
        wanted=options.wanted,
        fault_minimum=options.fault_minimum,
        kills_minimum=options.kills_minimum,
        enough=options.enough,
    )
    async with AsyncExitStack() as exits:
        return await _Run(options, stack, say, report).run(exits)


class _Run:
    def __init__(
        self, options: Options, stack: ChaosStack, say: Callable[[str], None], report: Report
    ) -> None:
        self.options = options
        self.stack = stack
        self.say = say
        self.report = report
        self.started = time.monotonic()
        self.running: list[int] = []

    def _say(self, text: str) -> None:
        self.say(f"{time.monotonic() - self.started:6.1f} s  {text}")

    async def run(self, exits: AsyncExitStack) -> Report:
        options, report = self.options, self.report
        await self._open(exits)
        background = [
            asyncio.create_task(work)
            for work in (
                self.traffic.run(),
                self.watch.run(),
                self.supervisor.run(),
                self._progress(),
            )
        ]
        try:
            await asyncio.sleep(min(WARM_UP, options.seconds / 4))
            if options.faults:
                await self.faults.run()
            else:
                await asyncio.sleep(options.seconds)
            self._say("the faults are over; waiting for what still runs")
            self.traffic.stop()
            await self.traffic.wind_down(options.settle)
            await self._settled(options.settle)
        finally:
            for task in background:
                task.cancel()
            for outcome in await asyncio.gather(*background, return_exceptions=True):
                if isinstance(outcome, Exception):
                    self.traffic.failures.append("".join(traceback.format_exception(outcome)))
        self._say("counting")
        await self._replay()
        await asyncio.to_thread(self._count)
        found = await asyncio.to_thread(self._leaks)
        if found:
            report.problems["keys in Redis"] = found
        self._conclude()
        return report

    async def _open(self, exits: AsyncExitStack) -> None:
        options, stack = self.options, self.stack
        self.counts: Counter[str] = Counter()
        session = await exits.enter_async_context(
            aiohttp.ClientSession(
                stack.url,
                headers={"Authorization": f"Bearer {stack.api_key}"},
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=5),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        )
        client = await exits.enter_async_context(Client(stack.url, stack.api_key))
        settings = stack.settings
        space = await Redis.open(settings.redis_url, patience=30.0)
        exits.callback(space.close)
        http = await exits.enter_async_context(httpx.AsyncClient(timeout=5.0, verify=False))
        publisher = make_publisher(settings)
        exits.push_async_callback(publisher.close)
        submitter = Submitter(space, Catalog(read_providers(settings), http), publisher, Books(stack.engine))
        self.readers = Readers(session, client, self.counts)
        run = f"{options.seed}-{os.getpid()}"
        late = LATE if options.seconds >= 200 else (2.0, options.seconds / 3)
        self.traffic = Traffic(
            Shapes(options.seed, run, slowness=max(0.5, min(1.0, options.seconds / UNHURRIED))),
            self.readers,
            seed=options.seed,
            wanted=int(options.wanted * MORE),
            bulk=(submitter, Caller(TENANT, stack.key_id)),
            late=late,
        )
        self.watch = Watch(settings.redis_url)
        exits.push_async_callback(self.watch.close)
        self.supervisor = Supervisor(stack)
        self.faults = Faults(
            stack,
            self.watch,
            self.supervisor,
            seed=options.seed,
            seconds=options.seconds,
            rounds=options.fault_minimum + (options.fault_minimum > 2),
            kills=max(2, round(options.kills_minimum * 1.4)),
            enough=options.enough,
            only=options.only,
            say=self._say,
        )

    async def _progress(self) -> None:
        told = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            if not self.traffic.stopped:
                self.running.append(self.traffic.running)
            if time.monotonic() - told < PROGRESS:
                continue
            told = time.monotonic()
            tracked = self.traffic.tracked
            self._say(
                f"{sum(bool(t.ids) for t in tracked):,} accepted, {self.traffic.running} going, "
                f"{self.traffic.readers_open} readers, {len(self.faults.injected)} faults, "
                f"{self.counts['resumed behind the start']:,} resumptions, {self.counts['restarts told']} restarts, "
                f"{self.watch.waiting} streams wait for recovery"
            )

    async def _settled(self, seconds: float) -> None:
        """Wait until the books have an end of every completion that they know and of each that was accepted."""
        accepted = {id for tracked in self.traffic.tracked for id in tracked.ids}
        end, told = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            try:
                known, open_ = await asyncio.to_thread(self._books)
                if known >= len(accepted) and not open_:
                    return
                if time.monotonic() - told > PROGRESS:
                    told = time.monotonic()
                    self._say(f"the books know {known:,} of {len(accepted):,}, and no end of {len(open_)}")
            except Exception as error:  # noqa: BLE001 - whatever it is: the count tells
                self._say(f"the books: {error}")
            await asyncio.sleep(0.5)

    def _books(self) -> tuple[int, list[str]]:
        return audit.known(self.stack.engine, TENANT), audit.unfinished(self.stack.engine, TENANT)

    async def _replay(self) -> None:
        """Some completions once more from their first chunk, when all is quiet."""
        with_text = [t for t in self.traffic.tracked if t.ask.stored and any(r.end for r in t.readings)]
        chosen = Random(f"{self.options.seed}:replay").sample(with_text, min(REPLAYED, len(with_text)))
        quiet = asyncio.Semaphore(16)

        async def replay(tracked: Tracked) -> None:
            reading = Reading("replay")
            tracked.readings.append(reading)
            async with quiet:
                try:
                    async with asyncio.timeout(60):
                        await self.readers.follow(tracked, reading, -1, Random(tracked.ask.number))
                except TimeoutError:
                    pass  # a reading without an end is told as such

        await asyncio.gather(*map(replay, chosen))

    # ------------------------------------------------------------------------------------------------- counting

    def _count(self) -> None:
        """Hold what was accepted and read against the books."""
        report, traffic = self.report, self.traffic
        stored: dict[str, Stored] = {}
        by_number: dict[int, list[Stored]] = {}
        accepted = {t.id: t for t in traffic.tracked if t.id is not None}
        status: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        attempts: list[int] = []
        for one in audit.read_books(self.stack.engine, TENANT):
            if one.number is not None:
                by_number.setdefault(one.number, []).append(one)
            status[one.status] += 1
            attempts.append(one.attempt)
            if one.status == "failed":
                failures[one.code or "none"] += 1
            report.restarted += one.base > 0
            tracked = accepted.get(one.id)
            if tracked is not None:
                problems = problems_of(tracked, one)
                report.finished += one.ended
            else:
                problems = problems_of_stray(one)
                report.strays += one.ended
            if problems:
                report.problems[f"{one.id}{_asked(tracked)}"] = problems
            one.chunks = None
            stored[one.id] = one
        for id, tracked in accepted.items():
            if id not in stored:
                report.problems[f"{id}{_asked(tracked)}"] = problems_of(tracked, None)
        for tracked in traffic.tracked:
            begun = [s for s in by_number.get(tracked.ask.number, ()) if s.attempt > 0]
            if len(begun) > 1 and tracked.ask.idempotency_key is not None:
                report.problems[f"number {tracked.ask.number}{_asked(tracked)}"] = [
                    f"one Idempotency-Key, and several ran: {[s.id for s in begun]}"
                ]
        asked = Counter(read_journal(self.stack.journal))
        report.accepted = len(accepted)
        report.unknown = sum(t.unknown for t in traffic.tracked)
        report.status = dict(sorted(status.items()))
        report.failures = dict(failures.most_common())
        report.attempts = histogram(attempts)
        report.provider_requests = histogram(asked[t.ask.fake_id.encode()] for t in accepted.values())
        report.shapes = dict(Counter(t.ask.shape for t in accepted.values()).most_common())
        report.readings = sum(len(t.readings) for t in traffic.tracked)
        report.chunks_read = sum(len(r.digests) for t in traffic.tracked for r in t.readings)
        report.counts = {name: count for name, count in self.counts.items() if count}
        report.false_starts = dict(self.supervisor.false_starts)
        if traffic.failures:
            report.problems["the driver failed"] = traffic.failures
        lost = [f"{t.ask.shape}: {t.problems}" for t in traffic.tracked if t.problems and t.id is None]
        if lost:
            report.problems["never accepted"] = lost

    def _leaks(self) -> list[str]:
        """Keys without TTL or owner, once the last records and subscriptions are through."""
        end = time.monotonic() + 30
        with self.stack.valkey.client() as client:
            while (found := leaks(client, allow=NOT_OURS, settled=True)) and time.monotonic() < end:
                time.sleep(1)
        return found

    def _conclude(self) -> None:
        """What was to be reached and was not."""
        report, options = self.report, self.options
        report.faults = fault_rows(self.faults.injected)
        report.fault_counts, report.kills_hit = counted(self.faults.injected, options.enough)
        if options.faults and not options.only:
            report.unmet += [
                f"{name}: {report.fault_counts[name]} times, at least {options.fault_minimum} wanted"
                for name in NAMES
                if report.fault_counts[name] < options.fault_minimum
            ]
            if report.kills_hit < options.kills_minimum:
                report.unmet.append(
                    f"{report.kills_hit} kills of a worker hit {options.enough} streams, "
                    f"at least {options.kills_minimum} wanted"
                )
        busy = self.running[10:] or self.running or [0]
        report.running_least, report.running_median = min(busy), int(median(busy))
        if report.running_median < options.wanted * 0.9:
            report.unmet.append(f"{report.running_median} completions were going, {options.wanted} wanted")
        report.recovery = {
            name + which: percentiles(seconds for seconds, quiet in times if quiet or not which)
            for name, times in (
                ("another worker has it", self.watch.taken),
                ("chunks flow", self.watch.recovered),
            )
            for which in ("", ", Valkey and backend sound")
        }
        report.not_recovered = self.watch.waiting
        if self.watch.waiting:
            report.unmet.append(f"{self.watch.waiting} streams of killed workers never went on")
        if report.accepted != report.finished:
            report.unmet.append(f"{report.accepted} accepted, {report.finished} finished")
        report.unmet += self.supervisor.deaths + self.faults.problems
        report.ok = not report.unmet and not report.problems


def _asked(tracked: Tracked | None) -> str:
    if tracked is None:
        return " (nobody was told)"
    return f" ({tracked.ask.shape}, {tracked.ask.how}, number {tracked.ask.number})"


def more_files() -> None:
    """Each reader is a connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536) if most > 0 else 65_536, most))
