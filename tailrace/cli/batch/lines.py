"""The lines of results: taken as the server sends them, told apart, and written in the order of the input."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import msgspec

from tailrace.atomic import replacing
from tailrace.batches import UNSENT
from tailrace.cli.batch.state import State
from tailrace.errors import TailraceError

#: Where a line is: in the output and in the error file that are there; or among what was just fetched, by how its row
#: ended. ``NEVER`` was not sent, as its batch ended before.
OUTPUT, ERRORS, ANSWERED, FAILED, NEVER = range(5)
#: In place of a digest where only the custom_id counts.
ANY = b""
#: Of the file that is put aside when lines of it belong to no row any more.
OLD = ".old"


class _Response(msgspec.Struct):
    status_code: int | None = None


class _Error(msgspec.Struct):
    code: str | None = None


class _Line(msgspec.Struct):
    custom_id: str | None
    response: _Response | None
    error: _Error | None = None
    #: The server's; where it is the same the row is.
    fingerprint: str | None = None
    #: The digest of what was asked, in hex: how the next run knows whether a row is still the same.
    input_hash: str | None = None

    @property
    def answered(self) -> bool:
        return self.response is not None and self.response.status_code == 200

    @property
    def file(self) -> int:
        """Of what is fetched."""
        if self.answered:
            return ANSWERED
        never = self.response is None and self.error is not None and self.error.code in UNSENT
        return NEVER if never else FAILED


class _Extras(msgspec.Struct):
    """What is ours in a line that was written."""

    fingerprint: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    input_hash: str | None = None


class Written(msgspec.Struct):
    """How many lines are where. ``missing``: rows without an end; ``dropped``: lines of the output without a row."""

    answered: int = 0
    failed: int = 0
    invalid: int = 0
    missing: int = 0
    dropped: int = 0


_decode = msgspec.json.Decoder(_Line).decode


def look(state: State, path: Path, file: int, *, by_id: bool = False) -> int:
    """Remember the lines that are there, and give their number. What is no line of results is passed over.

    ``by_id``: a line is its row's whatever was asked; otherwise only while it asks the same.
    """
    state.forget_known(file)
    found = 0
    if path.exists() and not path.is_file():
        raise TailraceError(f"{path} is not a regular file")
    for line, at, size in _results(path):
        found += 1
        if line.custom_id is None:  # a row that could not be sent
            continue
        ended_so = line.answered == (file == OUTPUT)
        digest = (ANY if by_id else _digest(line.input_hash)) if ended_so else None
        state.know(file, line.custom_id, digest, at, size)
    if not found and path.exists() and path.stat().st_size:
        raise TailraceError(f"{path} is there, with no line of results in it: choose another file")
    return found


def _results(path: Path) -> Iterator[tuple[_Line, int, int]]:
    """Each line of results in a file, where it is, and its length."""
    at = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                yield _decode(line), at, len(line)
            at += len(line)


def _digest(text: str | None) -> bytes | None:
    try:
        return bytes.fromhex(text) if text else None
    except ValueError:
        return None


def take(state: State, fetched: BinaryIO, kept: BinaryIO) -> None:
    """Put what the server sent into ``kept``, each line with what its row says, and remember where."""
    for file in (ANSWERED, FAILED, NEVER):
        state.forget_known(file)
    at = kept.seek(0)
    kept.truncate()
    for line in fetched:
        row = _decode(line)
        assert row.custom_id is not None
        digest, carried = state.row(row.custom_id) or (None, None)
        said = with_row(line, digest, carried)
        kept.write(said)
        state.know(row.file, row.custom_id, digest, at, len(said))
        at += len(said)


def with_row(line: bytes, digest: bytes | None, carried: bytes | memoryview | None) -> bytes:
    """A line of the server's with the columns that the row carried, and with what tells whether it was edited since."""
    line = line.rstrip()
    if carried is not None:
        line = line[:-1] + b',"input":' + bytes(carried) + b"}"
    if digest is not None:
        line = line[:-1] + b',"input_hash":"' + digest.hex().encode() + b'"}'
    return line + b"\n"


def write(
    state: State,
    output: Path,
    errors: Path,
    kept: BinaryIO | None,
    *,
    others: bool = False,
    empty_errors: bool = False,
    by_id: bool = False,
) -> Written:
    """Write both files, each in one step. ``others``: lines of the output stay that belong to no row of the input.

    Without a failed row there is no error file, or an empty one (``empty_errors``).
    """
    before = look(state, output, OUTPUT, by_id=by_id)
    look(state, errors, ERRORS, by_id=by_id)
    for file in () if kept else (ANSWERED, FAILED, NEVER):
        state.forget_known(file)
    written = Written()
    with _reading(output) as old, _reading(errors) as failed_before:
        sources = {OUTPUT: old, ERRORS: failed_before, ANSWERED: kept, FAILED: kept, NEVER: kept}

        def line(file: int, at: int, size: int) -> bytes:
            source = sources[file]
            assert source is not None
            source.seek(at)
            return source.read(size).rstrip() + b"\n"

        with replacing(errors) as failures:
            stayed = 0
            with replacing(output) as results:
                for found in state.lines(ANSWERED, OUTPUT, FAILED, NEVER, ERRORS):
                    if found.file is None:
                        written.missing += 1
                    elif found.file in (ANSWERED, OUTPUT):
                        written.answered += 1
                        stayed += found.file == OUTPUT
                        text = line(found.file, found.at, found.size)
                        is_old = found.file == OUTPUT and not by_id
                        results.write(_carrying(text, found.carried) if is_old else text)
                    else:
                        written.failed += 1
                        failures.write(line(found.file, found.at, found.size))
                for at, size in state.others(OUTPUT) if others else ():
                    stayed += 1
                    results.write(line(OUTPUT, at, size))
                written.dropped = before - stayed
                if written.dropped and not by_id:
                    _put_aside(output)
            for text in _unsent(errors) if by_id else state.invalid():
                written.invalid += 1
                failures.write(text + b"\n")
    if not written.failed and not written.invalid and not empty_errors:
        errors.unlink(missing_ok=True)
    return written


def _carrying(line: bytes, carried: bytes | None) -> bytes:
    """A line of the old output with the columns that its row carries now."""
    there = msgspec.json.decode(line, type=_Extras)
    had = bytes(there.input) or None
    if had == carried or there.input_hash is None:
        return line
    before = line.removesuffix(with_row(b"}", _digest(there.input_hash), had))
    return with_row(before + b"}", _digest(there.input_hash), carried) if before != line else line


def _put_aside(output: Path) -> None:
    """Answers were paid for: the file that loses some stays under another name."""
    old = output.with_name(output.name + OLD)
    old.unlink(missing_ok=True)
    os.link(output, old)


def _unsent(errors: Path) -> Iterator[bytes]:
    """Lines of the error file about rows that were never sent, as they have no custom_id."""
    with _reading(errors) as file:
        for there, at, size in _results(errors):
            if file is not None and there.custom_id is None:
                file.seek(at)
                yield file.read(size).rstrip()


@contextmanager
def _reading(path: Path) -> Generator[BinaryIO | None]:
    with path.open("rb") if path.exists() else nullcontext() as file:
        yield file


def merge(
    state: State, fetched: BinaryIO, kept: BinaryIO, output: Path, errors: Path, *, empty_errors: bool
) -> Written:
    """Write what the server sent into files that may have lines already, with nothing known of the input: each line
    takes the place of the one with its custom_id, and has of it what is ours, if the row is the same. An answer stays
    where there is none in what was sent."""
    for path, file in ((output, OUTPUT), (errors, ERRORS)):
        look(state, path, file, by_id=True)
        for there, _, _ in _results(path):
            if there.custom_id is not None:
                state.add_id(there.custom_id, ANY)
    with _reading(output) as old, _reading(errors) as failed:
        for line in fetched:
            row = _decode(line)
            assert row.custom_id is not None
            said = line
            for file, source in ((OUTPUT, old), (ERRORS, failed)):
                place = state.place(file, row.custom_id)
                if source is not None and place is not None:
                    source.seek(place[0])
                    there = msgspec.json.decode(source.read(place[1]), type=_Extras)
                    if there.fingerprint == row.fingerprint:
                        said = with_row(line, _digest(there.input_hash), bytes(there.input) or None)
            state.add_id(row.custom_id, ANY)
            state.know(row.file, row.custom_id, ANY, kept.tell(), len(said))
            kept.write(said)
    return write(state, output, errors, kept, empty_errors=empty_errors, by_id=True)
