"""``connection.json``: how the programs of one machine find the stack that ``tailrace up`` runs there."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any, cast

from tailrace.errors import NotConfigured

FILE = "connection.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Connection:
    """``url`` and ``api_key`` are for clients, the rest for tools that work on the server's parts.

    The URLs carry passwords, and so the file has mode 600.
    """

    url: str
    api_key: str
    redis_url: str = ""
    broker_url: str = ""
    database_url: str = ""
    flower_url: str = ""
    #: Path of the providers.toml in use.
    providers: str = ""
    #: Where files are: a folder, or s3://.
    files: str = ""


def home_path(home: Path | str | None = None) -> Path:
    """The home folder: the argument, else ``TAILRACE_HOME``, else ``~/.tailrace``."""
    return Path(home or os.environ.get("TAILRACE_HOME") or "~/.tailrace").expanduser().resolve()


def read(home: Path) -> Connection | None:
    """What the running stack, or else the last one, wrote; None without a file. Raises NotConfigured."""
    path = home / FILE
    try:
        parsed: Any = json.loads(path.read_text("utf-8"))
        fields = {field.name for field in dataclasses.fields(Connection)}
        return Connection(
            **{str(k): str(v) for k, v in cast("dict[Any, Any]", parsed).items() if k in fields}
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NotConfigured(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise NotConfigured(
            f"{path} is not a connection file: remove it, or start `tailrace up` again"
        ) from error


def write(home: Path, connection: Connection) -> None:
    """Put the file there in one step, so that nobody reads half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=home, prefix=FILE)  # mode 600 from the first byte
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(connection), file, indent=2)
            file.write("\n")
        Path(temporary).replace(home / FILE)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
