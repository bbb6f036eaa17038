"""Rows out of JSONL, CSV and Parquet, one at a time: no file is ever whole in memory."""

from __future__ import annotations

import codecs
import csv
import dataclasses
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from tailrace.arrow import load_arrow
from tailrace.errors import TailraceError

#: Rows of a Parquet file that are decoded at once.
PARQUET_ROWS = 500
#: Bytes of a column that are read at once.
PARQUET_BYTES = 1024 * 1024
#: The longest cell of a CSV file, in characters: the module's own limit is 128 KiB.
LONGEST_CELL = 2**31 - 1


class InvalidRow(Exception):
    """A row that can't be sent: ``param`` names the field, where there is one."""

    def __init__(
        self, line: int, message: str, param: str | None = None, custom_id: str | None = None
    ) -> None:
        super().__init__(f"line {line}: {f'{param}: ' if param else ''}{message}")
        self.line = line
        self.message = message
        self.param = param
        self.custom_id = custom_id


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One row: its place in the file (a line, from 1; in Parquet a row), its columns, and the line itself where
    the file has JSON lines."""

    line: int
    columns: dict[str, Any]
    raw: bytes | None = None


def read(path: Path) -> Generator[Source | InvalidRow]:
    """The rows of a file; by its name CSV (``.csv``, ``.tsv``), Parquet (``.parquet``, ``.pq``) or JSON lines.

    Empty lines are passed over. Raises TailraceError where the file as such can't be read.
    """
    try:
        match path.suffix.lower():
            case ".csv":
                yield from _csv(path, ",")
            case ".tsv":
                yield from _csv(path, "\t")
            case ".parquet" | ".pq":
                yield from _parquet(path)
            case _:
                yield from _jsonl(path)
    except OSError as error:
        raise TailraceError(f"{path} can't be read: {error.strerror or error}") from None


def _jsonl(path: Path) -> Iterator[Source | InvalidRow]:
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
            if not text:
                continue
            try:
                row: Any = decode(text)
            except UnicodeDecodeError:
                yield InvalidRow(number, "is not UTF-8 text")
            except (msgspec.MsgspecError, RecursionError) as error:
                yield InvalidRow(number, f"is not valid JSON: {error}")
            else:
                if isinstance(row, dict):
                    yield Source(number, cast("dict[str, Any]", row), text)
                else:
                    yield InvalidRow(number, "is not a JSON object")


def _csv(path: Path, delimiter: str) -> Iterator[Source | InvalidRow]:
    csv.field_size_limit(LONGEST_CELL)
    # What isn't UTF-8 comes through as surrogates, so that one bad row doesn't end the reading.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names = _header(path, reader)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield InvalidRow(number, f"is not valid CSV: {error}")
                continue
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(names):
                yield InvalidRow(number, f"has {len(cells)} cells where the header has {len(names)}")
            elif not _is_text(cells):
                yield InvalidRow(number, "is not UTF-8 text")
            else:
                yield Source(number, dict(zip(names, cells, strict=True)))


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    nothing: list[str] = []
    try:
        names = [name.strip() for name in next(reader, nothing)]
    except csv.Error as error:
        raise TailraceError(f"{path} is not valid CSV: {error}") from None
    if not _is_text(names):
        raise TailraceError(f"{path} is not UTF-8 text")
    twice = next(iter({name for name in names if names.count(name) > 1}), None)
    if twice is not None:
        raise TailraceError(f"{path}: the header has the column {twice!r} more than once")
    return names


def _is_text(cells: Iterable[str]) -> bool:
    try:
        for cell in cells:
            cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(path: Path) -> Iterator[Source]:
    arrow, parquet = load_arrow("reading", "parquet")
    number = 0
    try:
        with parquet.ParquetFile(path, buffer_size=PARQUET_BYTES) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield Source(number, row)
    except arrow.ArrowException as error:
        raise TailraceError(f"{path} can't be read as Parquet: {error}") from None
