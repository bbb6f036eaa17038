"""Which providers.toml a stack uses, and the one that is written for the local model."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from tailrace.embedded import local_model
from tailrace.embedded.options import StackError

FILE = "providers.toml"
#: The first line of a file that is ours to overwrite.
MARK = "# Written by `tailrace up --local-model` at each start. Remove this line to keep your changes.\n"


def choose(home: Path, named: str | None, local_port: int | None) -> Path:
    """The file to use: the named one (``TAILRACE_PROVIDERS``), else the local model's, else one here or at home.

    A file that describes a local model is no use without that model, and passed over. Raises StackError, also
    for a file that can't be used.
    """
    if named:
        return _checked(Path(named).expanduser().resolve(), "TAILRACE_PROVIDERS names ")
    own = home / FILE
    if local_port is not None:
        if not own.exists() or _generated(own):
            own.write_text(_local(local_port), "utf-8")
        return _checked(own)
    for path in (Path.cwd() / FILE, own):
        if path.exists() and not _generated(path):
            return _checked(path)
    raise StackError(
        f"no model is configured: pass --local-model for a small one on this CPU, or write {FILE} (here, in {home}, "
        "or where TAILRACE_PROVIDERS says)"
    )


def local_port(home: Path) -> int | None:
    """The port that the local model had the last time."""
    own = home / FILE
    if not own.exists() or not _generated(own):
        return None
    urls = [line.split('"')[1] for line in own.read_text("utf-8").splitlines() if line.startswith("base_url")]
    return urlsplit(urls[0]).port if urls else None


def example_model(path: Path) -> str | None:
    """A model name that requests may use: an alias, else a listed model; None where the file names none."""
    from schemas.providers import load_providers

    providers = load_providers(path.read_text("utf-8"), source=str(path))
    for model in providers.providers[providers.default].models or ():
        return model
    return next(iter(providers.aliases), None)


def _generated(path: Path) -> bool:
    try:
        return path.read_text("utf-8").startswith(MARK)
    except (OSError, ValueError):
        return False


def _checked(path: Path, prefix: str = "") -> Path:
    from schemas.errors import ConfigurationError
    from schemas.providers import load_providers

    try:
        load_providers(path.read_text("utf-8"), source=str(path))
    except OSError as error:
        raise StackError(f"{prefix}{path}: it can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StackError(f"{path}: not valid TOML: it is not UTF-8 text") from None
    except ConfigurationError as error:
        raise StackError(error.message) from None
    return path


def _local(port: int) -> str:
    return (
        f"{MARK}\n"
        'default = "local"\n\n'
        "[providers.local]\n"
        'kind = "openai"\n'
        f'base_url = "http://127.0.0.1:{port}/v1"\n'
        f"max_concurrency = {local_model.SLOTS}\n"
        f'models = ["{local_model.NAME}"]\n'
        # Four answers at a time on a small machine: those behind them wait for their first token.
        "timeout = { first_chunk = 600, total = 1800 }\n"
    )
