"""Whose slice is next: deficit round-robin, by M. Shreedhar and G. Varghese (1996).

Each tenant in turn is credited a quantum of rows, and deals as many slices as it can pay for. So tenants get equal
shares of rows, whatever the number of their slices and their sizes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from schemas.batches import SLICE_ROWS


class RoundRobin:
    """The tenants that wait for one provider. What it remembers is worth nothing to another process."""

    def __init__(self, quantum: int = SLICE_ROWS) -> None:
        self._quantum = quantum
        self._ring: deque[str] = deque()
        self._credit: dict[str, int] = {}
        self._begun = False  # the first one of the ring has its quantum

    def choose(self, waiting: Mapping[str, Sequence[int]], places: int) -> list[str]:
        """``waiting`` has each tenant's slices by their rows. Who deals the next one of its slices, ``places`` times or
        until none waits."""
        for tenant in [tenant for tenant in self._ring if not waiting.get(tenant)]:
            self._drop(tenant)
        for tenant, slices in waiting.items():
            if slices and tenant not in self._credit:
                self._ring.append(tenant)
                self._credit[tenant] = 0
        left = {tenant: deque(slices) for tenant, slices in waiting.items()}
        chosen: list[str] = []
        while self._ring and len(chosen) < places:
            tenant = self._ring[0]
            if not self._begun:
                self._credit[tenant] += self._quantum
                self._begun = True
            if not left[tenant]:
                self._drop(tenant)
            elif left[tenant][0] <= self._credit[tenant]:
                self._credit[tenant] -= left[tenant].popleft()
                chosen.append(tenant)
            else:
                self._ring.rotate(-1)
                self._begun = False
        return chosen

    def _drop(self, tenant: str) -> None:
        """Who has nothing to deal saves nothing up."""
        if self._ring[0] == tenant:
            self._begun = False
        self._ring.remove(tenant)
        del self._credit[tenant]
