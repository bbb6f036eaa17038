"""What is done to the stack, and when: three lanes of faults from one seed.

One lane kills workers with SIGKILL whenever one holds enough streams, one does the rest that can be done to a worker,
one sees to the servers around them. Lanes overlap; no part has two faults at once.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.chaos.stack import BULK, INTERACTIVE, STOP_SECONDS, WORKERS, ChaosStack, Supervisor
from tests.chaos.watch import Watch

KILL_WORKER = "kill -9 a worker"

#: Seconds: the lease that a worker has to be stopped beyond, with a margin.
BEYOND_LEASE = (9.5, 13.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """``lasts``: seconds between the fault and its mending. ``how``: a signal that stops, or an end and a start."""

    name: str
    parts: tuple[str, ...]
    how: str  # "kill", "stop", "end"
    lasts: tuple[float, float]


#: Seconds: in a shorter run than this, outages of servers are shorter too.
SHORT = 200.0
#: Without these no stream goes on, whoever takes it over.
RECOVERY_NEEDS = frozenset({"valkey", "backend"})
#: A supervisor's pause before it starts something again, in seconds.
RESTART = (0.2, 2.0)

WORKER_FAULTS = (
    Fault("SIGSTOP a worker", WORKERS, "stop", (0.5, 5.0)),
    Fault("SIGSTOP a worker beyond its lease", INTERACTIVE, "stop", BEYOND_LEASE),
    Fault("SIGTERM a worker", WORKERS, "end", RESTART),
)
SERVER_FAULTS = (
    Fault("kill -9 the gateway", ("gateway",), "kill", RESTART),
    Fault("SIGSTOP the gateway", ("gateway",), "stop", (0.5, 5.0)),
    Fault("kill -9 Valkey", ("valkey",), "kill", (0.2, 4.0)),
    Fault("restart Valkey", ("valkey",), "end", (0.2, 4.0)),
    Fault("SIGSTOP Valkey", ("valkey",), "stop", (0.5, 10.0)),
    Fault("stop PostgreSQL at once", ("postgres",), "kill", (0.5, 6.0)),
    Fault("SIGSTOP PostgreSQL", ("postgres",), "stop", (0.5, 6.0)),
    Fault("kill -9 the backend", ("backend",), "kill", (0.2, 3.0)),
    Fault("SIGSTOP the backend", ("backend",), "stop", (0.5, 6.0)),
)
NAMES = (KILL_WORKER, *(fault.name for fault in (*WORKER_FAULTS, *SERVER_FAULTS)))


@dataclass(slots=True)
class Injected:
    """One fault that was injected. Times are seconds from the start of the run."""

    name: str
    part: str
    at: float
    lasted: float = 0.0
    #: Generations with published chunks that a killed worker held.
    hit: int = 0


class Faults:
    """Runs the lanes for ``seconds``. ``say`` is told each fault as it happens."""

    def __init__(
        self,
        stack: ChaosStack,
        watch: Watch,
        supervisor: Supervisor,
        *,
        seed: int,
        seconds: float,
        rounds: int,
        kills: int,
        enough: int,
        only: frozenset[str],
        say: Callable[[str], None],
    ) -> None:
        self.injected: list[Injected] = []
        self.problems: list[str] = []
        self._stack = stack
        self._watch = watch
        self._supervisor = supervisor
        self._seed = seed
        self._seconds = seconds
        self._rounds = rounds
        self._kills = kills
        self._enough = enough
        self._only = only
        self._say = say
        self._started = 0.0

    async def run(self) -> None:
        self._started = time.monotonic()
        await asyncio.gather(
            self._kill_lane(), self._deck(WORKER_FAULTS, "workers"), self._deck(SERVER_FAULTS, "servers")
        )

    @property
    def _now(self) -> float:
        return time.monotonic() - self._started

    def _chosen(self, name: str) -> bool:
        return not self._only or name in self._only

    # ------------------------------------------------------------------------------------------------- the lanes

    async def _deck(self, faults: tuple[Fault, ...], lane: str) -> None:
        """Every kind in each round, in another order, spread over the time with pauses of different lengths."""
        random = Random(f"{self._seed}:{lane}")
        deck = [f for _ in range(self._rounds) for f in random.sample(faults, len(faults))]
        deck = [fault for fault in deck if self._chosen(fault.name)]
        slot = self._seconds / max(1, len(deck))
        for place, fault in enumerate(deck):
            due = slot * (place + random.random() * 0.6)
            part = random.choice(fault.parts)
            least, most = fault.lasts
            if fault in SERVER_FAULTS:  # in a short run a server is not away for most of it
                most = min(most, max(least + 0.5, most * self._seconds / SHORT))
            lasts = random.uniform(least, most)
            await asyncio.sleep(max(0.0, due - self._now))
            async with self._stack.locks[part]:
                await self._inject(fault, part, lasts)

    async def _kill_lane(self) -> None:
        """SIGKILL for the worker that holds enough streams, as soon as the pause is over."""
        if not self._chosen(KILL_WORKER):
            return
        random = Random(f"{self._seed}:kills")
        slot = self._seconds / self._kills
        while self._now < self._seconds:
            await asyncio.sleep(slot * random.uniform(0.3, 0.9))
            # Now and then the worker for bulk, which holds few streams.
            part = BULK if random.random() < 0.1 else await self._target(random)
            if self._now >= self._seconds:
                return
            async with self._stack.locks[part]:
                if self._stack.alive(part):
                    await self._kill_worker(part, random.uniform(*RESTART))

    async def _target(self, random: Random) -> str:
        """An interactive worker that holds enough, waited for as long as there is time."""
        while True:
            held = await self._watch.held()
            ready = [
                name
                for name in INTERACTIVE
                if not self._stack.locks[name].locked()
                and self._stack.alive(name)
                and len(held.get(self._stack.parts[name].pid, ())) >= self._enough
            ]
            if ready:
                return random.choice(ready)
            if self._now >= self._seconds:
                return INTERACTIVE[0]
            await asyncio.sleep(0.3)

    # ------------------------------------------------------------------------------------------------- injecting

    async def _kill_worker(self, part: str, lasts: float) -> None:
        injected = Injected(KILL_WORKER, part, self._now)
        pid = self._stack.parts[part].pid
        held = (await self._watch.held()).get(pid, {})
        await asyncio.to_thread(self._stack.kill, part)
        after = (await self._watch.held()).get(pid, {})  # with what still came between the look and the kill
        injected.hit = len(held)
        self.injected.append(injected)
        self._watch.killed(held | {id: place for id, place in after.items() if id in held})
        self._say(f"{KILL_WORKER}: {part}, with {len(held)} streams")
        await asyncio.sleep(lasts)
        await self._mend(injected, part)

    async def _inject(self, fault: Fault, part: str, lasts: float) -> None:
        stack = self._stack
        await self._supervisor.see_to(part)
        injected = Injected(fault.name, part, self._now)
        self.injected.append(injected)
        self._say(f"{fault.name}: {part}, for {lasts:.1f} s")
        if part in RECOVERY_NEEDS:
            self._watch.disturbed()
        if fault.how == "stop":
            stack.signal(part, signal.SIGSTOP)
            try:
                await asyncio.sleep(lasts)
            finally:
                stack.signal(part, signal.SIGCONT)
            injected.lasted = lasts
        else:
            await asyncio.to_thread(stack.kill if fault.how == "kill" else self._end, part)
            await asyncio.sleep(lasts)
            await self._mend(injected, part)
        if part in RECOVERY_NEEDS:
            self._watch.disturbed()

    def _end(self, name: str) -> None:
        """SIGTERM, and as long as the part takes."""
        if name == "valkey":
            self._stack.valkey.stop()
            return
        process = self._stack.parts[name]
        process.end(signal.SIGTERM, STOP_SECONDS)
        if process.process is not None and process.process.returncode == -signal.SIGKILL:
            self.problems.append(f"{name} did not end within {STOP_SECONDS:g} s of SIGTERM")

    async def _mend(self, injected: Injected, part: str) -> None:
        await asyncio.to_thread(self._stack.begin, part)
        injected.lasted = self._now - injected.at


def counted(injected: list[Injected], enough: int) -> tuple[dict[str, int], int]:
    """How often each kind was injected, and how many kills hit enough streams."""
    counts = dict.fromkeys(NAMES, 0)
    for fault in injected:
        counts[fault.name] += 1
    return counts, sum(fault.name == KILL_WORKER and fault.hit >= enough for fault in injected)
