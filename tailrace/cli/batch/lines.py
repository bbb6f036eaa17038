"""The lines of results: taken as the server sends them, told apart, and written in the order of the input."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import msgspec

from tailrace.atomic import replacing
from tailrace.cli.batch.state import State

#: Where a line is: in the output and in the error file that are there; or among what was just fetched, by how its row
#: ended. ``NEVER`` was not sent, as its batch ended before.
OUTPUT, ERRORS, ANSWERED, FAILED, NEVER = range(5)
#: Of the file that is put aside when lines of it belong to no row any more.
OLD = ".old"


class _Response(msgspec.Struct):
    status_code: int | None = None


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    #: The digest of what was asked, in hex: how the next run knows whether a row is still the same.
    input_hash: str | None = None

    @property
    def answered(self) -> bool:
        return self.response is not None and self.response.status_code == 200


class Written(msgspec.Struct):
    """How many lines are where. ``missing``: rows without an end; ``dropped``: lines of the old output that have no row."""

    answered: int = 0
    failed: int = 0
    invalid: int = 0
    missing: int = 0
    dropped: int = 0


_decode = msgspec.json.Decoder(_Line).decode


def look(state: State, path: Path, file: int) -> int:
    """Remember the lines that are there, and give their number. What is no line of results is passed over."""
    state.forget_known(file)
    found = at = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, ValueError):
                row = _decode(line)
                same = row.input_hash is not None and row.answered == (file == OUTPUT)
                digest = bytes.fromhex(row.input_hash) if row.input_hash and same else None
                state.know(file, row.custom_id, digest, at, len(line))
                found += 1
            at += len(line)
    return found


def take(state: State, fetched: BinaryIO, kept: BinaryIO) -> None:
    """Put what the server sent into ``kept``, each line with what its row says, and remember where."""
    for file in (ANSWERED, FAILED, NEVER):
        state.forget_known(file)
    at = kept.seek(0)
    kept.truncate()
    for line in fetched:
        row = _decode(line)
        digest, carried = state.row(row.custom_id) or (None, None)
        said = with_row(line, digest, carried)
        kept.write(said)
        file = ANSWERED if row.answered else NEVER if row.response is None and _not_sent(line) else FAILED
        state.know(file, row.custom_id, digest, at, len(said))
        at += len(said)


class _Error(msgspec.Struct):
    code: str | None = None


class _Failed(msgspec.Struct):
    error: _Error | None = None


#: Codes of rows that nobody was asked about, as the batch ended first.
_UNSENT = frozenset({"batch_expired", "batch_cancelled", "batch_stopped"})


def _not_sent(line: bytes) -> bool:
    error = msgspec.json.decode(line, type=_Failed).error
    return error is not None and error.code in _UNSENT


def with_row(line: bytes, digest: bytes | None, carried: bytes | None) -> bytes:
    """A line of the server's with the columns that the row carried, and with what tells whether it was edited since."""
    line = line.rstrip()
    if carried is not None:
        line = line[:-1] + b',"input":' + carried + b"}"
    if digest is not None:
        line = line[:-1] + b',"input_hash":"' + digest.hex().encode() + b'"}'
    return line + b"\n"


def write(
    state: State, output: Path, errors: Path, kept: BinaryIO | None, *, others: bool = False, empty_errors: bool = False
) -> Written:
    """Write both files, each in one step. ``others``: lines of the output stay that belong to no row of the input.

    Without a failed row there is no error file, or an empty one (``empty_errors``).
    """
    before = look(state, output, OUTPUT)
    look(state, errors, ERRORS)
    written = Written()
    with _reading(output) as old, _reading(errors) as failed_before:
        sources = {OUTPUT: old, ERRORS: failed_before, ANSWERED: kept, FAILED: kept, NEVER: kept}

        def line(file: int, at: int, size: int) -> bytes:
            source = sources[file]
            assert source is not None
            source.seek(at)
            return source.read(size).rstrip(b"\n") + b"\n"

        with replacing(errors) as failures:
            stayed = 0
            with replacing(output) as results:
                for found in state.lines(ANSWERED, OUTPUT, FAILED, NEVER, ERRORS):
                    if found.file is None:
                        written.missing += 1
                    elif found.file in (ANSWERED, OUTPUT):
                        written.answered += 1
                        stayed += found.file == OUTPUT
                        results.write(line(found.file, found.at, found.size))
                    else:
                        written.failed += 1
                        failures.write(line(found.file, found.at, found.size))
                for at, size in state.others(OUTPUT) if others else ():
                    stayed += 1
                    results.write(line(OUTPUT, at, size))
                written.dropped = before - stayed
                if written.dropped:
                    _put_aside(output)
            for _, text in state.invalid():
                written.invalid += 1
                failures.write(text + b"\n")
    if not written.failed and not written.invalid and not empty_errors:
        errors.unlink(missing_ok=True)
    return written


def _put_aside(output: Path) -> None:
    """Answers were paid for: the file that loses some stays under another name."""
    old = output.with_name(output.name + OLD)
    old.unlink(missing_ok=True)
    os.link(output, old)


@contextmanager
def _reading(path: Path) -> Generator[BinaryIO | None]:
    with path.open("rb") if path.exists() else nullcontext() as file:
        yield file


def split(fetched: BinaryIO, output: Path, errors: Path, *, empty_errors: bool) -> tuple[int, int]:
    """Write answers into one file and failed rows into the other; how many of each."""
    answered = failed = 0
    with replacing(errors) as failures:
        with replacing(output) as results:
            for line in fetched:
                if _decode(line).answered:
                    answered += 1
                    results.write(line)
                else:
                    failed += 1
                    failures.write(line)
    if not failed and not empty_errors:
        errors.unlink(missing_ok=True)
    return answered, failed
