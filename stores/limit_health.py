"""What the limits of providers have come to: for `tailrace doctor`."""

from __future__ import annotations

import hiredis

from schemas.errors import ConfigurationError, Unavailable
from schemas.providers import Provider
from schemas.settings import Settings
from stores.config import read_providers
from stores.health import Finding, fail, ok, warn
from stores.permits import Permits, PermitState
from stores.redis import Redis


async def limit_findings(redis: Redis, settings: Settings) -> list[Finding]:
    """For each provider with limits: what of them is in use, who waits, and whether it asked for fewer calls."""
    try:
        providers = read_providers(settings).providers.values()
    except ConfigurationError:
        return []  # which is a finding of the providers' own
    permits = Permits(redis, window_ms=int(settings.limit_window_seconds * 1000))
    found: list[Finding] = []
    for provider in providers:
        if provider.limited:
            try:
                found.append(limit_finding(provider, await permits.look(provider)))
            except (Unavailable, hiredis.ReplyError) as error:
                found.append(fail(f"limits {provider.name}", str(error), "See to Redis."))
    return found


def limit_finding(provider: Provider, state: PermitState) -> Finding:
    check = f"limits {provider.name}"
    parts = [
        f"{sum(used)} of {limit} {what}"
        for limit, used, what in (
            (provider.max_concurrency, state.held, "calls at once"),
            (provider.requests_per_minute, state.calls, "calls in a minute"),
            (provider.tokens_per_minute, state.tokens, "tokens in a minute"),
        )
        if limit is not None
    ]
    parts.append(f"{sum(state.waiting)} waiting")
    if state.factor == 1:
        return ok(check, ", ".join(parts))
    pause = f", nothing for {state.pause_ms / 1000:.1f} s" if state.pause_ms else ""
    return warn(
        check,
        f"{', '.join(parts)}; slowed to {state.factor:.0%} because it answered 429 or 503{pause}",
        "It comes back by itself. If it does so often, lower the provider's limits in providers.toml.",
    )
