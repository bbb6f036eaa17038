"""Tests that kill workers at random: which calls of a model a kill explains, and a command that is started again."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

from schemas.keys import Keys
from tests.support.backend import Received
from tests.support.stack import Stack
from tests.support.valkey import wait_until

#: The backend may hear of a call so much later than the worker sent it, and a worker may die before it has written
#: down the end of an answer that is so old, in seconds.
MARGIN = 2.0
#: A command that has ended so often without being through will not be.
MOST_STARTS = 50


class Restarted:
    """A command that is started again whenever it ends before it is through. ``next`` is the line of later starts,
    where that is another one; ``fine`` are the exit codes with which it is through."""

    def __init__(
        self,
        line: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        next: Sequence[str] | None = None,
        fine: Iterable[int] = (0,),
    ) -> None:
        self._line, self._next, self._fine = line, next or line, frozenset(fine)
        self._folder = folder
        self._environment = environment
        self._log = folder / "log.txt"
        self.ends: list[int] = []
        self._process = self._start(self._line)

    def _start(self, line: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                line,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def told(self) -> str:
        return self._log.read_text()

    def is_through(self) -> bool:
        """Whether it has ended well; one that hasn't is started again."""
        code = self._process.poll()
        if code is not None and code not in self._fine:
            self.ends.append(code)
            assert len(self.ends) <= MOST_STARTS, self.told
            self._process = self._start(self._next)
        return code in self._fine

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Killer:
    """Kills what a plan says, one after the other, at random times: a ``worker``, the ``gateway`` or the ``command``.

    ``workers`` are bulk workers, each started again at once.
    """

    def __init__(self, stack: Stack, workers: Sequence[str], random: Random, seconds: float) -> None:
        self._stack = stack
        self._workers = workers
        self._random = random
        self._seconds = seconds
        self.kills: list[float] = []

    def carry_out(self, plan: Iterable[str], run: Restarted, longest_pause: float = 4.0) -> None:
        stack = self._stack
        for what in plan:
            time.sleep(self._random.uniform(0.3, longest_pause))
            if what == "worker":
                wait_until(
                    lambda: run.is_through() or self._busy() != [],
                    self._seconds,
                    "worker with rows in flight",
                )
                name = self._random.choice(self._busy() or self._workers)
                os.kill(stack.parts[name].pid, signal.SIGKILL)
                self.kills.append(time.time())
                stack.parts.pop(name).end(signal.SIGKILL)
                stack.add_worker(name, "bulk", 4, wait=False)
            elif what == "gateway":
                stack.parts["gateway"].end(signal.SIGKILL)
                stack.parts["gateway"].start(stack.folder)
            else:
                run.kill()
            run.is_through()
        wait_until(run.is_through, self._seconds, "end of the command")

    def _busy(self) -> list[str]:
        """Workers that have leases while the backend answers somebody."""
        stack = self._stack
        if not stack.backend.active:
            return []
        leased = (str(id) for id in stack.redis.zrange(Keys(0).lease, 0, -1))
        holders = {state["worker"].split(":")[1] for id in leased if (state := stack.state(id)).get("worker")}
        return [name for name in self._workers if str(stack.parts[name].pid) in holders]


def by_prompt(received: Iterable[Received]) -> dict[str, list[Received]]:
    calls: defaultdict[str, list[Received]] = defaultdict(list)
    for call in received:
        calls[call.prompt].append(call)
    return calls


def unexplained(calls: Sequence[Received], kills: Sequence[float]) -> bool:
    """Whether a request was sent again though no kill had hit it in flight; each kill explains one call."""
    left = list(kills)
    for call, again in itertools.pairwise(calls):
        begin = call.at - MARGIN if call.ended == "closed" else call.at
        end = again.at if call.ended_at is None else min(again.at, call.ended_at + MARGIN)
        hit = next((kill for kill in left if begin <= kill <= end), None)
        if hit is None:
            return True
        left.remove(hit)
    return False


def times(calls: Mapping[str, Sequence[Received]], kills: Sequence[float]) -> str:
    """Calls and kills in seconds since the first kill."""
    start = kills[0]
    lines = [f"kills: {[round(kill - start, 3) for kill in kills]}"]
    for name, made in calls.items():
        told = [
            (round(c.at - start, 3), c.ended, None if c.ended_at is None else round(c.ended_at - start, 3))
            for c in made
        ]
        lines.append(f"{name}: {told}")
    return "\n".join(lines)
