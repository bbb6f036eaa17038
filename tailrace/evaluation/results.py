"""Every sample of a run as a file: ``samples.jsonl``, which is read again, and ``results.parquet``, for other tools.

A line of ``samples.jsonl`` is one sample, flat: the fields of ``Line``, in that order. Money is in integer
nano-dollars, times are in milliseconds, what nobody knows is null. All text comes back as it was, halves of surrogate
pairs and U+0000 too; NaN and infinities, of which JSON knows nothing, become null.

``results.parquet`` has the same columns, typed, but for these: ``targets`` is a list of texts; ``input`` is the text,
or JSON where it is none; ``metadata`` and ``messages`` are JSON; each scorer has ``score.NAME`` (a number from 0 to 1),
``verdict.NAME``, ``answer.NAME``, ``explanation.NAME`` and ``score_error.NAME``. Halves of surrogate pairs, which
Parquet can't hold, become U+FFFD there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from tailrace.arrow import load_arrow
from tailrace.atomic import replacing
from tailrace.errors import TailraceError
from tailrace.evaluation.shapes import Failure, Item, Outcome, Record, Sample, Score

#: Rows of a row group of a Parquet file; fewer where their texts come to ``GROUP_CHARACTERS``.
GROUP_ROWS = 2_000
#: Characters of the texts of a row group.
GROUP_CHARACTERS = 16 * 1024 * 1024

_LONE = re.compile("[\ud800-\udfff]")
#: What some readers take for the end of a line, as UTF-8. In JSON they stand in strings alone, where an escape does.
_LINE_ENDS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))


class Header(msgspec.Struct, frozen=True):
    """What is the same in all rows of a run."""

    run: str
    suite: str
    scorers: tuple[str, ...] = ()


class Row(msgspec.Struct, frozen=True):
    """A sample, with what it was asked: ``messages`` as they were sent."""

    sample: Sample
    item: Item
    messages: list[dict[str, Any]]


class LineScore(msgspec.Struct, frozen=True, omit_defaults=True):
    """A score with its verdict, by the names of ``Verdict``. Without ``value`` there is no score, as of a failed row;
    with null the scorer failed. The others are left out where there are none."""

    verdict: str
    value: float | msgspec.UnsetType | None = msgspec.UNSET
    answer: str | None = None
    explanation: str | None = None
    error: str | None = None


class Line(msgspec.Struct, frozen=True):
    """A line of ``samples.jsonl``; see ``Sample``, ``Item`` and ``Record`` for what the fields mean."""

    run: str
    suite: str
    model: str
    prompt: str
    arm: str
    item: str
    sample: int
    category: str | None
    input: Any
    targets: tuple[str, ...]
    metadata: dict[str, Any]
    messages: list[dict[str, Any]]
    text: str | None
    reasoning: str | None
    finish_reason: str | None
    outcome: Outcome
    error_code: str | None
    error_message: str | None
    completion_id: str | None
    cache: str
    cost_nano: int | None
    answer_cost_nano: int | None
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    attempts: int
    queue_ms: int | None
    first_chunk_ms: int | None
    duration_ms: int | None
    scores: dict[str, LineScore]


def write_samples(path: Path, rows: Iterable[Row], header: Header) -> int:
    """``samples.jsonl``, put in place in one step; the number of its lines. Raises TailraceError where nothing can be
    written."""
    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(encode(line_of(row, header)) + b"\n")
            count += 1
    return count


def read_samples(path: Path) -> Iterator[Row]:
    """The rows again, one at a time. Their items have no ``columns``: those are in the dataset. Raises TailraceError
    where a line is none of ours."""
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    yield _row(_decode(text))
                except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors
                    raise TailraceError(f"{path}: line {number} is not a sample: {error}") from None
    except OSError as error:
        raise TailraceError(f"{path} can't be read: {error.strerror or error}") from None


def line_of(row: Row, header: Header) -> Line:
    """The flat form. Of a sample that has no answer, the verdict under each scorer of the header is written too."""
    sample = row.sample
    scores = {name: LineScore(sample.verdict(name).value) for name in header.scorers}
    for name, score in sample.scores.items():
        verdict = sample.verdict(name).value
        scores[name] = LineScore(verdict, score.value, score.answer, score.explanation, score.error)
    return Line(
        run=header.run,
        suite=header.suite,
        model=sample.model,
        prompt=sample.prompt,
        arm=sample.arm,
        item=sample.item,
        sample=sample.sample,
        category=sample.category,
        input=row.item.input,
        targets=row.item.targets,
        metadata=row.item.metadata,
        messages=row.messages,
        text=sample.text,
        reasoning=sample.reasoning,
        finish_reason=sample.finish_reason,
        outcome=sample.outcome,
        error_code=sample.error and sample.error.code,
        error_message=sample.error and sample.error.message,
        completion_id=sample.completion_id,
        scores=scores,
        **msgspec.structs.asdict(sample.record),
    )


def _row(line: Line) -> Row:
    error = None
    if line.error_code is not None:
        error = Failure(line.error_code, line.error_message or "")
    sample = Sample(
        arm=line.arm,
        model=line.model,
        prompt=line.prompt,
        item=line.item,
        sample=line.sample,
        category=line.category,
        outcome=line.outcome,
        text=line.text,
        reasoning=line.reasoning,
        finish_reason=line.finish_reason,
        error=error,
        completion_id=line.completion_id,
        record=Record(**{name: getattr(line, name) for name in Record.__struct_fields__}),
        scores={
            name: Score(score.value, score.answer, score.explanation, score.error)
            for name, score in line.scores.items()
            if score.value is not msgspec.UNSET
        },
    )
    item = Item(line.item, line.input, line.targets, line.metadata, {}, line.category)
    return Row(sample, item, line.messages)


# -------------------------------------------------------------------------------------------------------- JSON


def encode(value: Any) -> bytes:
    """A value as JSON in one line, for every reader that there is."""
    try:
        text = msgspec.json.encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair, of which msgspec makes no escape
        builtins = msgspec.to_builtins(value, str_keys=True)
        finite = json.loads(json.dumps(builtins), parse_constant=lambda _: None)
        return json.dumps(finite, separators=(",", ":")).encode()
    for raw, escape in _LINE_ENDS:
        if raw in text:
            text = text.replace(raw, escape)
    return text


_decode_fast = msgspec.json.Decoder(Line).decode


def _decode(text: bytes) -> Line:
    try:
        return _decode_fast(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # perhaps an escaped half of a surrogate pair
        return msgspec.convert(json.loads(text), Line)


# ----------------------------------------------------------------------------------------------------- Parquet


def write_parquet(path: Path, rows: Iterable[Row], header: Header) -> int:
    """``results.parquet``, put in place in one step; the number of its rows. The scorers are those of the header.
    Raises TailraceError where nothing can be written, or pyarrow is not there."""
    arrow, parquet = load_arrow("writing", "eval")
    schema = _schema(arrow, header.scorers)
    count = 0
    with replacing(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(rows, header):
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def _schema(arrow: Any, scorers: Iterable[str]) -> Any:
    types: dict[Any, Any] = {
        str: arrow.string(),
        int: arrow.int64(),
        float: arrow.float64(),
        tuple[str, ...]: arrow.list_(arrow.string()),
    }
    text = types[str]  # all of the rest: texts or None, and JSON
    columns: list[tuple[str, Any]] = []
    for field in msgspec.structs.fields(Line):
        if field.name != "scores":
            plain = int if field.type == int | None else field.type
            columns.append((field.name, types.get(plain, text)))
    for name in scorers:
        columns.append((f"score.{name}", types[float]))
        columns += [(f"{part}.{name}", text) for part in ("verdict", "answer", "explanation", "score_error")]
    return arrow.schema(columns)


def _groups(rows: Iterable[Row], header: Header) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        cells = _cells(line_of(row, header), header.scorers)
        group.append(cells)
        characters += sum(len(cell) for cell in cells.values() if isinstance(cell, str))
        if len(group) >= GROUP_ROWS or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _cells(line: Line, scorers: Iterable[str]) -> dict[str, Any]:
    cells: dict[str, Any] = {name: getattr(line, name) for name in Line.__struct_fields__ if name != "scores"}
    if not isinstance(line.input, str):
        cells["input"] = encode(line.input).decode()
    for name in ("metadata", "messages"):
        cells[name] = encode(cells[name]).decode()
    cells["outcome"] = line.outcome.value
    for name in scorers:
        score = line.scores[name]
        cells[f"score.{name}"] = None if score.value is msgspec.UNSET else score.value
        cells[f"verdict.{name}"] = score.verdict
        cells[f"answer.{name}"] = score.answer
        cells[f"explanation.{name}"] = score.explanation
        cells[f"score_error.{name}"] = score.error
    return {name: _storable(cell) for name, cell in cells.items()}


def _storable(cell: Any) -> Any:
    if isinstance(cell, str):
        return cell if cell.isascii() else _LONE.sub("\ufffd", cell)
    if isinstance(cell, tuple):
        return [_storable(part) for part in cast("tuple[Any, ...]", cell)]
    return cell
