"""Files that are there in one step, whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tailrace.errors import TailraceError


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """A file to write and read, which takes the place of ``path`` when the block ends well. What is there and is no
    regular file (a pipe, ``/dev/stdout``) is written to as it is. Raises TailraceError where nothing can be written.
    """
    path = path.resolve()
    try:
        if path.is_dir():
            raise TailraceError(f"can't write {path}: it is a folder")
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("x+b") as file:
                yield file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TailraceError(f"can't write {path}: {error.strerror or error}") from None
