"""Checking the lines of a batch's file: here, or for a large file in a process of its own, so that the streams of the
worker don't share their interpreter with it, and both cores are used.

``python -m producers.checking`` is that process. It reads messages from standard input and writes them to standard
output, each as its length and MessagePack; it ends with its input.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, BinaryIO, Self

import msgspec

from producers.batchlines import InputRow, Line, LineError, read_row
from schemas.batches import SLICE_ROWS, Row, SliceRange
from schemas.codec import dumps
from schemas.errors import ModelNotFound
from schemas.fingerprint import fingerprint
from schemas.ids import new_completion_id
from schemas.providers import Resolved, Target

#: Models that are remembered with what they mean.
MODELS = 1000
#: Chunks that the process has at once.
AHEAD = 4

#: What a model name means. Raises ModelNotFound.
Resolve = Callable[[str], Resolved]


class Asked(msgspec.Struct, frozen=True):
    """A row as it would be asked."""

    row: InputRow
    params: dict[str, Any]
    resolved: Resolved
    fingerprint: str


class Asking:
    """What a tenant's rows ask for."""

    def __init__(self, tenant: str, resolve: Resolve) -> None:
        self._tenant = tenant
        self._resolve = resolve
        self._models: dict[str, Resolved | str] = {}

    def ask(self, row: InputRow) -> Asked | LineError:
        model = row.request.model
        resolved = self._models.get(model)
        if resolved is None:
            if len(self._models) >= MODELS:
                self._models.clear()
            try:
                resolved = self._resolve(model)
            except ModelNotFound as error:
                resolved = error.message
            self._models[model] = resolved
        if isinstance(resolved, str):
            return LineError(ModelNotFound.code, resolved, "body.model", row.line)
        params = row.request.params()
        digest = fingerprint(
            tenant=self._tenant,
            provider=resolved.provider,
            model=resolved.model,
            params=params,
            sample=row.headers.sample,
        )
        return Asked(row, params, resolved, digest)


class Checked(msgspec.Struct, frozen=True, tag=True):
    """What a chunk of lines came to."""

    rows: list[Row]
    errors: list[LineError]


class Cut(msgspec.Struct, frozen=True, tag=True):
    """What all rows came to. ``model``: where they all name the same one."""

    total: int
    model: str | None
    slices: list[SliceRange]


class Task(msgspec.Struct, frozen=True, tag=True):
    """Whose lines these are. ``most``: bytes of a line."""

    tenant: str
    end_user: str | None
    most: int


class Checker:
    """Of one file, whose chunks come in order."""

    def __init__(self, task: Task, resolve: Resolve) -> None:
        self._task = task
        self._asking = Asking(task.tenant, resolve)
        self._total = 0
        self._providers: list[str] = []
        self._here: set[str] = set()
        self._models: set[str] = set()

    def check(self, lines: Iterable[Line]) -> Checked:
        found = Checked([], [])
        for line in lines:
            row = read_row(line, self._task.most)
            asked = self._asking.ask(row) if isinstance(row, InputRow) else row
            if isinstance(asked, Asked):
                found.rows.append(self._number(asked))
            elif isinstance(asked, LineError):
                found.errors.append(asked)
            else:
                found.errors.extend(asked)
        return found

    def cut(self) -> Cut:
        self._close()
        slices = [
            SliceRange(n * SLICE_ROWS, min((n + 1) * SLICE_ROWS, self._total), provider)
            for n, provider in enumerate(self._providers)
        ]
        return Cut(self._total, next(iter(self._models)) if len(self._models) == 1 else None, slices)

    def _number(self, asked: Asked) -> Row:
        row, headers = asked.row, asked.row.headers
        if self._total % SLICE_ROWS == 0:
            self._close()
        self._here.add(asked.resolved.provider)
        if len(self._models) < 2:
            self._models.add(row.request.model)
        self._total += 1
        return Row(
            self._total - 1,
            row.line,
            row.custom_id,
            new_completion_id(),
            asked.fingerprint,
            headers.end_user or self._task.end_user,
            headers.sample,
            headers.cache_control,
            dumps(asked.params),
        )

    def _close(self) -> None:
        if self._here:
            self._providers.append(",".join(sorted(self._here)))
            self._here.clear()


# The process's messages: to it Task first, then Lines and at last End, and a Meaning for each of its Needs.


class Lines(msgspec.Struct, frozen=True, tag=True):
    lines: list[Line]


class End(msgspec.Struct, frozen=True, tag=True):
    """No more lines."""


class Need(msgspec.Struct, frozen=True, tag=True):
    """What does this model mean?"""

    model: str


class Meaning(msgspec.Struct, frozen=True, tag=True):
    """``targets`` by provider and model; or why there are none."""

    targets: list[tuple[str, str]]
    unknown: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode_in = msgspec.msgpack.Decoder(Task | Lines | End | Meaning).decode
_decode_out = msgspec.msgpack.Decoder(Checked | Cut | Need).decode
_LENGTH = struct.Struct("<Q")


def _send(file: BinaryIO, message: msgspec.Struct) -> None:
    data = _encode(message)
    file.write(_LENGTH.pack(len(data)) + data)
    file.flush()


def _receive(file: BinaryIO) -> bytes | None:
    """None at the end."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = file.read(length)
    return data if len(data) == length else None


def checked(chunks: Iterable[list[Line]], task: Task, resolve: Resolve) -> Generator[Checked | Cut]:
    """Each chunk in its turn, and then the whole."""
    checker = Checker(task, resolve)
    for lines in chunks:
        yield checker.check(lines)
    yield checker.cut()


def checked_apart(chunks: Iterable[list[Line]], task: Task, resolve: Resolve) -> Generator[Checked | Cut]:
    """As ``checked``, by a process of its own. Raises OSError where that ends before it is done, and what ``chunks``
    raises."""
    with _Process() as process:
        process.send(task)
        process.feed(chunks)
        while True:
            match process.receive():
                case Need(model):
                    process.send(_meaning(resolve, model))
                case Checked() as found:
                    yield found
                    process.took()
                case Cut() as cut:
                    process.fed()
                    yield cut
                    return


def _meaning(resolve: Resolve, model: str) -> Meaning:
    try:
        return Meaning([(target.provider, target.model) for target in resolve(model).targets])
    except ModelNotFound as error:
        return Meaning([], error.message)


class _Process:
    """Our end. A thread feeds it, so that neither waits for the other with a full pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "producers.checking"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: BinaryIO = self._process.stdin  # pyright: ignore[reportAttributeAccessIssue]
        self._out: BinaryIO = self._process.stdout  # pyright: ignore[reportAttributeAccessIssue]
        self._writing = threading.Lock()
        self._ahead = threading.Semaphore(AHEAD)
        self._over = False
        self._error: Exception | None = None
        self._feeder: threading.Thread | None = None

    def feed(self, chunks: Iterable[list[Line]]) -> None:
        self._feeder = threading.Thread(target=self._feed, args=(chunks,), name="feed", daemon=True)
        self._feeder.start()

    def _feed(self, chunks: Iterable[list[Line]]) -> None:
        try:
            for lines in chunks:
                self._ahead.acquire()
                if self._over:
                    return
                self.send(Lines(lines))
        except Exception as error:  # noqa: BLE001 (for whoever reads)
            self._error = error
        with contextlib.suppress(OSError):
            self.send(End())

    def send(self, message: msgspec.Struct) -> None:
        with self._writing:
            _send(self._in, message)

    def receive(self) -> Checked | Cut | Need:
        data = _receive(self._out)
        if data is None:
            raise OSError("the process that checks the lines of a batch has ended")
        return _decode_out(data)

    def took(self) -> None:
        self._ahead.release()

    def fed(self) -> None:
        """Raises what the feeding ended with."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._process.kill()
        self._ahead.release()
        if self._feeder is not None:
            self._feeder.join()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which ends this one
    given, said = sys.stdin.buffer, sys.stdout.buffer
    early: deque[Lines | End] = deque()

    def message() -> Task | Lines | End | Meaning:
        data = _receive(given)
        if data is None:
            sys.exit()
        return _decode_in(data)

    def resolve(model: str) -> Resolved:
        _send(said, Need(model))
        while True:
            match message():
                case Meaning(targets, unknown):
                    if unknown:
                        raise ModelNotFound(unknown)
                    found = tuple(Target(*target) for target in targets)
                    return Resolved(model, found[0].provider, found[0].model, found)
                case Lines() | End() as later:
                    early.append(later)
                case Task():
                    raise RuntimeError("a second task")

    task = message()
    assert isinstance(task, Task)
    checker = Checker(task, resolve)
    while True:
        match early.popleft() if early else message():
            case Lines(lines):
                _send(said, checker.check(lines))
            case End():
                _send(said, checker.cut())
                return
            case Task() | Meaning():
                raise RuntimeError("nobody asked for it")


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the worker is gone
        os._exit(1)
