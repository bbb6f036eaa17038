"""Retries: which failures of a provider are tried again, and after how long."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DeadlineExceeded, ProviderError
from schemas.providers import Retry
from schemas.retries import LONGEST_RETRY_AFTER, delay, next_try, retry_after, retryable
from workers.providers.kind import provider_error, refusal

NOW = 1_800_000_000.0
UNREACHABLE = ProviderError("x", code="provider_unreachable")


# -- Which


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_statuses_that_heal(status: int) -> None:
    """What OpenAI's own clients try again, whatever the answer's body is."""
    for body in (b"", b"busy", b'{"error": {"message": "m", "type": "x", "code": "y"}}', b'{"error": "m"}'):
        assert retryable(refusal("p", status, body))


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 300])
def test_statuses_that_do_not_heal(status: int) -> None:
    """No other answer is tried again, not even one that calls itself a server error."""
    assert not retryable(refusal("p", status, b'{"error": {"message": "m", "type": "server_error"}}'))


@pytest.mark.parametrize("field", ["type", "code"])
def test_an_empty_account_does_not_heal(field: str) -> None:
    """OpenAI answers 429 also where the money is gone."""
    assert not retryable(refusal("p", 429, b'{"error": {"%s": "insufficient_quota"}}' % field.encode()))
    assert not retryable(provider_error("p", {field: "insufficient_quota"}))


@pytest.mark.parametrize(
    "code",
    ["provider_unreachable", "provider_truncated", "provider_stalled", "provider_empty", "provider_timeout"],
)
def test_connections_that_fail_heal(code: str) -> None:
    """No connection, a stream that broke off, stopped, or never began."""
    assert retryable(ProviderError("x", code=code))


def test_what_another_call_would_meet_too() -> None:
    """Our own configuration, garbage, a deadline, and a total timeout."""
    for code in ("provider_unknown", "provider_bad_chunk", "provider_error"):
        assert not retryable(ProviderError("x", code=code))
    assert not retryable(ProviderError("x", code="provider_timeout", final=True))
    assert not retryable(DeadlineExceeded("x"))
    assert not retryable(RuntimeError("x"))


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ({"code": 503, "message": "m"}, True),
        ({"code": "502"}, True),
        ({"code": 400}, False),
        ({"code": "400", "type": "server_error"}, False),
        ({"type": "server_error"}, True),
        ({"type": "overloaded_error"}, True),
        ({"type": "Rate_Limit_Error"}, True),
        ({"code": "rate_limit_exceeded", "type": "tokens"}, True),
        ({"type": "api_error"}, True),
        ({"type": "invalid_request_error"}, False),
        ({"message": "m"}, False),
        ("m", False),
    ],
)
def test_an_error_in_mid_stream(detail: object, expected: bool) -> None:
    """An ``error`` object after 200 counts by its status, else by its type or code."""
    assert retryable(provider_error("p", detail)) is expected


# -- Retry-After


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3),
        ({"Retry-After": " 1.5 "}, 1.5),
        ({"Retry-After": "-7"}, 0),
        ({"Retry-After": "99999999"}, LONGEST_RETRY_AFTER),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1_0"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After-Ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "rubbish", "retry-after": "1"}, 1),
        ({"Retry-After": "Mon, 99 Foo 2030 00:00:00 GMT"}, None),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, LONGEST_RETRY_AFTER),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    """Seconds, dates, milliseconds; what is none of them says nothing."""
    assert retry_after(httpx.Headers(headers), NOW) == expected


@given(st.integers(0, 3600), st.booleans())
def test_a_date_is_the_time_until_then(seconds: int, zone: bool) -> None:
    """An HTTP date is in GMT, also where it doesn't name a zone."""
    text = format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)
    assert retry_after({"retry-after": text if zone else text.removesuffix(" GMT")}, NOW) == seconds


@given(st.text(max_size=40))
def test_no_header_raises(text: str) -> None:
    """Whatever a provider sends, the wait is sane or not there."""
    for name in ("retry-after", "retry-after-ms"):
        wait = retry_after({name: text}, NOW)
        assert wait is None or 0 <= wait <= LONGEST_RETRY_AFTER


def test_a_refusal_carries_its_wait() -> None:
    """The failure keeps what the provider asked for."""
    assert refusal("p", 429, b"{}", wait=4.5).retry_after == 4.5
    assert refusal("p", 429, b"{}").retry_after is None


# -- The wait

policies = st.builds(
    Retry,
    tries=st.integers(1, 10),
    total=st.floats(0.1, 1000),
    first=st.floats(0.01, 10),
    longest=st.floats(0.01, 100),
)
chances = st.floats(0, 1)


def test_the_ceiling_doubles() -> None:
    """The most that is waited doubles with each try up to the longest; the least is nothing."""
    policy = Retry(first=0.5, longest=3)
    assert [delay(n, policy=policy, random=lambda: 1.0) for n in (1, 2, 3, 4, 5000)] == [0.5, 1, 2, 3, 3]
    assert delay(4, policy=policy, random=lambda: 0.0) == 0


@given(policies, st.integers(1, 10**6), st.floats(0, LONGEST_RETRY_AFTER), chances)
def test_retry_after_is_the_least(policy: Retry, tries: int, asked: float, chance: float) -> None:
    """The provider's own wait is kept, and exceeded by little where the backoff isn't longer anyway."""
    wait = delay(tries, policy=policy, retry_after=asked, random=lambda: chance)
    assert asked <= wait <= max(policy.longest, asked * 1.1, asked) + 1e-6


def test_those_who_were_told_the_same_spread_out() -> None:
    """Two that got the same Retry-After don't come back at the same time."""
    policy = Retry()
    waits = {delay(1, policy=policy, retry_after=20, random=lambda c=c: c) for c in (0.1, 0.5, 0.9)}
    assert len(waits) == 3


@given(policies, chances, st.lists(st.floats(0, 60), min_size=20, max_size=20))
def test_tries_and_total_time_have_caps(policy: Retry, chance: float, calls: list[float]) -> None:
    """No more calls than the policy has, and none begins later than its total."""
    elapsed, tries = 0.0, 0
    for took in calls:
        assert elapsed <= policy.total
        tries, elapsed = tries + 1, elapsed + took
        wait = next_try(UNREACHABLE, tries=tries, elapsed=elapsed, policy=policy, random=lambda: chance)
        if wait is None:
            break
        elapsed += wait
    assert tries <= policy.tries


def test_a_wait_beyond_the_total_is_not_begun() -> None:
    """A provider that asks for more than what is left has given its last answer; so has what doesn't heal."""
    policy = Retry(total=60)
    asks = ProviderError("x", provider_status=429, retry_after=50)
    assert next_try(asks, tries=1, elapsed=2, policy=policy, random=lambda: 0.0) == 50
    assert next_try(asks, tries=1, elapsed=11, policy=policy, random=lambda: 0.0) is None
    assert next_try(DeadlineExceeded("x"), tries=1, elapsed=0, policy=policy, random=lambda: 0.0) is None
