"""The storage of files: a folder, and S3 on a real server."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigurationError
from schemas.ids import new_file_id
from schemas.settings import Settings
from stores.storage import ABANDONED, Storage, open_storage
from tests.support.ports import free_port
from tests.support.s3 import S3Server

MIB = 1024 * 1024


@pytest.fixture
def in_s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a place in a new bucket."""
    server: S3Server = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.new_bucket()}/some/prefix"


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The test runs twice."""
    where = str(tmp_path / "files") if request.param == "folder" else request.getfixturevalue("in_s3")
    return open_storage(Settings(files=where))


def put(storage: Storage, data: bytes) -> str:
    key = new_file_id()
    with storage.write(key) as out:
        out.write(data)
    return key


def whole(storage: Storage, key: str, offset: int = 0) -> bytes:
    with storage.read(key, offset) as file:
        return file.read()


def numbered(mib: int) -> bytes:
    """Bytes that tell where they are."""
    return b"".join(number.to_bytes(8, "big") for number in range(mib * MIB // 8))


def test_what_is_written_is_read(storage: Storage) -> None:
    key = put(storage, b"one\ntwo\n\nthree")
    assert storage.size(key) == 14
    assert whole(storage, key) == b"one\ntwo\n\nthree"
    with storage.read(key) as file:
        assert [*file] == [b"one\n", b"two\n", b"\n", b"three"]


@pytest.mark.parametrize("piece", [1000, MIB - 1, MIB, 3 * MIB])
def test_a_large_one_in_pieces_of_any_size(storage: Storage, piece: int) -> None:
    """Whatever is handed on in between, no byte is lost, doubled or in another place."""
    data, key = numbered(20), new_file_id()
    with storage.write(key) as out:
        for start in range(0, len(data), piece):
            out.write(data[start : start + piece])
    assert storage.size(key) == len(data)
    assert whole(storage, key) == data
    for offset in (1, 8 * MIB - 3, 8 * MIB, len(data) - 1, len(data)):
        assert whole(storage, key, offset) == data[offset:], offset


def test_an_empty_one(storage: Storage) -> None:
    key = put(storage, b"")
    assert storage.size(key) == 0
    assert whole(storage, key) == b""


def test_it_is_there_in_one_step(storage: Storage) -> None:
    """Not before the block ends, and the old one until then."""
    key = put(storage, b"old")
    with storage.write(key) as out:
        out.write(b"new" * MIB)
        out.flush()
        assert whole(storage, key) == b"old"
    assert whole(storage, key) == b"new" * MIB


@pytest.mark.parametrize("size", [0, 10, 30 * MIB])
def test_nothing_is_there_after_an_error(storage: Storage, size: int) -> None:
    key = new_file_id()
    with pytest.raises(ZeroDivisionError), storage.write(key) as out:
        out.write(b"x" * size)
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError):
        storage.size(key)
    with pytest.raises(FileNotFoundError):
        storage.read(key)


def test_what_is_deleted_is_gone(storage: Storage) -> None:
    """Once or twice; and others stay."""
    key, other = put(storage, b"x"), put(storage, b"y")
    storage.delete(key)
    storage.delete(key)
    storage.delete(new_file_id())
    with pytest.raises(FileNotFoundError):
        storage.read(key)
    assert whole(storage, other) == b"y"


@pytest.mark.parametrize("key", ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0", "ä", "a" * 201])
@pytest.mark.parametrize("act", ["write", "read", "delete", "size"])
def test_a_key_is_no_path(storage: Storage, key: str, act: str) -> None:
    def write(key: str) -> None:
        with storage.write(key):
            pass

    acts: dict[str, Callable[[str], Any]] = {
        "write": write,
        "read": storage.read,
        "delete": storage.delete,
        "size": storage.size,
    }
    with pytest.raises(ValueError, match="is no key"):
        acts[act](key)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "some" / "files"

    @pytest.fixture
    def storage(self, folder: Path) -> Storage:
        return open_storage(Settings(files=str(folder)))

    def test_it_is_in_the_home_folder_where_nothing_is_said(self, tmp_path: Path) -> None:
        key = put(open_storage(Settings(home=tmp_path)), b"x")
        assert (tmp_path / "files" / key).read_bytes() == b"x"

    def test_nobody_else_can_read_it(self, storage: Storage, folder: Path) -> None:
        key = put(storage, b"x")
        assert stat.S_IMODE((folder / key).stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_an_error_leaves_nothing(self, storage: Storage, folder: Path) -> None:
        with pytest.raises(ZeroDivisionError), storage.write(new_file_id()) as out:
            out.write(b"x")
            out.flush()
            assert len([*folder.iterdir()]) == 1
            raise ZeroDivisionError
        assert [*folder.iterdir()] == []

    def test_old_temporaries_are_swept(self, storage: Storage, folder: Path) -> None:
        """Those that nobody has written to for a day, and nothing else."""
        assert storage.sweep() == 0
        kept = put(storage, b"x")
        os.utime(folder / kept, (0, 0))
        with storage.write(new_file_id()) as out:
            out.write(b"x")
            out.flush()
            (temporary,) = [path for path in folder.iterdir() if path.name != kept]
            assert storage.sweep() == 0
            old = time.time() - ABANDONED - 60
            os.utime(temporary, (old, old))
            assert storage.sweep() == 1
            assert not temporary.exists()
            temporary.touch()
        assert whole(storage, kept) == b"x"

    def test_a_place_that_cannot_be_written_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigurationError, match="can't be written: Not a directory"):
            open_storage(Settings(files=str(tmp_path / "file" / "files"))).prepare()
        open_storage(Settings(files=str(tmp_path / "files"))).prepare()
        assert [*(tmp_path / "files").iterdir()] == []


class TestS3:
    def test_objects_are_under_the_prefix(self, in_s3: str, s3: S3Server) -> None:
        key = put(open_storage(Settings(files=in_s3)), b"x")
        bucket = in_s3.split("/")[2]
        assert s3.objects(bucket) == [f"some/prefix/{key}"]
        put(open_storage(Settings(files=f"s3://{bucket}")), b"x")
        assert len(s3.objects(bucket)) == 2

    def test_no_bucket_and_no_server_are_errors_of_the_system(
        self, in_s3: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of one line."""
        with pytest.raises(OSError, match=r"^.+$"):
            put(open_storage(Settings(files="s3://no-such-bucket/x")), b"x")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        away = open_storage(Settings(files=in_s3))
        for act in (away.size, away.read, away.delete, lambda key: put(away, b"x")):
            with pytest.raises(OSError, match=r"^[^\n]+$"):
                act(new_file_id())

    @pytest.mark.parametrize("url", ["s3://", "gs://bucket/x", "https://bucket.example/x", "file:///tmp"])
    def test_what_is_no_place_is_told(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="TAILRACE_FILES"):
            open_storage(Settings(files=url))
