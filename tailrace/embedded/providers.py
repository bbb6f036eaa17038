"""Which providers.toml a stack uses, and those that are written for the local model."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from tailrace.embedded import local_model, toml
from tailrace.embedded.options import StackError

if TYPE_CHECKING:
    from schemas.providers import Providers

FILE = "providers.toml"
#: In the home folder too: the file that ``TAILRACE_PROVIDERS`` names, with the local model beside its providers.
MERGED = "providers.merged.toml"
#: The provider of the local model.
LOCAL = "local"
#: The first line of a file that is ours to overwrite.
MARK = "# Written by `tailrace up --local-model` at each start. Remove this line to keep your changes.\n"
MERGED_MARK = "# Written at each start, of the file that TAILRACE_PROVIDERS names: change that one.\n"
_NAMED = "TAILRACE_PROVIDERS names "


def choose(home: Path, named: str | None, local_port: int | None) -> Path:
    """The file to use: the named one (``TAILRACE_PROVIDERS``), else the local model's, else one here or at home.

    With a local model (``local_port``) a named file is merged with it into one at home. A file that describes a local
    model is no use without that model, and passed over. Raises StackError, also for a file that can't be used.
    """
    path, written = _plan(home, named, local_port)
    if written is not None:
        path.write_text(written, "utf-8")
    _load(_read(path), path)
    return path


def foresee(home: Path, named: str | None, *, local_model: bool) -> Providers:
    """What the file has that ``choose`` would give, while there is no stack yet. Nothing is written.

    Raises StackError.
    """
    path, written = _plan(home, named, 1 if local_model else None)
    return _load(_read(path) if written is None else written, path)


def local_port(home: Path) -> int | None:
    """The port that the local model had the last time."""
    for path in (home / FILE, home / MERGED):
        if _generated(path):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                url: str = tomllib.loads(path.read_text("utf-8"))["providers"][LOCAL]["base_url"]
                return urlsplit(url).port
    return None


def example_model(path: Path) -> str | None:
    """A model name that requests may use: a listed model, of the default provider if it has some, or an alias; None
    where the file names none."""
    from schemas.providers import load_providers

    found = load_providers(path.read_text("utf-8"), source=str(path))
    for model in found.providers[found.default].models or ():
        return model
    listed = (f"{name}:{model}" for name, each in found.providers.items() for model in each.models or ())
    return next(iter(found.aliases), None) or next(listed, None)


def _plan(home: Path, named: str | None, local_port: int | None) -> tuple[Path, str | None]:
    """The file, and what is to be written there first; None where it is there already. Raises StackError."""
    own = home / FILE
    if named:
        path = Path(named).expanduser().resolve()
        if local_port is None:
            _read(path, _NAMED)
            return path, None
        if path != own.resolve():
            return home / MERGED, f"{MERGED_MARK}\n{toml.text(_merged(path, local_port))}"
    if local_port is not None:
        alone = {"default": LOCAL, "providers": {LOCAL: _table(local_port)}}
        return own, f"{MARK}\n{toml.text(alone)}" if not own.exists() or _generated(own) else None
    for path in (Path.cwd() / FILE, own):
        if path.exists() and not _generated(path):
            return path, None
    raise StackError(
        f"no model is configured: pass --local-model for a small one on this CPU, or write {FILE} (here, in {home}, "
        "or where TAILRACE_PROVIDERS says)"
    )


def _generated(path: Path) -> bool:
    try:
        return path.read_text("utf-8").startswith((MARK, MERGED_MARK))
    except (OSError, ValueError):
        return False


def _read(path: Path, prefix: str = "") -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise StackError(f"{prefix}{path}: it can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StackError(f"{path}: not valid TOML: it is not UTF-8 text") from None


def _load(text: str, path: Path) -> Providers:
    from schemas.errors import ConfigurationError
    from schemas.providers import load_providers

    try:
        return load_providers(text, source=str(path))
    except ConfigurationError as error:
        raise StackError(error.message) from None


def _merged(path: Path, port: int) -> dict[str, Any]:
    """The file at ``path`` with the local model as one more provider. Paths in it count from its folder still.

    Raises StackError, also where its aliases or default don't fit what is there then.
    """
    text = _read(path, _NAMED)
    document: dict[str, Any] = {}
    tables: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        document = tomllib.loads(text)
        tables = document.get("providers", {})
    if not isinstance(tables, dict):
        _load(text, path)  # says what is wrong with it
        raise StackError(f"{path}: it can't be used")
    given = cast("dict[str, Any]", tables)
    if LOCAL in given:
        raise StackError(
            f"{_NAMED}{path}, which has a provider {LOCAL!r} of its own: --local-model takes that name. "
            "Give it another one there, or leave --local-model out"
        )
    if len(given) < 2:
        document.setdefault("default", next(iter(given), LOCAL))
    document["providers"] = {**given, LOCAL: _table(port)}
    for name, provider in _load(toml.text(document), path).providers.items():
        if provider.file:
            document["providers"][name]["file"] = provider.file
    return document


def _table(port: int) -> dict[str, Any]:
    return {
        "kind": "openai",
        "base_url": f"http://127.0.0.1:{port}/v1",
        "max_concurrency": local_model.SLOTS,
        "models": [local_model.NAME],
        # Four answers at a time on a small machine: those behind them wait for their first token.
        "timeout": {"first_chunk": 600, "total": 1800},
        "prices": {"*": {"input": 0, "output": 0}},
    }
