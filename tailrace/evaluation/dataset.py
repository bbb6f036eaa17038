"""Items out of a dataset: rows of JSONL, CSV or Parquet, filtered, shuffled and limited.

What is the same file and the same suite gives the same items in the same order, on every machine and Python.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from tailrace.atomic import replacing
from tailrace.batchinput import InvalidRow, Source, read
from tailrace.errors import Problems, TailraceError
from tailrace.evaluation.shapes import Item
from tailrace.evaluation.suite import Dataset, Wanted
from tailrace.templating import listed

#: The longest id of an item, in characters: a row's custom_id has more beside it.
LONGEST_ID = 256
#: Bad rows that are told at once.
MOST_TOLD = 10
#: Values of a filter's column that are told where none is left.
MOST_VALUES = 8

_canonical = msgspec.json.Encoder(order="sorted").encode
_encode = msgspec.json.Encoder().encode


def read_items(dataset: Dataset, folder: Path) -> list[Item]:
    """``dataset.path`` is relative to ``folder``. Raises TailraceError with the file, the line and the column."""
    path = folder / dataset.path
    if not path.exists():
        raise TailraceError(f"{path}: there is no such file (dataset.path is relative to the suite's folder)")
    if path.is_dir():
        raise TailraceError(f"{path} is a folder; dataset.path must be a JSONL, CSV or Parquet file")
    rows = _Rows(path, dataset)
    for number, source in enumerate(_sources(path), 1):
        rows.add(number, source)
    items = rows.whole()
    if dataset.shuffle is not None:
        seed = dataset.shuffle
        items.sort(key=lambda item: hashlib.sha256(f"{seed}:{item.id}".encode()).digest())
    return items[: dataset.limit]


def fingerprint(items: Iterable[Item]) -> str:
    """SHA-256, in hex, of the items in their order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(_canonical(item) + b"\n")
    return digest.hexdigest()


def write_items(path: Path, items: Iterable[Item]) -> None:
    """JSONL for ``read_written``. Raises TailraceError where it can't be written."""
    with replacing(path) as file:
        file.writelines(_encode(item) + b"\n" for item in items)


def read_written(path: Path) -> list[Item]:
    """Raises TailraceError where that is no file of ``write_items``."""
    decode = msgspec.json.Decoder(Item).decode
    items: list[Item] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    items.append(decode(line))
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise TailraceError(f"{path}:{number}: is no item of a run: {error}") from None
    except OSError as error:
        raise TailraceError(f"{path} can't be read: {error.strerror or error}") from None
    return items


def text_of(value: Any) -> str:
    """A cell as a text: a string as it is, anything else as JSON (42 is ``42``, true is ``true``)."""
    return value if isinstance(value, str) else _encode(value).decode()


def _sources(path: Path) -> Iterator[Source | InvalidRow]:
    """Rows with columns that are JSON values: Parquet's dates, decimals and bytes become texts, NaN is null."""
    is_parquet = path.suffix.lower() in {".parquet", ".pq"}
    for source in read(path):
        if is_parquet and isinstance(source, Source):
            try:
                columns = msgspec.json.decode(_encode(source.columns))
            except (TypeError, ValueError) as error:
                yield InvalidRow(source.line, f"can't be said in JSON: {error}")
                continue
            source = Source(source.line, columns)
        yield source


class _Rows:
    """Items so far, and all that speaks against them."""

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self._path = path
        self._dataset = dataset
        self._filter = _Filter(dataset.filter, texts=path.suffix.lower() in {".csv", ".tsv"})
        self._place = "row " if path.suffix.lower() in {".parquet", ".pq"} else ""
        self._columns: dict[str, None] = {}  # in their order
        self._lines: dict[str, int] = {}
        self._items: list[Item] = []
        self._wrong: list[str] = []
        self._count = 0

    def add(self, number: int, source: Source | InvalidRow) -> None:
        """``number`` counts rows from 1."""
        self._count += 1
        try:
            if isinstance(source, InvalidRow):
                raise source
            self._columns.update(dict.fromkeys(source.columns))
            if self._filter.takes(source.columns):
                item = self._item(number, source)
                self._items.append(item)
                self._lines[item.id] = source.line
        except InvalidRow as error:
            self._wrong.append(self._told(error.line, error.param, error.message))

    def whole(self) -> list[Item]:
        """All items. Raises TailraceError where there are none, or any row is wrong."""
        wrong = self._missing_columns() or self._wrong
        if wrong:
            more = [f"{self._path}: {len(wrong) - MOST_TOLD} more rows are wrong"][: len(wrong) > MOST_TOLD]
            raise Problems("\n".join([*wrong[:MOST_TOLD], *more]))
        if not self._count:
            raise TailraceError(f"{self._path} has no rows")
        if not self._items:
            raise TailraceError(f"{self._path}: {self._filter.told(self._count)}")
        return self._items

    def _told(self, line: int, column: str | None, message: str) -> str:
        return f"{self._path}:{self._place and ' '}{self._place}{line}: {f'{column}: ' if column else ''}{message}"

    def _missing_columns(self) -> list[str]:
        """Columns that the suite names and no row has."""
        if not self._columns:
            return []
        said = self._dataset
        named = [("input", said.input)]
        named += [(part, getattr(said, part)) for part in ("target", "id") if part in said.model_fields_set]
        named += [("category", said.category)] if said.category is not None else []
        named += [("metadata", column) for column in said.metadata or ()]
        named += [("filter", column) for column in said.filter]
        return [
            f"{self._path}: no row has the column {column!r} that dataset.{part} names; "
            f"there are {listed(self._columns)}"
            for part, column in named
            if column not in self._columns
        ]

    def _item(self, number: int, source: Source) -> Item:
        """Raises InvalidRow."""
        said, row = self._dataset, source.columns
        if row.get(said.input) is None:
            problem = f"is {'null' if said.input in row else 'missing'}; the row has {listed(row)}"
            raise InvalidRow(source.line, problem, said.input)
        names = said.metadata
        if names is None:
            used = {said.input, said.target, said.id, said.category}
            names = tuple(name for name in row if name not in used)
        category = row.get(said.category) if said.category is not None else None
        return Item(
            id=self._id(number, source),
            input=row[said.input],
            targets=self._targets(source),
            metadata={name: row.get(name) for name in names},
            columns=row,
            category=None if category is None or category == "" else text_of(category),
        )

    def _id(self, number: int, source: Source) -> str:
        column = self._dataset.id
        value = source.columns.get(column)
        if value is None and "id" in self._dataset.model_fields_set:
            problem = f"is {'null' if column in source.columns else 'missing'}; every row needs one"
            raise InvalidRow(source.line, problem, column)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise InvalidRow(source.line, "must be a text or a whole number", column)
        id = str(number if value is None else value)
        if not id.strip():
            raise InvalidRow(source.line, "is empty", column)
        if len(id) > LONGEST_ID:
            raise InvalidRow(source.line, f"must have at most {LONGEST_ID} characters", column)
        if any(unicodedata.category(character) == "Cc" for character in id):
            raise InvalidRow(source.line, "has a control character in it", column)
        if id in self._lines:
            place = f"{self._place or 'line '}{self._lines[id]}"
            raise InvalidRow(source.line, f"{id!r} is the one of {place} already", column)
        return id

    def _targets(self, source: Source) -> tuple[str, ...]:
        column = self._dataset.target
        value = source.columns.get(column)
        if value is None or (value == "" and self._filter.texts):
            return ()
        if isinstance(value, dict):
            raise InvalidRow(source.line, "must be a text, a number, or a list of them", column)
        values = cast("list[Any]", value) if isinstance(value, list) else [value]
        if any(isinstance(one, list | dict | None) for one in values):
            raise InvalidRow(source.line, "must be a list of texts or numbers alone", column)
        return tuple(dict.fromkeys(map(text_of, values)))


class _Filter:
    """Which rows are wanted. Where cells are ``texts`` (CSV), the wanted values are compared as texts: 1 is ``1``, true
    is ``true``, null is an empty cell. Elsewhere types count, too: 1 is 1.0, but neither ``"1"`` nor true."""

    def __init__(self, wanted: dict[str, Wanted | tuple[Wanted, ...]], *, texts: bool) -> None:
        self.texts = texts
        self._wanted = {
            column: {self._key(value) for value in (values if isinstance(values, tuple) else (values,))}
            for column, values in wanted.items()
        }
        self._said = wanted
        self._left = dict.fromkeys(wanted, 0)
        self._values: dict[str, dict[str, None]] = {column: {} for column in wanted}

    def takes(self, row: dict[str, Any]) -> bool:
        for column, wanted in self._wanted.items():
            value = row.get(column)
            seen = self._values[column]
            if len(seen) <= MOST_VALUES:
                seen[text_of(value)] = None
            if isinstance(value, list | dict) or self._key(value) not in wanted:
                return False
            self._left[column] += 1
        return True

    def told(self, rows: int) -> str:
        """The first column that left no row over."""
        before = rows
        for column, left in self._left.items():
            if left == 0:
                said = _encode(self._said[column]).decode()
                of = f"none of the {before} rows" + (" that are left" if before != rows else "")
                there = listed(self._values[column], MOST_VALUES)
                return f"no items are left: dataset.filter takes {of}, for {column} is never {said} (but {there})"
            before = left
        return "no items are left"

    def _key(self, value: Any) -> tuple[str, Any]:
        if self.texts:
            return "text", "" if value is None else text_of(value)
        kind = (
            "number"
            if isinstance(value, int | float) and not isinstance(value, bool)
            else type(value).__name__
        )
        return kind, value
