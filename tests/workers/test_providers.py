"""Calling a provider: what its failures carry for those who decide on another try."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.errors import ProviderError
from schemas.providers import Provider
from schemas.retries import retryable
from tests.support.backend import Backend
from workers.patience import Patience
from workers.providers.kind import Call
from workers.providers.openai import OpenAI, make_transport


async def failed(backend: Backend, order: dict[str, Any], **timeout: float) -> ProviderError:
    """The failure of one call."""
    backend.script(order)
    call = Call({"messages": [{"role": "user", "content": "x"}]}, "fake")
    provider = Provider.model_validate({"name": "p", "base_url": backend.url, "timeout": timeout})
    transport = make_transport()
    try:
        with pytest.raises(ProviderError) as caught, Patience(provider) as patience:
            try:
                async with OpenAI(provider, transport).stream(call) as pieces:
                    async for _ in pieces:
                        patience.heard()
            except asyncio.CancelledError:
                raise patience.error() from None
        return caught.value
    finally:
        await transport.aclose()


async def test_a_refusal_carries_what_it_asks_to_wait(backend: Backend) -> None:
    """Retry-After in seconds and the milliseconds of OpenAI and Azure; without a header there is no wait."""
    for headers, wait in (({"Retry-After": "7"}, 7.0), ({"Retry-After-Ms": "150"}, 0.15), ({}, None)):
        error = await failed(backend, {"status": 429, "headers": headers})
        assert (error.provider_status, error.retry_after) == (429, wait)
        assert retryable(error)


async def test_of_the_timeouts_the_total_one_is_final(backend: Backend) -> None:
    """A call that never began or stopped may go well another time; one that took too long in all is not repeated."""
    slow = {"chunks": 1000, "interval_ms": 20}
    assert retryable(await failed(backend, {"first_delay_ms": 60_000}, first_chunk=0.2))
    assert retryable(await failed(backend, {"stall_after": 2}, between_chunks=0.3))
    error = await failed(backend, slow, total=0.5)
    assert error.code == "provider_timeout"
    assert not retryable(error)
