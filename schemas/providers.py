"""``providers.toml``: the model backends, which of them a model name means, and what a backend is sent."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast
from urllib.parse import urlsplit

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from schemas.errors import ConfigurationError, ModelNotFound
from schemas.explain import explain, field_path

#: Parameters that are between the client and us.
_OURS = frozenset({"store", "metadata", "timeout"})

_PROVIDER_NAME = re.compile(r"[A-Za-z0-9_-]+")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Name = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0)]
Dollars = Annotated[float, Field(ge=0)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Timeout(_Table):
    """Seconds. ``total`` bounds one attempt from connecting to its last chunk."""

    connect: Seconds = 5.0
    first_chunk: Seconds = 120.0
    between_chunks: Seconds = 60.0
    total: Seconds = 900.0


class Retry(_Table):
    """When a failed call is made again. ``tries`` counts calls in all: 1 is never again. The rest are seconds.

    The wait is a random part of ``first``, then of its double and so on up to ``longest``, or what the provider asks
    for where that is more. No try begins later than ``total`` after the first one did.
    """

    tries: Annotated[int, Field(ge=1)] = 5
    total: Seconds = 300.0
    first: Seconds = 0.5
    longest: Seconds = 30.0


class Circuit(_Table):
    """When a provider counts as down, for all workers: after ``failures`` calls in a row that it didn't answer (0: it
    never does). Every ``pause`` seconds one call is let through then, until one is answered.
    """

    failures: Annotated[int, Field(ge=0)] = 5
    pause: Seconds = 10.0


class Price(_Table):
    """Per million tokens. ``cached_input`` is ``input`` where it is not given."""

    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isprintable() or " " in url:
        raise PydanticCustomError("base_url", "must be a URL such as http://127.0.0.1:8081/v1")
    if "?" in url or "#" in url:
        raise PydanticCustomError("base_url", "must have no query and no fragment: paths are added to it")
    return url.rstrip("/")


def _variable_name(name: str) -> str:
    if not _VARIABLE_NAME.fullmatch(name):
        raise PydanticCustomError(
            "api_key_env", "must name the environment variable that holds the key, not be the key"
        )
    return name


def _beside(path: str, info: ValidationInfo) -> str:
    """A path in providers.toml counts from the folder of that file."""
    context = cast("dict[str, Path] | None", info.context) or {}
    return str(context.get("folder", Path()) / path)


#: What only one kind has: the field that it can't be without, and the others.
_OF_KIND = {"openai": ("base_url", "api_key_env"), "replay": ("file", "speed")}


class Provider(_Table):
    """One ``[providers.<name>]`` table. Of the kind ``openai`` is any server that speaks ``/chat/completions``;
    ``replay`` plays recorded streams from a file.
    """

    #: The table's own name; not a field of the file.
    name: str = ""
    kind: Literal["openai", "replay"] = "openai"
    #: Without a trailing slash; empty for a kind that has none.
    base_url: Annotated[str, AfterValidator(_http_url)] = ""
    #: The recordings of ``replay``, and how much faster than they were made they are played; 0 is at once.
    file: Annotated[str, Field(min_length=1), AfterValidator(_beside)] = ""
    speed: Annotated[float, Field(ge=0)] = 1.0
    #: The environment variable that holds the key.
    api_key_env: Annotated[str, AfterValidator(_variable_name)] | None = None
    #: Calls at once, over all workers together.
    max_concurrency: Annotated[int, Field(ge=1)] = 64
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    timeout: Timeout = Timeout()
    retry: Retry = Retry()
    circuit: Circuit = Circuit()
    supports_prefill: bool = False
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    models: Annotated[list[Name], Field(min_length=1)] | None = None
    #: By model; ``*`` is any other one.
    prices: dict[str, Price] = {}

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        for kind, (required, *others) in _OF_KIND.items():
            given = self.model_fields_set & {required, *others}
            if kind == self.kind and required not in given:
                raise _misfit(f"providers.{self.name}.{required}", "is required")
            if kind != self.kind and given:
                raise _misfit(f"providers.{self.name}.{min(given)}", f"is for kind = '{kind}' only")
        return self

    def listed(self, model: str) -> bool | None:
        """Whether ``models`` has it; None where the configuration lists no models."""
        return None if self.models is None else model in self.models

    def price(self, model: str) -> Price | None:
        return self.prices.get(model) or self.prices.get("*")


@dataclass(frozen=True, slots=True)
class Target:
    """A model of a provider."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a model name means: ``targets``, tried in order. ``provider`` and ``model`` are the first one."""

    asked: str
    provider: str
    model: str
    targets: tuple[Target, ...]


class Providers(_Table):
    """All of providers.toml. ``default`` may be left out where there is only one provider."""

    default: str
    providers: dict[str, Provider]
    aliases: dict[str, Annotated[list[str], Field(min_length=1)]] = {}

    _targets: dict[str, tuple[Target, ...]] = PrivateAttr(default_factory=dict[str, tuple[Target, ...]])

    @model_validator(mode="before")
    @classmethod
    def _name_tables(cls, data: dict[str, Any]) -> dict[str, Any]:
        tables = data.get("providers", {})
        if not isinstance(tables, dict):
            raise _misfit("providers", "must be a table")
        if not tables:
            raise _misfit("providers", "needs at least one table, [providers.<name>], with a base_url")
        named: dict[str, Any] = {}
        for name, table in cast("dict[str, Any]", tables).items():
            if not _PROVIDER_NAME.fullmatch(name):
                raise _misfit(f"providers.{name}", "may have only letters, digits, '_' and '-' in its name")
            if isinstance(table, dict) and "name" in table:
                raise _misfit(f"providers.{name}.name", "is not a known field; the table's own name counts")
            named[name] = (
                {**cast("dict[str, Any]", table), "name": name} if isinstance(table, dict) else table
            )
        if "default" not in data and len(named) > 1:
            raise _misfit("default", f"is required where there are several providers ({', '.join(named)})")
        return {"default": next(iter(named)), **data, "providers": named}

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if self.default not in self.providers:
            raise _misfit("default", f"must be a configured provider ({self._known()})")
        for alias, targets in self.aliases.items():
            self._targets[alias] = tuple(
                self._target(f"aliases.{alias}[{at}]", target) for at, target in enumerate(targets)
            )
        return self

    def _target(self, path: str, target: str) -> Target:
        provider, _, model = target.partition(":")
        if provider not in self.providers:
            raise _misfit(path, f"must be 'provider:model' with a configured provider ({self._known()})")
        if not model:
            raise _misfit(path, f"must name a model, as in '{provider}:model'")
        return Target(provider, model)

    def _known(self) -> str:
        return ", ".join(self.providers)

    def resolve(self, model: str) -> Resolved:
        """An exact alias; else a provider before the first colon; else the default provider's model.

        Raises ModelNotFound for a provider with no model after the colon.
        """
        targets = self._targets.get(model)
        if targets is None:
            provider, _, rest = model.partition(":")
            if ":" not in model or provider not in self.providers:
                provider, rest = self.default, model
            elif not rest:
                raise ModelNotFound(
                    f"'{model}' names the provider and no model. Send '{provider}:<model>'.", param="model"
                )
            targets = (Target(provider, rest),)
        return Resolved(model, targets[0].provider, targets[0].model, targets)


def _misfit(path: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("misfit", "{message}", {"param": path, "message": message})


def load_providers(text: str, *, source: str) -> Providers:
    """Read the text of a providers.toml; ``source`` is the name of the file, for the error.

    Raises ConfigurationError with one line that names file, field and what to change.
    """
    try:
        return Providers.model_validate(tomllib.loads(text), context={"folder": Path(source).parent})
    except ValidationError as error:
        param, sentence = _explain(error.errors(include_url=False, include_input=False)[0])
    except RecursionError:
        param, sentence = None, "it is nested too deeply."
    except ValueError as error:
        param, sentence = None, f"not valid TOML: {error}."
    raise ConfigurationError(" ".join(f"{source}: {sentence}".split()), param=param)


def _explain(error: ErrorDetails) -> tuple[str, str]:
    if error["type"] != "extra_forbidden":
        path, sentence = explain(error)
        return path, sentence.replace("an object", "a table")
    path, name = field_path(error["loc"]), str(error["loc"][-1])
    close = difflib.get_close_matches(name, _fields_at(error["loc"][:-1]), 1)
    return path, f"'{path}' is not a known field; " + (
        f"did you mean '{close[0]}'?" if close else "remove it."
    )


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """The fields of the table that stands at ``loc``."""
    table: type[BaseModel] = Providers
    match loc:
        case ("providers", _):
            table = Provider
        case ("providers", _, "timeout"):
            table = Timeout
        case ("providers", _, "retry"):
            table = Retry
        case ("providers", _, "circuit"):
            table = Circuit
        case ("providers", _, "prices", _):
            table = Price
        case _:
            pass
    return [name for name in table.model_fields if name != "name"]


def upstream_body(params: dict[str, Any], *, provider: Provider, model: str, end_user: str | None) -> bytes:
    """The JSON body for the provider: streamed, with usage, the token limit under the name that it takes.

    ``params`` is what ``ChatCompletionRequest.params()`` gives; ``end_user`` is X-On-Behalf-Of.
    """
    body = {name: value for name, value in params.items() if name not in _OURS}
    body["model"] = model
    body["stream"] = True
    body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    limits = (body.pop("max_completion_tokens", None), body.pop("max_tokens", None))
    limit = next((limit for limit in limits if limit is not None), None)
    if limit is not None:
        body[provider.max_tokens_field] = limit
    if not body.get("tools"):
        body.pop("parallel_tool_calls", None)
    if end_user is not None:
        body["user"] = end_user
    try:
        return msgspec.json.encode(body)
    except (ValueError, TypeError, OverflowError):  # lone surrogates, of which msgspec makes no escapes
        return json.dumps(body, separators=(",", ":")).encode()
