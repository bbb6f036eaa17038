"""samples.jsonl gives back what was written; results.parquet is what other tools can read."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.errors import TailraceError
from tailrace.evaluation import results
from tailrace.evaluation.results import Header, Line, Row, read_samples, write_parquet, write_samples
from tailrace.evaluation.shapes import Failure, Item, Outcome, Record, Sample, Score
from tests.support.evaluation import HOSTILE, made_run
from tests.support.json_texts import texts

HEADER = Header("run-1", "suite", ("exact", "judge"))

numbers = st.integers(0, 2**53)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
scores = st.builds(
    Score, st.none() | st.floats(0, 1), st.none() | texts, st.none() | texts, st.none() | texts
)
records = st.builds(
    Record,
    st.sampled_from(["hit", "join", "miss", "bypass"]),
    *[st.none() | numbers] * 2,
    *[numbers] * 5,
    *[st.none() | numbers] * 3,
)
samples = st.builds(
    Sample,
    arm=texts,
    model=texts,
    prompt=texts,
    item=texts,
    sample=st.integers(0, 999),
    category=st.none() | texts,
    outcome=st.sampled_from(Outcome),
    text=st.none() | texts,
    reasoning=st.none() | texts,
    finish_reason=st.none() | texts,
    error=st.none() | st.builds(Failure, texts, texts),
    completion_id=st.none() | texts,
    record=records,
    scores=st.dictionaries(st.sampled_from(HEADER.scorers) | texts, scores, max_size=3),
)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    sample = draw(samples)
    targets = tuple(draw(st.lists(texts, max_size=3)))
    item = Item(
        sample.item,
        draw(jsons),
        targets,
        draw(st.dictionaries(texts, jsons, max_size=3)),
        {},
        sample.category,
    )
    return Row(sample, item, draw(st.lists(st.dictionaries(texts, jsons, max_size=3), max_size=2)))


@given(st.lists(rows(), max_size=4))
def test_rows_come_back_as_they_were(tmp_path: Path, written: list[Row]) -> None:
    path = tmp_path / "samples.jsonl"
    assert write_samples(path, written, HEADER) == len(written)
    assert list(read_samples(path)) == written


@given(st.lists(rows(), min_size=1, max_size=4))
def test_each_sample_is_one_line_whoever_splits_them(tmp_path: Path, written: list[Row]) -> None:
    """U+2028 and its like end lines for some."""
    path = tmp_path / "samples.jsonl"
    write_samples(path, written, HEADER)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == [row.sample.text for row in written]


def test_a_line_is_flat_and_says_the_verdict_under_every_scorer(tmp_path: Path) -> None:
    run = made_run(items=30)
    path = tmp_path / "samples.jsonl"
    write_samples(path, run.rows, run.header)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len(run.rows)
    assert set(lines[0]) == set(results.Line.__struct_fields__)
    for line, row in zip(lines, run.rows, strict=True):
        assert {n: s["verdict"] for n, s in line["scores"].items()} == {
            n: row.sample.verdict(n).value for n in run.info.scorers
        }
    failed = next(line for line in lines if line["outcome"] == "error")
    assert failed["scores"]["judge"] == {"verdict": "error"}
    assert failed["error_code"] in {"timeout", "rate_limited"}


def test_what_json_has_no_word_for_becomes_null(tmp_path: Path) -> None:
    """In both ways of writing a line: half of a surrogate pair takes the slow one."""
    for text in ("fine", "\ud800"):
        item = Item("1", text, (), {"a": math.nan, "b": math.inf}, {})
        sample = Sample("a", "m", "p", "1", 0, None, Outcome.MISSING)
        write_samples(tmp_path / "samples.jsonl", [Row(sample, item, [])], HEADER)
        (row,) = read_samples(tmp_path / "samples.jsonl")
        assert row.item.metadata == {"a": None, "b": None}
        assert row.item.input == text


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"run": "x"}', b"\xff\xfe", b"[" * 100_000, b'{"run": "\\ud800", "sample": 1}']
)
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, line: bytes) -> None:
    run = made_run(items=1)
    path = tmp_path / "samples.jsonl"
    write_samples(path, run.rows, run.header)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(TailraceError, match=rf"samples\.jsonl: line {len(run.rows) + 1} is not a sample: "):
        list(read_samples(path))


def test_a_file_that_is_not_there_is_one_line_for_a_person(tmp_path: Path) -> None:
    with pytest.raises(TailraceError, match="can't be read: No such file"):
        next(read_samples(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize("write", [write_samples, write_parquet])
def test_the_old_file_stays_where_writing_breaks_off(tmp_path: Path, write: Any) -> None:
    run = made_run(items=3)
    path = tmp_path / "results"
    write(path, run.rows, run.header)
    before = path.read_bytes()

    def breaking() -> Any:
        yield from run.rows
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(path, breaking(), run.header)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------------------------------------------- Parquet


def _read(path: Path) -> Any:
    parquet: Any = importlib.import_module("pyarrow.parquet")
    return parquet.read_table(path)


def test_parquet_has_a_typed_column_for_each_field(tmp_path: Path) -> None:
    run = made_run(items=40)
    path = tmp_path / "results.parquet"
    assert write_parquet(path, run.rows, run.header) == len(run.rows)
    table = _read(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types["sample"] == types["cost_nano"] == types["duration_ms"] == "int64"
    assert types["targets"] in {"list<element: string>", "list<item: string>"}
    assert types["score.judge"] == types["score.numeric"] == "double"
    assert {
        types[name] for name in ("text", "outcome", "messages", "verdict.judge", "score_error.judge")
    } == {"string"}
    for cells, row in zip(table.to_pylist(), run.rows, strict=True):
        assert cells["text"] == row.sample.text
        assert cells["outcome"] == row.sample.outcome.value
        assert cells["cost_nano"] == row.sample.record.cost_nano
        assert json.loads(cells["messages"]) == row.messages
        assert json.loads(cells["metadata"]) == row.item.metadata
        assert cells["targets"] == list(row.item.targets)
        assert cells["input"] == row.item.input
        for name in run.info.scorers:
            assert cells[f"verdict.{name}"] == row.sample.verdict(name).value
            score = row.sample.scores.get(name)
            assert cells[f"score.{name}"] == (score and score.value)


@settings(max_examples=40)  # a file each
@given(st.lists(rows(), max_size=3))
def test_parquet_takes_any_text(tmp_path: Path, written: list[Row]) -> None:
    """Halves of surrogate pairs become U+FFFD, everything else is as it was."""
    path = tmp_path / "results.parquet"
    write_parquet(path, written, HEADER)
    read = _read(path).to_pylist()
    expected = [None if (text := row.sample.text) is None else _without_halves(text) for row in written]
    assert [cells["text"] for cells in read] == expected
    assert [json.loads(cells["metadata"]) for cells in read] == [row.item.metadata for row in written]


def _without_halves(text: str) -> str:
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def test_an_input_that_is_no_text_is_json(tmp_path: Path) -> None:
    run = made_run(items=1, samples=1, arms=1)
    row = msgspec.structs.replace(run.rows[0], item=Item("1", {"a": [1, HOSTILE[7]]}, (), {}, {}))
    write_parquet(tmp_path / "results.parquet", [row], run.header)
    (cells,) = _read(tmp_path / "results.parquet").to_pylist()
    assert json.loads(cells["input"]) == row.item.input


def test_rows_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their number, and by the size of their texts."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    run = made_run(items=20)
    path = tmp_path / "results.parquet"
    monkeypatch.setattr(results, "GROUP_ROWS", 50)
    write_parquet(path, run.rows, run.header)
    sizes = parquet.ParquetFile(path).metadata
    assert [sizes.row_group(n).num_rows for n in range(sizes.num_row_groups)] == [50, 50, 20]
    monkeypatch.setattr(results, "GROUP_CHARACTERS", 1000)
    write_parquet(path, run.rows, run.header)
    assert parquet.ParquetFile(path).metadata.num_row_groups > 20


def test_a_run_without_samples_is_a_file_with_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "results.parquet", [], HEADER)
    assert "score.exact" in _read(tmp_path / "results.parquet").schema.names


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TailraceError, match=r"pip install 'tailrace\[eval\]'"):
        write_parquet(tmp_path / "results.parquet", [], HEADER)
    assert list(tmp_path.iterdir()) == []


def test_the_documentation_names_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    table = text[text.index("### Samples") : text.index("### What is not asked again")]
    names = [
        cell for row in table.splitlines() if row.startswith("| `") for cell in row.split("|")[1].split(",")
    ]
    assert [name.strip(" `") for name in names] == list(Line.__struct_fields__)
