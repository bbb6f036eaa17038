"""What the servers spend while something runs: CPU time of processes, commands and bytes of Valkey."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import redis


@dataclass(frozen=True, slots=True)
class Spent:
    """Between two readings. ``cpu`` is seconds by process; ``calls`` Redis commands by name, those of scripts too."""

    cpu: dict[str, float]
    calls: dict[str, int]
    bytes_in: int
    bytes_out: int

    @property
    def scripts(self) -> int:
        """Calls of scripts."""
        return self.calls.get("evalsha", 0) + self.calls.get("eval", 0)


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
        cpu, calls, bytes_in, bytes_out = self._read()
        cpu_before, calls_before, in_before, out_before = self._last
        return Spent(
            {name: seconds - cpu_before[name] for name, seconds in cpu.items()},
            {
                name: n - calls_before.get(name, 0)
                for name, n in calls.items()
                if n != calls_before.get(name, 0)
            },
            bytes_in - in_before,
            bytes_out - out_before,
        )

    def _read(self) -> tuple[dict[str, float], dict[str, int], int, int]:
        cpu = {name: _seconds(process) for name, process in self._processes.items()}
        commands = self._client.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): row["calls"] for name, row in commands.items()}
        stats = self._client.info("stats")
        return cpu, calls, stats["total_net_input_bytes"], stats["total_net_output_bytes"]


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
