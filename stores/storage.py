"""Where the bytes of files are: in a folder, or in S3 or what speaks its protocol.

All of it blocks; async callers run it in a thread. What fails raises OSError.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
import uuid
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from typing_extensions import Buffer

from schemas.errors import ConfigurationError
from schemas.settings import Settings

if TYPE_CHECKING:
    from obstore import ReadableFile, WritableFile

#: Bytes that readers and writers hold back.
BUFFER = 1024 * 1024
#: How old a temporary is that nobody writes to any more, in seconds.
ABANDONED = 24 * 3600
#: Of an object: the smallest part in bytes, the most parts that S3 takes, and those on their way at once.
PART_BYTES, PARTS, PARTS_AT_ONCE = 8 * 1024 * 1024, 10_000, 4
#: How long S3 is asked again and again before it is an error.
PATIENCE = timedelta(seconds=30)

_KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")
_TEMPORARY = ".writing-"


class Storage(Protocol):
    """Keys are ids of files: letters, digits, dashes and underscores. ``place`` says to people where it is."""

    @property
    def place(self) -> str: ...

    def write(self, key: str) -> AbstractContextManager[BinaryIO]:
        """What is written is there in one step when the block ends, and isn't where it ends with an error."""
        ...

    def read(self, key: str, offset: int = 0) -> BinaryIO:
        """To be closed. Raises FileNotFoundError."""
        ...

    def delete(self, key: str) -> None:
        """Also where there is nothing."""
        ...

    def size(self, key: str) -> int:
        """Raises FileNotFoundError."""
        ...

    def prepare(self) -> None:
        """Raises ConfigurationError where nothing can be written, as far as that can be known at once."""
        ...

    def sweep(self) -> int:
        """Remove what was left of writes that were cut off; how many there were."""
        ...


def open_storage(settings: Settings) -> Storage:
    """Raises ConfigurationError."""
    where = settings.files or str(settings.home_path / "files")
    if where.startswith("s3://"):
        return ObjectStorage(where, largest=settings.max_file_bytes)
    if "://" in where:
        raise ConfigurationError(
            f"TAILRACE_FILES begins with {where.partition('://')[0]}://, which is not supported: name a folder, or "
            "s3://BUCKET/PREFIX."
        )
    return Folder(Path(where).expanduser().absolute())


class Folder:
    """Files of a folder, which all processes share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.place = str(path)

    @contextmanager
    def write(self, key: str) -> Generator[BinaryIO]:
        path = self._of(key)
        temporary = self._path / f"{_TEMPORARY}{key}-{uuid.uuid4().hex}"
        self._path.mkdir(0o700, parents=True, exist_ok=True)
        try:
            with open(temporary, "xb", BUFFER, opener=_private) as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def read(self, key: str, offset: int = 0) -> BinaryIO:
        file = self._of(key).open("rb", BUFFER)
        file.seek(offset)
        return file

    def delete(self, key: str) -> None:
        self._of(key).unlink(missing_ok=True)

    def size(self, key: str) -> int:
        return self._of(key).stat().st_size

    def prepare(self) -> None:
        try:
            self._path.mkdir(0o700, parents=True, exist_ok=True)
            probe = self._path / f"{_TEMPORARY}probe-{uuid.uuid4().hex}"
            probe.touch(0o600)
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"The folder of files {self._path} can't be written: {error.strerror}. Set TAILRACE_FILES to one "
                "that gateways and workers share."
            ) from None

    def sweep(self) -> int:
        removed = 0
        for temporary in self._path.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - temporary.stat().st_mtime > ABANDONED:
                    temporary.unlink()
                    removed += 1
        return removed

    def _of(self, key: str) -> Path:
        return self._path / _checked(key)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class ObjectStorage:
    """Objects under ``s3://bucket/prefix``; credentials, region and endpoint are those of ``AWS_*``.

    An object is uploaded in parts, and is there once all of them are. Of uploads that were cut off S3 keeps the parts
    until a lifecycle rule of the bucket removes them.
    """

    def __init__(self, url: str, *, largest: int) -> None:
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError:
            raise ConfigurationError(
                "Files in S3 need one more package: pip install 'tailrace[s3]'."
            ) from None
        self.place = url
        self._obstore, self._failure = obstore, BaseError
        self._part = max(PART_BYTES, -(-largest // PARTS))
        try:
            self._store = from_url(
                url, client_options={"allow_http": True}, retry_config={"retry_timeout": PATIENCE}
            )
        except (BaseError, ValueError) as error:
            raise ConfigurationError(f"TAILRACE_FILES={url} can't be used: {_line(error)}") from None

    @contextmanager
    def write(self, key: str) -> Generator[BinaryIO]:
        with self._failing():
            upload = self._obstore.open_writer(
                self._store, _checked(key), buffer_size=self._part, max_concurrency=PARTS_AT_ONCE
            )
        out = io.BufferedWriter(_Upload(upload, self._failing), BUFFER)
        yield cast("BinaryIO", out)
        out.flush()
        with self._failing():
            upload.close()

    def read(self, key: str, offset: int = 0) -> BinaryIO:
        with self._failing():
            file = self._obstore.open_reader(self._store, _checked(key), buffer_size=PART_BYTES)
            file.seek(offset)
        return cast("BinaryIO", io.BufferedReader(_Download(file, self._failing), BUFFER))

    def delete(self, key: str) -> None:
        with self._failing(), contextlib.suppress(FileNotFoundError):
            self._obstore.delete(self._store, _checked(key))

    def size(self, key: str) -> int:
        with self._failing():
            return self._obstore.head(self._store, _checked(key))["size"]

    def prepare(self) -> None:
        """Nothing: what S3 says of a bucket now may be otherwise when it is needed."""

    def sweep(self) -> int:
        return 0

    @contextmanager
    def _failing(self) -> Generator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(_line(error)) from error
        except self._failure as error:
            raise OSError(_line(error)) from error


class _Upload(io.RawIOBase):
    """Closing it is not the end of the upload, so that one that is given up never becomes an object."""

    def __init__(self, upload: WritableFile, failing: _Failing) -> None:
        self._upload, self._failing = upload, failing

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        with self._failing():
            # A copy: it keeps what it is given until that is sent, and the buffer in front of it is used again.
            return self._upload.write(bytes(data))


class _Download(io.RawIOBase):
    def __init__(self, file: ReadableFile, failing: _Failing) -> None:
        self._file, self._failing = file, failing

    def readable(self) -> bool:
        return True

    def readinto(self, into: Buffer, /) -> int:
        view = memoryview(into)
        with self._failing():
            data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)


class _Failing(Protocol):
    def __call__(self) -> AbstractContextManager[None]: ...


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key")
    return key


def _line(error: Exception) -> str:
    """The first line of an error; the others are a dump of its parts."""
    return str(error).partition("\n")[0]
