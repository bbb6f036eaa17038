"""Limits of an API key: what is let in, what is refused with 429, and what the headers say. Two gateways share them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.api import CHAT, Api, asking, error_of
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

#: What counts as a minute here, in seconds.
WINDOW = 3.0
#: Money for a token of an answer, and what an answer of ten tokens costs.
PRICED = {"prices": {"*": {"input": 0, "output": 1_000_000}}}


@pytest.fixture(scope="module")
def limited() -> Iterator[Stack]:
    settings = {"LIMIT_WINDOW_SECONDS": str(WINDOW), "KEY_CACHE_SECONDS": "0"}
    with Stack(settings=settings, providers={"priced": PRICED}) as stack:
        yield stack
        stack.check_balanced()


@pytest.fixture(scope="module")
def second(limited: Stack) -> str:
    """The URL of another gateway."""
    port = free_port()
    limited.add_gateway("second", port)
    return f"http://127.0.0.1:{port}"


def caller(stack: Stack, **limits: int) -> Api:
    """A client whose new key has limits."""
    tenant = stack.tenant()
    _, key = stack.keys.create("limited", tenant, limits=limits)
    return Api(stack.url, key, tenant=tenant, backend=stack.backend)


def refused(answer: httpx.Response, kind: str, words: str, code: str = "rate_limit_exceeded") -> None:
    assert answer.status_code == 429, answer.text
    error = error_of(answer)
    assert (error["type"], error["code"]) == (kind, code)
    assert words in error["message"]
    assert int(answer.headers["retry-after"]) >= 1


def test_requests_per_minute(limited: Stack, second: str) -> None:
    """Over both gateways together; good answers say what is left, and after Retry-After there is room again."""
    with caller(limited, rpm=3) as api:
        there = Api(second, api.api_key, tenant=api.tenant, backend=api.backend)
        left = [
            client.plain("count").headers["x-ratelimit-remaining-requests"] for client in (api, there, api)
        ]
        assert left == ["2", "1", "0"]
        answer = there.plain("one too many")
        refused(answer, "requests", "requests per minute")
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert not api.provider_requests("one too many")
        time.sleep(int(answer.headers["retry-after"]))
        assert api.seed("again").headers["x-ratelimit-limit-requests"] == "3"
        there.close()


def test_many_at_once_are_let_in_by_the_limit(limited: Stack, second: str) -> None:
    """No race between gateways lets one more in."""
    with (
        caller(limited, rpm=7) as api,
        Api(second, api.api_key, tenant="", backend=api.backend) as there,
        ThreadPoolExecutor(16) as pool,
    ):
        answers = [*pool.map(lambda n: (api, there)[n % 2].plain("race").status_code, range(40))]
    assert answers.count(200) == 7
    assert answers.count(429) == 33
    assert len(api.provider_requests("race")) == 7


def test_tokens_per_minute(limited: Stack) -> None:
    """An estimate is reserved, and what was used counts once it is known."""
    with caller(limited, tpm=1000) as api:
        answer = api.plain("tokens", max_tokens=900)
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 100
        used = answer.json()["usage"]["total_tokens"]

        def corrected() -> bool:
            headers = api.plain("probe", max_tokens=1).headers
            return int(headers["x-ratelimit-remaining-tokens"]) > 1000 - 4 * used - 100

        wait_until(corrected)
        refused(api.plain("more", max_tokens=1000), "tokens", "tokens per minute")


def test_completions_at_once(limited: Stack) -> None:
    """A place comes free with an end, also of a completion that is cancelled."""
    with caller(limited, concurrent=2) as api:
        slow = {"chunks": 500, "interval_ms": 100}
        ids = [api.background(f"slow {n}", fake=slow) for n in range(2)]
        refused(api.plain("third"), "requests", "completions at once")
        assert api.post(f"{CHAT}/{ids[0]}/cancel").status_code == 200
        wait_until(lambda: api.plain("third").status_code == 200)
        api.post(f"{CHAT}/{ids[1]}/cancel")
        assert api.plain("fourth").status_code == 200


@pytest.mark.parametrize(
    ("limits", "words"), [({"queued": 3}, "queued completions"), ({"queued_bytes": 900}, "bytes")]
)
def test_queued_completions_and_their_bytes(limited: Stack, limits: dict[str, int], words: str) -> None:
    """What no worker has begun counts; what runs doesn't."""
    with caller(limited, **limits) as api:
        with limited.paused("interactive0"):
            answers = [
                api.post(CHAT, json=asking("wait " + "x" * 100), headers={"Prefer": "respond-async"})
                for _ in range(12)
            ]
            accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
            assert 1 <= len(accepted) < 12
            refused(answers[-1], "requests", words)
        limited.settled(*accepted)
        assert api.plain("room again").status_code == 200


def test_an_idempotent_retry_counts_once(limited: Stack) -> None:
    """Also one that was refused may come again with its key."""
    with caller(limited, rpm=1) as api:
        first = api.plain("once", headers={"Idempotency-Key": "a"})
        again = api.plain("once", headers={"Idempotency-Key": "a"})
        assert first.headers["x-completion-id"] == again.headers["x-completion-id"]
        late = api.plain("later", headers={"Idempotency-Key": "b"})
        assert late.status_code == 429
        time.sleep(int(late.headers["retry-after"]))
        assert api.plain("later", headers={"Idempotency-Key": "b"}).status_code == 200


def test_limits_change_and_go(limited: Stack) -> None:
    row, key = limited.keys.create("changing", limited.tenant(), limits={"rpm": 1})
    id = row.id
    with Api(limited.url, key, tenant=row.tenant, backend=limited.backend) as api:
        assert api.plain("one").status_code == 200
        assert api.plain("two").status_code == 429
        assert limited.keys.set_limits(id, {"rpm": None})
        answer = api.plain("three")
        assert answer.status_code == 200
        assert "x-ratelimit-limit-requests" not in answer.headers
