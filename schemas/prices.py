"""What an attempt cost, in integer nano units (10⁹ to the dollar).

The provider's own ``prices`` in providers.toml come first, then the list that the library ``genai-prices`` brings along
(nothing is asked of the network). A price that neither has is not zero: the cost is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from schemas.providers import Price, Provider
from schemas.records import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo
    from genai_prices.types import Provider as ListedProvider

#: Nano units to the dollar, and tokens that a price in providers.toml is for.
NANO = 10**9
PER_TOKENS = 10**6
#: The most that one attempt costs, ten thousand dollars. Counts beyond that are a provider's nonsense, and the sum of
#: all records must fit SQLite's integers.
MOST_NANO = 10**13
#: Models whose place in the list is remembered.
LISTED_MODELS = 1024

_PRIVATE_DOMAINS = (".local", ".localhost", ".internal", ".lan", ".home.arpa")


class Prices:
    """``providers`` are those of providers.toml."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = providers

    def cost_nano(self, provider: str, model: str, usage: Usage, at_ms: int) -> int | None:
        """What a provider takes for these tokens at a time; None where nobody knows. No tokens cost nothing."""
        if not usage.total_tokens:
            return 0
        table = self._providers.get(provider)
        if table is None:
            return None
        price = table.price(model)
        if price is not None:
            dollars = _by_table(price, usage)
        else:
            dollars = _by_list(table.base_url, model, usage, at_ms)
        if dollars is None:
            return None
        return min(int((dollars * NANO).to_integral_value(ROUND_HALF_UP)), MOST_NANO)


def _by_table(price: Price, usage: Usage) -> Decimal:
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    cached_price = price.input if price.cached_input is None else price.cached_input
    return (
        _exact(price.input) * (usage.prompt_tokens - cached)
        + _exact(cached_price) * cached
        + _exact(price.output) * usage.completion_tokens
    ) / PER_TOKENS


def _exact(dollars: float) -> Decimal:
    """The number as it was written."""
    return Decimal(repr(dollars))


def _by_list(base_url: str, model: str, usage: Usage, at_ms: int) -> Decimal | None:
    found = _listed(base_url, model) if _is_public(base_url) else None
    if found is None:
        return None
    from genai_prices import Usage as Counted

    provider, info = found
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    prices = vars(info.get_prices(at))
    if prices.get("input_mtok") is None or prices.get("output_mtok") is None:
        return None  # listed without a price
    counted = Counted(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=min(usage.cached_tokens, usage.prompt_tokens),
    )
    return info.calc_price(counted, provider, genai_request_timestamp=at).total_price


@lru_cache(LISTED_MODELS)
def _listed(base_url: str, model: str) -> tuple[ListedProvider, ModelInfo] | None:
    """Loads the library, 30 MB and half a second, when the first price is looked up."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider_model(model, None, None, base_url)
    except LookupError:
        return None


@lru_cache
def _is_public(base_url: str) -> bool:
    """Servers of one's own are in no price list."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(_PRIVATE_DOMAINS)
