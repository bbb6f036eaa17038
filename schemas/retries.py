from typing import Any


def retryable(error: Any) -> bool:
    return (
        error.provider_status in (408, 409, 429) or (error.provider_status or 0) >= 500
    ) or error.code in (
        "provider_unreachable",
        "provider_truncated",
        "provider_stalled",
        "provider_timeout",
        "provider_empty",
    )


def delay(tries: int, *, policy: Any, retry_after: float | None, random: Any) -> float:
    return min(policy.longest, policy.first * 2 ** (tries - 1)) * random()
