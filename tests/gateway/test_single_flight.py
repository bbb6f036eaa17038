"""Equal requests at once, over several gateways and workers, and gateways that die between the steps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

import httpx
import pytest

from schemas.fingerprint import fingerprint
from schemas.keys import Keys
from schemas.request import parse_request
from tests.support.api import CHAT, SEED, Api, asking, ordered
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

DETERMINISTIC: dict[str, Any] = {"temperature": 0}
READERS = 1000


async def read(client: httpx.AsyncClient, url: str, body: bytes) -> tuple[str, str, str]:
    """The outcome, the completion and the whole body."""
    async with client.stream("POST", url + SEED, content=body) as response:
        assert response.status_code == 200, await response.aread()
        text = (await response.aread()).decode()
        return response.headers["x-cache"], response.headers["x-completion-id"], text


def test_a_thousand_at_once(stack: Stack, api: Api) -> None:
    """The provider sees one request; everybody has the stream from its first chunk and a record of his own."""
    port = free_port()
    stack.add_gateway("other", port)
    urls = (stack.url, f"http://127.0.0.1:{port}")
    body = json.dumps(asking(api.tenant, fake={"chunks": 40, "interval_ms": 150}, **DETERMINISTIC)).encode()

    async def everybody() -> list[tuple[str, str, str]]:
        limits = httpx.Limits(max_connections=READERS)
        headers = {"Authorization": f"Bearer {api.api_key}"}
        async with httpx.AsyncClient(limits=limits, timeout=120, headers=headers, trust_env=False) as client:
            return await asyncio.gather(*(read(client, urls[n % 2], body) for n in range(READERS)))

    with stack.worker("more", "interactive", 50):
        answers = asyncio.run(everybody())
    stack.remove("other")
    assert len(api.provider_requests(api.tenant)) == 1
    outcomes = [outcome for outcome, _, _ in answers]
    # On a slow machine the last ones may come after the end.
    assert outcomes.count("miss") == 1
    assert outcomes.count("join") + outcomes.count("hit") == READERS - 1
    assert outcomes.count("join") > READERS / 4
    ids = [completion_id for _, completion_id, _ in answers]
    assert len(set(ids)) == READERS
    for _, completion_id, text in answers:
        chunks = [json.loads(line[6:]) for line in text.split("\n") if line.startswith('data: {"id"')]
        assert {chunk["id"] for chunk in chunks} == {completion_id}
        assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == (
            ordered(40)
        )
        assert text.rstrip().endswith("data: null")
    rows = stack.settled(*ids)
    assert sorted(row.cache for row in rows) == sorted(outcomes)
    assert [row.usage.cost_nano for row in rows if row.usage and row.id != row.generation_id] == [0] * (
        READERS - 1
    )


def print_of(api: Api, body: dict[str, Any]) -> str:
    request = parse_request(json.dumps(body).encode())
    return fingerprint(tenant=api.tenant, provider="fake", model="fake", params=request.params(), sample=None)


def test_a_reservation_whose_gateway_died_holds_nobody_up(stack: Stack, api: Api) -> None:
    """It never accepted what it reserved: the next one waits a moment and asks the provider."""
    body = asking(api.tenant, **DETERMINISTIC)
    flight = Keys(0).flight(print_of(api, body))
    stack.redis.set(flight, "chatcmpl-" + "0" * 32, px=10_000)
    since = time.monotonic()
    whole = api.whole(body)
    assert (whole.headers["x-cache"], whole.text) == ("miss", ordered())
    assert time.monotonic() - since < 9, "before the reservation itself ran out"
    stack.settled(whole.id)
    wait_until(lambda: not stack.redis.exists(flight), what="the flight's end")


def test_a_flight_of_a_generation_that_redis_lost(stack: Stack, api: Api) -> None:
    body = asking(api.tenant, **DETERMINISTIC)
    stack.redis.set(Keys(0).flight(print_of(api, body)), "chatcmpl-" + "0" * 32, px=3_600_000)
    assert api.whole(body).headers["x-cache"] == "miss"


def test_a_gateway_that_dies_with_what_it_shares(stack: Stack, api: Api) -> None:
    """Killed at any moment while equal requests come in: whoever asks again has the whole answer, under one id for one
    Idempotency-Key, and the books balance."""
    for number in range(4):
        port = free_port()
        gateway = stack.add_gateway(f"victim{number}", port)
        content = f"{api.tenant}.{number}"
        body = json.dumps(asking(content, fake={"chunks": 20, "interval_ms": 20}, **DETERMINISTIC)).encode()
        url = f"http://127.0.0.1:{port}"

        async def ask(
            client: httpx.AsyncClient, n: int, url: str = url, body: bytes = body, content: str = content
        ) -> tuple[str, str] | None:
            headers = {"Idempotency-Key": f"{content}.{n}", "Authorization": f"Bearer {api.api_key}"}
            try:
                answer = await client.post(url + SEED, content=body, headers=headers)
                return answer.headers["x-completion-id"], answer.text
            except httpx.HTTPError:
                return None

        async def everybody(
            delay: float = 0.02 * 2**number, pid: int = gateway.pid, other: str = stack.url
        ) -> list[tuple[str, str]]:
            async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
                asking = [asyncio.create_task(ask(client, n)) for n in range(30)]
                await asyncio.sleep(delay)
                os.kill(pid, signal.SIGKILL)
                await asyncio.gather(*asking)
                again = [await ask(client, n, other) for n in range(30)]
                return [answer for answer in again if answer is not None]

        answers = asyncio.run(everybody())
        stack.remove(f"victim{number}", signal.SIGKILL)
        assert len({completion_id for completion_id, _ in answers}) == 30
        for _, text in answers:
            assert text.rstrip().endswith("data: null")
        assert len(api.provider_requests(content)) <= 2
        stack.settled(*(completion_id for completion_id, _ in answers))
        assert api.get(f"{CHAT}/{answers[0][0]}").json()["choices"][0]["message"]["content"] == ordered(20)
