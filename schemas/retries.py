"""Which failures of a provider are worth another try, and how long to wait before it.

The wait is exponential backoff with full jitter, as in the AWS Architecture Blog's "Exponential Backoff And Jitter"
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/): callers that failed together do not come
back together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from schemas.errors import ProviderError
from schemas.providers import Retry

#: The longest wait in seconds that a provider's header is believed.
LONGEST_RETRY_AFTER = 3600.0
#: How much longer than the provider asks for a wait may be: a part of it, and at most so many seconds.
SPREAD, MOST_SPREAD = 0.1, 5.0

#: No connection, a stream that broke off, stopped, or did not begin in time. The total timeout of a call has the same
#: code as the last one and is marked as final: what took too long once is likely to again, and has been paid for.
_HEALING_CODES = frozenset(
    {"provider_unreachable", "provider_truncated", "provider_stalled", "provider_empty", "provider_timeout"}
)
#: Beside 5xx; the same ones that OpenAI's own clients try again.
_HEALING_STATUSES = frozenset({408, 409, 429})
#: ``type`` or ``code`` of an ``error`` object in mid-stream, where there is no status.
_HEALING_WORDS = frozenset(
    {"server_error", "internal_error", "internal_server_error", "api_error", "overloaded", "overloaded_error"}
    | {"rate_limit_error", "rate_limit_exceeded", "service_unavailable", "timeout", "timeout_error"}
)
#: A 429 that no waiting heals: the account is out of money.
_EXHAUSTED_WORDS = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})

_SECONDS = re.compile(r"[+-]?[0-9]{1,300}(?:\.[0-9]*)?")


def retryable(error: Exception) -> bool:
    """Whether the same call may go well at another time."""
    if not isinstance(error, ProviderError) or error.final:
        return False
    words = {error.code.lower(), error.error_type.lower()}
    if words & _EXHAUSTED_WORDS:
        return False
    status = error.provider_status
    if status is None and re.fullmatch("[1-5][0-9][0-9]", error.code):
        status = int(error.code)
    if status is not None and status != 200:
        return status in _HEALING_STATUSES or 500 <= status <= 599
    return error.code in _HEALING_CODES or bool(words & _HEALING_WORDS)


def answered(error: ProviderError) -> bool:
    """Whether the provider is up all the same: it said that it will not, or what is wrong with the call."""
    status = error.provider_status
    return status is not None and not 500 <= status <= 599


def is_down(error: ProviderError) -> bool:
    """Whether a call that failed before its first chunk says that the provider is down, whatever it is asked."""
    return retryable(error) and not answered(error)


def fails_over(error: ProviderError) -> bool:
    """Whether another provider may do what this one did not. Not where the request itself is at fault, and not after
    the total timeout of a call: that one has been paid for.

    A key that is refused (401, 403) and an account without money are matters of this provider alone; an operator reads
    of them in the log and from ``tailrace doctor``.
    """
    words = {error.code.lower(), error.error_type.lower()}
    return (
        retryable(error)
        or error.provider_status in (401, 403)
        or bool(words & _EXHAUSTED_WORDS)
        or error.code in ("provider_bad_chunk", "provider_unknown")
    )


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a provider asks to wait, between 0 and ``LONGEST_RETRY_AFTER``; None where it doesn't say.

    ``headers`` finds names in any case, ``now`` is Unix time. ``Retry-After`` holds seconds or an HTTP date (RFC 9110,
    section 10.2.3); OpenAI and Azure also send ``retry-after-ms``, which is the more precise one.
    """
    wait = _number(headers.get("retry-after-ms", ""))
    if wait is not None:
        wait /= 1000
    else:
        text = headers.get("retry-after", "")
        wait = _number(text)
        if wait is None and text:
            wait = _until(text, now)
    return None if wait is None else min(max(wait, 0.0), LONGEST_RETRY_AFTER)


def delay(
    tries: int, *, policy: Retry, retry_after: float | None = None, random: Callable[[], float]
) -> float:
    """Seconds to wait after ``tries`` failed calls, 1 or more. ``random`` gives numbers from 0 to 1.

    Never shorter than ``retry_after``, and then a little longer, so that those who were told the same spread out.
    """
    ceiling = min(policy.longest, policy.first * 2.0 ** min(tries - 1, 100))
    wait = random() * ceiling
    if retry_after is None:
        return wait
    return max(wait, retry_after + random() * min(SPREAD * retry_after, MOST_SPREAD))


def next_try(
    error: Exception, *, tries: int, elapsed: float, policy: Retry, random: Callable[[], float]
) -> float | None:
    """Seconds until the call is tried again after ``tries`` calls of which the last one failed with ``error``.

    None where it is not: the failure doesn't heal, or the try would be one too many or begin later than
    ``policy.total`` seconds after the first call began. ``elapsed`` is the time since then, in seconds.
    """
    if tries >= policy.tries or not retryable(error):
        return None
    wanted = error.retry_after if isinstance(error, ProviderError) else None
    wait = delay(tries, policy=policy, retry_after=wanted, random=random)
    return wait if elapsed + wait <= policy.total else None


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if _SECONDS.fullmatch(text) else None


def _until(text: str, now: float) -> float | None:
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:  # "-0000" and what names no zone: an HTTP date is in GMT
            date = date.replace(tzinfo=UTC)
        return date.timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
