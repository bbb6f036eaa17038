"""What tokens cost: by providers.toml, else by the list that comes with genai-prices, else nobody knows."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.prices import MOST_NANO, Prices
from schemas.providers import load_providers
from schemas.records import Usage

AT = 1_750_000_000_000
TOML = """
default = "local"
[providers.local]
base_url = "http://127.0.0.1:8081/v1"
[providers.local.prices."smollm2"]
input = 0.10
output = 0.20
cached_input = 0.025
[providers.local.prices."*"]
input = 1
output = 3
[providers.free]
base_url = "http://127.0.0.1:8082/v1"
prices = { "*" = { input = 0, output = 0 } }
[providers.own]
base_url = "http://10.0.0.7/v1"
[providers.openai]
base_url = "https://api.openai.com/v1"
[providers.discounted]
base_url = "https://api.openai.com/v1"
prices = { "gpt-4o-mini" = { input = 0.01, output = 0.01 } }
[providers.nobody]
base_url = "https://llm.example.com/v1"
[providers.tape]
kind = "replay"
file = "recordings.jsonl"
prices = { "sold" = { input = 1, output = 3 } }
"""
PRICES = Prices(load_providers(TOML, source="providers.toml").providers)
TOKENS = Usage(prompt_tokens=1000, completion_tokens=100, reasoning_tokens=40, cached_tokens=400)


@pytest.mark.parametrize(
    ("provider", "model", "nano"),
    [
        ("local", "smollm2", 600 * 100 + 400 * 25 + 100 * 200),
        ("local", "another", 1000 * 1000 + 100 * 3000),
        ("free", "any", 0),
        ("discounted", "gpt-4o-mini", 1100 * 10),
        # $0.15, $0.075 cached and $0.60 for a million
        ("openai", "gpt-4o-mini", 600 * 150 + 400 * 75 + 100 * 600),
        ("discounted", "gpt-4o", 600 * 2500 + 400 * 1250 + 100 * 10_000),
        ("tape", "sold", 1000 * 1000 + 100 * 3000),
    ],
)
def test_a_price_that_is_known(provider: str, model: str, nano: int) -> None:
    """The exact model before ``*``, providers.toml before the list; cached input at its own price."""
    assert PRICES.cost_nano(provider, model, TOKENS, AT) == nano


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("own", "gpt-4o-mini"),
        ("openai", "no-such-model"),
        ("nobody", "gpt-4o-mini"),
        ("gone", "smollm2"),
        ("openai", "text-embedding-3-small"),
        ("tape", "gpt-4o-mini"),
    ],
)
def test_a_price_that_nobody_knows_is_not_zero(provider: str, model: str) -> None:
    """Another's price of the same name is none of this provider's, nor is half a price."""
    assert PRICES.cost_nano(provider, model, TOKENS, AT) is None


@pytest.mark.parametrize("provider", ["local", "openai", "nobody", "gone"])
def test_no_tokens_cost_nothing(provider: str) -> None:
    assert PRICES.cost_nano(provider, "any", Usage(), AT) == 0


@pytest.mark.parametrize("provider", ["local", "openai"])
def test_counts_beyond_all_sense_have_a_cost_that_sql_holds(provider: str) -> None:
    """More cached tokens than there were, too."""
    huge = Usage(prompt_tokens=10**12, completion_tokens=10**12, cached_tokens=10**12)
    model = "gpt-4" if provider == "openai" else "smollm2"
    assert 0 < (PRICES.cost_nano(provider, model, huge, AT) or 0) <= MOST_NANO
    odd = Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=10**12)
    assert 0 < (PRICES.cost_nano("openai", "gpt-4o-mini", odd, AT) or 0) < 1000


tokens = st.integers(0, 10**7)


@given(prompt=tokens, completion=tokens, cached=tokens, thousandths=st.integers(0, 10**6))
def test_the_cost_is_exact_to_half_a_nano(
    prompt: int, completion: int, cached: int, thousandths: int
) -> None:
    """Prices are decimals as they are written, not the binary fractions next to them."""
    text = f"{thousandths / 1000:.3f}"
    toml = f"""
        [providers.p]
        base_url = "http://127.0.0.1/v1"
        prices = {{ m = {{ input = {text}, output = {text} }} }}
    """
    prices = Prices(load_providers(toml, source="t").providers)
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
    cost = prices.cost_nano("p", "m", usage, AT)
    assert cost is not None
    exact = Decimal(text) * (prompt + completion) * 1000
    assert abs(cost - min(exact, MOST_NANO)) <= Decimal("0.5")


def test_the_list_starts_no_thread_and_asks_no_network() -> None:
    """It is what was installed. A process whose providers are its own or have prices doesn't load it at all."""
    code = f"""
import socket, sys, threading
def refuse(*_): raise AssertionError("network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from schemas.prices import Prices
from schemas.providers import load_providers
from schemas.records import Usage
prices = Prices(load_providers({TOML!r}, source="t").providers)
usage = Usage(prompt_tokens=1, completion_tokens=1)
assert prices.cost_nano("local", "smollm2", usage, {AT}) == 300
assert prices.cost_nano("own", "gpt-4o-mini", usage, {AT}) is None
assert "genai_prices" not in sys.modules
assert prices.cost_nano("openai", "gpt-4o-mini", usage, {AT}) == 750
assert threading.active_count() == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
