"""providers.toml: reading it, what a model name means, and the body that a provider is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigurationError, ModelNotFound
from schemas.providers import Provider, Providers, Target, load_providers, upstream_body

FULL = """
default = "local"

[providers.local]
kind = "openai"
base_url = "http://127.0.0.1:8081/v1/"
api_key_env = "LOCAL_API_KEY"
max_concurrency = 64
requests_per_minute = 6000
tokens_per_minute = 100000
timeout = { connect = 5, first_chunk = 120, between_chunks = 60, total = 900 }
retry = { tries = 3, total = 100, first = 1, longest = 20 }
circuit = { failures = 3, pause = 4 }
supports_prefill = true
max_tokens_field = "max_completion_tokens"
models = ["smollm2", "llama3:8b"]

[providers.local.prices."smollm2"]
input = 0.10
output = 0.20

[providers.local.prices."*"]
input = 1
output = 2
cached_input = 0.5

[providers.openai]
base_url = "https://api.openai.com/v1"

[aliases]
auto = ["local:smollm2", "openai:gpt-4o-mini"]
"openai:best" = ["local:llama3:8b"]
"""

#: The start of a sound file, for a faulty line to follow.
SOUND = '[providers.a]\nbase_url = "http://127.0.0.1/v1"\n'


@pytest.fixture
def providers() -> Providers:
    return load_providers(FULL, source="providers.toml")


def refused(text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load_providers(text, source="/etc/providers.toml")
    assert caught.value.message.startswith("/etc/providers.toml: ")
    assert "\n" not in caught.value.message
    return caught.value


# -- The file


def test_recordings_are_beside_the_file() -> None:
    """Wherever the process runs; a whole path stays."""
    text = '[providers.a]\nkind = "replay"\nfile = "{}"'
    for file, path in (("tapes/a.jsonl", "/etc/tapes/a.jsonl"), ("/var/a.jsonl", "/var/a.jsonl")):
        providers = load_providers(text.format(file), source="/etc/providers.toml")
        assert providers.providers["a"].file == path


def test_a_provider_has_what_its_table_says(providers: Providers) -> None:
    """Every field of the file reaches the provider; the base URL loses its trailing slash."""
    local = providers.providers["local"]
    assert local.name == "local"
    assert local.base_url == "http://127.0.0.1:8081/v1"
    assert local.model_dump(exclude={"name", "base_url"}) == {
        "kind": "openai",
        "api_key_env": "LOCAL_API_KEY",
        "max_concurrency": 64,
        "requests_per_minute": 6000,
        "tokens_per_minute": 100000,
        "timeout": {"connect": 5, "first_chunk": 120, "between_chunks": 60, "total": 900},
        "retry": {"tries": 3, "total": 100, "first": 1, "longest": 20},
        "circuit": {"failures": 3, "pause": 4},
        "file": "",
        "speed": 1,
        "supports_prefill": True,
        "max_tokens_field": "max_completion_tokens",
        "models": ["smollm2", "llama3:8b"],
        "prices": {
            "smollm2": {"input": 0.1, "output": 0.2, "cached_input": None},
            "*": {"input": 1, "output": 2, "cached_input": 0.5},
        },
    }


def test_a_url_is_all_that_a_provider_needs() -> None:
    """One table with a base URL is a whole file, and that provider is the default."""
    providers = load_providers(SOUND, source="providers.toml")
    assert providers.default == "a"
    assert providers.providers["a"].timeout.total == 900
    assert providers.providers["a"].retry.tries == 5


def test_prices_fall_back_to_the_star(providers: Providers) -> None:
    """A model's own price stands before the star's; a provider without prices has none."""
    local = providers.providers["local"]
    named, other = local.price("smollm2"), local.price("llama3:8b")
    assert named is not None
    assert other is not None
    assert (named.input, other.input) == (0.1, 1)
    assert providers.providers["openai"].price("gpt-4o") is None


def test_listed_knows_yes_no_and_don_t_know(providers: Providers) -> None:
    """A configured list answers for each model; without a list there is no answer."""
    local = providers.providers["local"]
    assert local.listed("llama3:8b") is True
    assert local.listed("llama3") is False
    assert providers.providers["openai"].listed("gpt-4o") is None


@pytest.mark.parametrize(
    ("text", "param", "words"),
    [
        ("", "providers", "needs at least one table, [providers.<name>]"),
        ("[providers]", "providers", "needs at least one table, [providers.<name>]"),
        ("providers = 3", "providers", "must be a table"),
        ("[providers]\na = 3", "providers.a", "must be a table"),
        ("[providers.a]", "providers.a.base_url", "is required"),
        (
            '[providers."a:b"]\nbase_url = "http://h"',
            "providers.a:b",
            "may have only letters, digits, '_' and '-'",
        ),
        (
            '[providers."é"]\nbase_url = "http://h"',
            "providers.é",
            "may have only letters, digits, '_' and '-'",
        ),
        ('default = "z"\n' + SOUND, "default", "must be a configured provider (a)"),
        ("default = 3\n" + SOUND, "default", "must be a string"),
        (
            SOUND + SOUND.replace(".a]", ".b]"),
            "default",
            "is required where there are several providers (a, b)",
        ),
        ("defualt = 3\n" + SOUND, "defualt", "is not a known field; did you mean 'default'?"),
        (SOUND + "retry = { tries = 0 }", "providers.a.retry.tries", "must be at least 1"),
        (SOUND + "retry = { trys = 2 }", "providers.a.retry.trys", "did you mean 'tries'?"),
        (SOUND + "max_concurency = 3", "providers.a.max_concurency", "did you mean 'max_concurrency'?"),
        (SOUND + "colour = 3", "providers.a.colour", "is not a known field; remove it."),
        (SOUND + 'name = "b"', "providers.a.name", "is not a known field"),
        (SOUND + 'max_concurrency = "3"', "providers.a.max_concurrency", "must be an integer"),
        (SOUND + "max_concurrency = 0", "providers.a.max_concurrency", "must be at least 1"),
        (SOUND + "tokens_per_minute = 0.5", "providers.a.tokens_per_minute", "must be an integer"),
        (SOUND + 'kind = "grpc"', "providers.a.kind", "must be 'openai'"),
        (SOUND + 'max_tokens_field = "n_predict"', "providers.a.max_tokens_field", "must be 'max_tokens' or"),
        (SOUND + "models = []", "providers.a.models", "must not be empty"),
        (SOUND + 'models = [""]', "providers.a.models[0]", "must not be empty"),
        (SOUND + "timeout = 5", "providers.a.timeout", "must be a table"),
        (SOUND + "timeout = { conect = 1 }", "providers.a.timeout.conect", "did you mean 'connect'?"),
        (SOUND + "timeout = { connect = 0 }", "providers.a.timeout.connect", "must be greater than 0"),
        (SOUND + "timeout = { total = inf }", "providers.a.timeout.total", "must be a finite number"),
        (SOUND + "circuit = { failures = -1 }", "providers.a.circuit.failures", "must be at least 0"),
        (SOUND + "circuit = { pause = 0 }", "providers.a.circuit.pause", "must be greater than 0"),
        (SOUND + "circuit = { pauze = 1 }", "providers.a.circuit.pauze", "did you mean 'pause'?"),
        (SOUND + 'kind = "tape"', "providers.a.kind", "must be 'openai' or 'replay'"),
        (SOUND + "speed = 2", "providers.a.speed", "is for kind = 'replay' only"),
        ('[providers.a]\nkind = "replay"', "providers.a.file", "is required"),
        ('[providers.a]\nkind = "replay"\nfile = ""', "providers.a.file", "must not be empty"),
        (
            SOUND + 'kind = "replay"\nfile = "f"',
            "providers.a.base_url",
            "is for kind = 'openai' only",
        ),
        ('[providers.a]\nkind = "replay"\nfile = "f"\nspeed = -1', "providers.a.speed", "must be at least 0"),
        (SOUND + "[providers.a.prices.m]\ninput = 1", "providers.a.prices.m.output", "is required"),
        (
            SOUND + "[providers.a.prices.m]\ninput = -1\noutput = 1",
            "providers.a.prices.m.input",
            "must be at least 0",
        ),
        (SOUND + "[aliases]\nx = 'a:m'", "aliases.x", "must be an array"),
        (SOUND + "[aliases]\nx = []", "aliases.x", "must not be empty"),
        (
            SOUND + "[aliases]\nx = ['m']",
            "aliases.x[0]",
            "must be 'provider:model' with a configured provider (a)",
        ),
        (SOUND + "[aliases]\nx = ['a:m', 'z:m']", "aliases.x[1]", "must be 'provider:model'"),
        (SOUND + "[aliases]\nx = ['a:']", "aliases.x[0]", "must name a model, as in 'a:model'"),
    ],
)
def test_a_fault_is_named_with_its_field(text: str, param: str, words: str) -> None:
    """One line names the file, the field and what to write there."""
    error = refused(text)
    assert error.param == param
    assert error.message.startswith(f"/etc/providers.toml: '{param}' ")
    assert words in error.message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8081",
        "ftp://h/v1",
        "http://",
        "http:///v1",
        "http://h:99999",
        "http://h/a b",
        "http://h/\\n",
        "http://h/v1?key=1",
        "http://h/v1#top",
        "http://[::1/v1",
    ],
)
def test_a_base_url_has_to_be_one_that_paths_can_be_added_to(url: str) -> None:
    """Only http and https with a host, and neither query nor fragment."""
    assert refused(f'[providers.a]\nbase_url = "{url}"').param == "providers.a.base_url"


def test_a_key_in_the_wrong_place_is_not_repeated() -> None:
    """Who writes the key itself into api_key_env is told so, and the key shows up in no message."""
    error = refused(SOUND + 'api_key_env = "sk-12345"')
    assert "must name the environment variable" in error.message
    assert "12345" not in error.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SOUND + 'models = ["m"', "not valid TOML"),
        (SOUND + 'models = "a\nb"', "at line 3"),
        (SOUND + SOUND, "not valid TOML"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ("x = " + "[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_toml_is_one_line_too(text: str, words: str) -> None:
    """A syntax error says where it is, on one line."""
    assert words in refused(text).message


# -- What a model name means


@pytest.mark.parametrize(
    ("asked", "provider", "model"),
    [
        ("smollm2", "local", "smollm2"),
        ("local:smollm2", "local", "smollm2"),
        ("openai:gpt-4o", "openai", "gpt-4o"),
        ("llama3:8b", "local", "llama3:8b"),
        ("local:llama3:8b", "local", "llama3:8b"),
        ("ft:gpt-4o:org::id", "local", "ft:gpt-4o:org::id"),
        ("meta-llama/Llama-3:free", "local", "meta-llama/Llama-3:free"),
        ("local", "local", "local"),
        (":smollm2", "local", ":smollm2"),
        ("Local:m", "local", "Local:m"),
        ("local::m", "local", ":m"),
        ("auto", "local", "smollm2"),
        ("auto:m", "local", "auto:m"),
        ("openai:best", "local", "llama3:8b"),
    ],
)
def test_resolving(providers: Providers, asked: str, provider: str, model: str) -> None:
    """An exact alias; else a provider before the first colon; else the default provider."""
    resolved = providers.resolve(asked)
    assert (resolved.asked, resolved.provider, resolved.model) == (asked, provider, model)


def test_an_alias_keeps_all_its_targets_in_order(providers: Providers) -> None:
    """Failover needs the targets after the first one too."""
    assert providers.resolve("auto").targets == (Target("local", "smollm2"), Target("openai", "gpt-4o-mini"))


def test_a_provider_without_a_model_is_no_model(providers: Providers) -> None:
    """Nothing after the provider's colon is refused before anything is accepted."""
    with pytest.raises(ModelNotFound) as caught:
        providers.resolve("openai:")
    assert caught.value.param == "model"
    assert "openai:<model>" in caught.value.message


@given(st.text(min_size=1))
def test_every_other_name_resolves_to_a_configured_provider(name: str) -> None:
    """Any name either is a provider's with nothing after its colon, or has exactly one meaning."""
    providers = load_providers(FULL, source="providers.toml")
    for asked in (name, f"openai:{name}"):
        resolved = providers.resolve(asked)
        assert resolved.provider in providers.providers
        assert resolved.model
        assert resolved.targets[0] == Target(resolved.provider, resolved.model)


# -- What the provider is sent

PLAIN = Provider(name="p", base_url="http://h/v1")
NEW = Provider(name="p", base_url="http://h/v1", max_tokens_field="max_completion_tokens")
ASKED: dict[str, Any] = {"model": "alias", "messages": [{"role": "user", "content": "x"}]}
SENT = {**ASKED, "model": "m", "stream": True, "stream_options": {"include_usage": True}}


def sent(provider: Provider = PLAIN, end_user: str | None = None, **params: Any) -> dict[str, Any]:
    return json.loads(upstream_body({**ASKED, **params}, provider=provider, model="m", end_user=end_user))


def test_the_provider_is_always_asked_for_a_stream_with_usage() -> None:
    """Whatever the client asked, the provider streams and counts; other stream options stay."""
    assert sent() == SENT
    assert sent(stream=False, stream_options={"include_usage": False, "other": 1}) == {
        **SENT,
        "stream_options": {"include_usage": True, "other": 1},
    }


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_token_limit_goes_under_the_providers_name(name: str) -> None:
    """A limit under either name, or both, is sent once, under the name that the provider takes."""
    limit: dict[str, Any] = {name: 5}
    assert sent(**limit) == {**SENT, "max_tokens": 5}
    assert sent(NEW, **limit) == {**SENT, "max_completion_tokens": 5}
    assert sent(NEW, max_tokens=5, max_completion_tokens=5) == {**SENT, "max_completion_tokens": 5}


def test_what_is_between_the_client_and_us_stays_here() -> None:
    """The provider hears nothing of storing, labels and deadline."""
    assert sent(store=True, metadata={"a": "b"}, timeout=3) == SENT


def test_parallel_tool_calls_go_only_with_tools() -> None:
    """Without tools, or with an empty list of them, the parameter is dropped."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert sent(parallel_tool_calls=False) == SENT
    assert sent(parallel_tool_calls=False, tools=[]) == {**SENT, "tools": []}
    assert sent(parallel_tool_calls=False, tools=tools) == {
        **SENT,
        "tools": tools,
        "parallel_tool_calls": False,
    }


def test_the_end_user_stands_before_the_requests_user() -> None:
    """X-On-Behalf-Of is the provider's user; without it, the request's own."""
    assert sent(user="u") == {**SENT, "user": "u"}
    assert sent(user="u", end_user="e") == {**SENT, "user": "e"}
    assert sent(end_user="e") == {**SENT, "user": "e"}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=5).map("x-".__add__), json_values, max_size=4))
def test_unknown_parameters_reach_the_provider_unchanged(extra: dict[str, Any]) -> None:
    """Any JSON goes through, lone surrogates and huge integers too, and the parameters stay as they were."""
    params = {**ASKED, **extra}
    before = repr(params)
    body = json.loads(upstream_body(params, provider=PLAIN, model="m", end_user=None))
    assert body == {**SENT, **extra}
    assert repr(params) == before


def test_an_integer_as_long_as_json_readers_allow_reaches_the_provider() -> None:
    """The longest integer that a request can hold is sent on digit by digit."""
    assert sent(x=10**4299)["x"] == 10**4299
