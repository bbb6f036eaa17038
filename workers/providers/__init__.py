"""The kinds of providers, a file each. ``kind`` in providers.toml chooses one; its fields are in
``schemas/providers.py``."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from schemas.errors import ProviderError
from schemas.providers import Provider, Providers
from workers.providers.kind import Backend
from workers.providers.openai import OpenAI, make_transport
from workers.providers.replay import Replay

KINDS: dict[str, Callable[[Provider, httpx.AsyncBaseTransport], Backend]] = {
    "openai": OpenAI,
    "replay": Replay,
}


class Backends:
    """All providers of a process, with the connections that they share."""

    def __init__(self, providers: Providers) -> None:
        self._transport = make_transport()
        self._backends = {
            name: KINDS[provider.kind](provider, self._transport)
            for name, provider in providers.providers.items()
        }

    def __getitem__(self, provider: str) -> Backend:
        """Raises ProviderError where this process's providers.toml doesn't have it."""
        backend = self._backends.get(provider)
        if backend is None:
            raise ProviderError(
                f"The worker's providers.toml has no provider '{provider}': give all processes the same file.",
                code="provider_unknown",
            )
        return backend

    async def close(self) -> None:
        await self._transport.aclose()
