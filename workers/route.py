"""Which provider is asked, and which one next: failover before the first chunk.

The targets of an alias are asked in order, each once for a claim. Whose circuit is open, or who wants to be left alone,
is passed over. What has published chunks stays with the provider and the model that wrote them.
"""

from __future__ import annotations

from schemas.errors import ProviderError
from schemas.providers import Target
from workers.attempt import Attempt
from workers.circuits import Circuits


class Route:
    """The targets of one claim. ``failures`` are those of the calls that it made, by target."""

    def __init__(self, attempt: Attempt, circuits: Circuits) -> None:
        claim = attempt.claim
        started = claim.next > 0 or claim.skip
        self._targets = [attempt.target] if started else [Target(*target) for target in attempt.work.targets]
        self._left = list(self._targets)
        self._generation = claim.generation
        self._circuits = circuits
        self.failures: list[tuple[Target, ProviderError]] = []
        #: Seconds until one that was passed over may be asked.
        self.wait = float("inf")

    async def next(self) -> Target | None:
        """Whom to ask now; None where nobody is left."""
        while self._left:
            target = self._left.pop(0)
            wait = self._circuits.resting(target.provider) if len(self._targets) > 1 else 0.0
            wait = wait or await self._circuits.enter(target.provider, self._generation)
            if not wait:
                return target
            self.wait = min(self.wait, wait)
        return None
