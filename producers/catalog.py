"""Which models a provider has: from its configuration, else from its own ``GET …/models``, kept for a minute."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, cast

import httpx

from schemas.errors import ModelNotFound
from schemas.providers import Provider, Providers, Resolved

#: How long a provider's answer stands, and how long its silence does, in seconds.
KEEP, KEEP_FAILURE = 60.0, 10.0
#: What a request waits for a list that was never had, in seconds.
TIMEOUT = 2.0
#: Resolved names that are kept.
NAMES = 4096


class Catalog:
    """The models of all providers. ``clock`` is monotonic, in seconds."""

    def __init__(
        self, providers: Providers, client: httpx.AsyncClient, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.providers = providers
        self._client = client
        self._clock = clock
        self._resolved: dict[str, Resolved] = {}
        self._lists: dict[str, tuple[float, frozenset[str] | None]] = {}
        self._asking: dict[str, asyncio.Task[frozenset[str] | None]] = {}

    async def resolve(self, model: str) -> Resolved:
        """Without the targets of an alias whose provider is known not to have the model.

        Raises ModelNotFound where none is left.
        """
        resolved = self._resolved.get(model)
        if resolved is None:
            resolved = self.providers.resolve(model)
            if len(self._resolved) >= NAMES:
                self._resolved.clear()
            self._resolved[model] = resolved
        for target in resolved.targets[1:]:  # all that were never had are asked for at once
            self._look_up(target.provider)
        lists = [await self.names(target.provider) for target in resolved.targets]
        targets = tuple(
            target
            for target, names in zip(resolved.targets, lists, strict=True)
            if names is None or target.model in names
        )
        if not targets:
            said = "; ".join(
                f"the provider '{t.provider}' has no model '{t.model}'" for t in resolved.targets
            )
            raise ModelNotFound(
                f"{said[0].upper()}{said[1:]}. GET /v1/models lists the models that can be asked for.",
                param="model",
            )
        return Resolved(model, targets[0].provider, targets[0].model, targets)

    def _look_up(self, name: str) -> None:
        provider = self.providers.providers[name]
        if provider.models is None and provider.base_url and name not in self._lists:
            self._ask(name, provider)

    async def names(self, name: str) -> frozenset[str] | None:
        """The models of one provider; None where it has no list."""
        provider = self.providers.providers[name]
        if provider.models is not None:
            return frozenset(provider.models)
        if not provider.base_url:
            return None
        known = self._lists.get(name)
        if known is not None:
            until, names = known
            if self._clock() >= until:
                self._ask(name, provider)  # the old list serves while the new one is on its way
            return names
        return await asyncio.shield(self._ask(name, provider))

    async def all(self) -> list[dict[str, Any]]:
        """Everything that can be asked for, in the shape of OpenAI's model list."""
        found: list[dict[str, Any]] = []
        lists = await asyncio.gather(*(self.names(name) for name in self.providers.providers))
        for (name, _), models in zip(self.providers.providers.items(), lists, strict=True):
            for model in sorted(models or ()):
                plain = name == self.providers.default and not self._shadowed(model)
                found.append(_entry(model if plain else f"{name}:{model}", name))
        found.extend(_entry(alias, "alias") for alias in sorted(self.providers.aliases))
        return found

    def _shadowed(self, model: str) -> bool:
        resolved = self.providers.resolve(model)
        return resolved.model != model or resolved.provider != self.providers.default

    def _ask(self, name: str, provider: Provider) -> asyncio.Task[frozenset[str] | None]:
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._fetch(name, provider))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        return task

    async def _fetch(self, name: str, provider: Provider) -> frozenset[str] | None:
        names: frozenset[str] | None = None
        keep = KEEP
        try:
            answer = await self._client.get(
                f"{provider.base_url}/models", headers=auth_headers(provider), timeout=TIMEOUT
            )
            data: Any = answer.json() if answer.status_code == 200 else None
            rows = cast("dict[str, Any]", data).get("data") if isinstance(data, dict) else None
            if isinstance(rows, list):
                ids = [
                    cast("dict[str, Any]", row).get("id")
                    for row in cast("list[Any]", rows)
                    if isinstance(row, dict)
                ]
                names = frozenset(i for i in ids if isinstance(i, str)) or None
        except (httpx.HTTPError, ValueError):
            keep = KEEP_FAILURE
            known = self._lists.get(name)
            names = known[1] if known is not None else None
        self._lists[name] = (self._clock() + keep, names)
        return names


def auth_headers(provider: Provider) -> dict[str, str]:
    """The provider's key, from the environment variable that its configuration names."""
    key = os.environ.get(provider.api_key_env) if provider.api_key_env else None
    return {"Authorization": f"Bearer {key}"} if key else {}


def _entry(model: str, owner: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": owner}
