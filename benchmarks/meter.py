"""What the servers spend while something runs: CPU time of processes, commands and bytes of Valkey."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import redis


@dataclass(frozen=True, slots=True)
class Spent:
    """Between two readings. ``cpu`` is seconds by process, ``system`` those in the kernel; ``calls`` counts Redis
    commands by name, those of scripts too."""

    cpu: dict[str, float]
    system: dict[str, float]
    calls: dict[str, int]
    bytes_in: int
    bytes_out: int

    @property
    def scripts(self) -> int:
        """Calls of scripts."""
        return self.calls.get("evalsha", 0) + self.calls.get("eval", 0)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(
            {name: seconds - other.cpu[name] for name, seconds in self.cpu.items()},
            {name: seconds - other.system[name] for name, seconds in self.system.items()},
            {name: calls - other.calls.get(name, 0) for name, calls in self.calls.items()},
            self.bytes_in - other.bytes_in,
            self.bytes_out - other.bytes_out,
        )


class Meter:
    """Reads the counters of the processes (name to pid) and of Valkey."""

    def __init__(self, pids: Mapping[str, int], client: redis.Redis) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._client = client
        self._last = self._read()

    def reset(self) -> None:
        self._last = self._read()

    def spent(self) -> Spent:
        """Since ``reset``."""
        return self._read() - self._last

    def _read(self) -> Spent:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        commands = self._client.info("commandstats")
        stats = self._client.info("stats")
        return Spent(
            {name: t.user + t.system for name, t in times.items()},
            {name: t.system for name, t in times.items()},
            {name.removeprefix("cmdstat_"): row["calls"] for name, row in commands.items()},
            stats["total_net_input_bytes"],
            stats["total_net_output_bytes"],
        )
