"""What a request may come to, before a provider has answered it."""

from __future__ import annotations

from typing import Any

from schemas.codec import dumps
from schemas.providers import Price

#: Bytes of a request's messages that count as one token, and tokens of an answer whose request sets no limit.
BYTES_PER_TOKEN, ANSWER_TOKENS = 4, 512
#: Of a unit of money; and of the tokens that prices are for.
NANO, PRICED = 10**9, 10**6


def estimate(params: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and of the answer with all its choices."""
    limit = params.get("max_completion_tokens") or params.get("max_tokens") or ANSWER_TOKENS
    prompt = len(dumps(params.get("messages", []))) // BYTES_PER_TOKEN + 1
    return prompt, int(limit) * int(params.get("n") or 1)


def cost_nano(price: Price | None, prompt: int, answer: int) -> int:
    """In nano units of money; 0 where the price is not known."""
    if price is None:
        return 0
    return round((price.input * prompt + price.output * answer) * NANO / PRICED)
