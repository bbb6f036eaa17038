"""Datasets: items of real files, their order, and what is told of rows that are wrong."""

from __future__ import annotations

import datetime as dt
import decimal
import importlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.errors import TailraceError
from tailrace.evaluation.dataset import fingerprint, read_items, read_written, write_items
from tailrace.evaluation.shapes import Item
from tailrace.evaluation.suite import Dataset

SHUFFLED = {0: "7493826051", 7: "4738291560"}
#: SHA-256 of the item in the test that has it, as JSON with sorted keys and a line end.
FINGERPRINT = "45696f76d6bca74232ae8911fe41b7944152066507f9f8200a4f1c999386edad"
NONE_LEFT = "d.jsonl: no items are left: dataset.filter takes"
ROWS: list[dict[str, Any]] = [
    {"id": "a", "input": "1+1", "target": 2, "kind": "sum", "level": 1, "hard": False},
    {"id": "b", "input": "2*3", "target": 6, "kind": "product", "level": 2, "hard": False},
    {"id": "c", "input": "7+8", "target": 15, "kind": "sum", "level": 2, "hard": True},
    {"id": "d", "input": "9*9", "target": 81, "kind": "product", "level": 3, "hard": None},
]


def jsonl(folder: Path, *rows: Any, name: str = "d.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def csv(folder: Path, text: str, name: str = "d.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    arrow: Any = importlib.import_module("pyarrow")
    writer: Any = importlib.import_module("pyarrow.parquet")
    path = folder / "d.parquet"
    writer.write_table(arrow.Table.from_pylist(rows), path)
    return path


def items(path: Path, **said: Any) -> list[Item]:
    return read_items(Dataset(path=Path(path.name), **said), path.parent)


def ids(path: Path, **said: Any) -> list[str]:
    return [item.id for item in items(path, **said)]


def told(path: Path, **said: Any) -> list[str]:
    with pytest.raises(TailraceError) as error:
        items(path, **said)
    return str(error.value).replace(f"{path.parent}/", "").splitlines()


# ------------------------------------------------------------------------------------------------- items


def test_the_same_rows_of_each_format_are_the_same_items(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "q": "x, y", "a": "1", "k": "n"},
        {"id": "b", "q": 'say "hi"\nok', "a": "2", "k": "m"},
    ]
    said: dict[str, Any] = {"input": "q", "target": "a", "category": "k"}
    text = 'id,q,a,k\na,"x, y",1,n\nb,"say ""hi""\nok",2,m\n'
    from_csv = items(csv(tmp_path, text), **said)
    assert from_csv == items(jsonl(tmp_path, *rows), **said) == items(parquet(tmp_path, rows), **said)
    assert from_csv == items(
        csv(tmp_path, 'id\tq\ta\tk\na\tx, y\t1\tn\nb\t"say ""hi""\nok"\t2\tm\n', "d.tsv"), **said
    )
    assert from_csv[0] == Item(
        id="a", input="x, y", targets=("1",), metadata={}, category="n",
        columns={"id": "a", "q": "x, y", "a": "1", "k": "n"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("42", ("42",)),
        ("42.0", ("42.0",)),
        ("-0.5", ("-0.5",)),
        ("123456789012345678901234567890", ("123456789012345678901234567890",)),
        ("true", ("true",)),
        ('"true"', ("true",)),
        ('""', ("",)),
        ('"ä 😀"', ("ä 😀",)),
        ('["a", 1, false, "a"]', ("a", "1", "false")),
        ("[]", ()),
        ("null", ()),
    ],
)
def test_targets_are_texts_as_the_file_has_them(tmp_path: Path, text: str, targets: tuple[str, ...]) -> None:
    assert items(jsonl(tmp_path, f'{{"input": "q", "target": {text}}}'))[0].targets == targets


def test_an_item_may_have_no_target(tmp_path: Path) -> None:
    assert [item.targets for item in items(jsonl(tmp_path, {"input": "q"}))] == [()]
    assert [item.targets for item in items(csv(tmp_path, "input,target\nq,\nr,0\n"))] == [(), ("0",)]


def test_rows_without_an_id_are_numbered(tmp_path: Path) -> None:
    """By rows, not lines, and before any of them is filtered out."""
    path = jsonl(tmp_path, {"input": "a", "k": 1}, "", {"input": "b", "k": 2}, {"input": "c", "k": 2})
    assert ids(path) == ["1", "2", "3"]
    assert ids(path, filter={"k": 2}) == ["2", "3"]


def test_ids_are_texts_or_whole_numbers(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input": "a", "key": 7}, {"input": "b", "key": "👩‍💻/x y"})
    assert ids(path, id="key") == ["7", "👩‍💻/x y"]


def test_metadata_is_what_has_no_other_use_or_what_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *ROWS)
    assert items(path, category="kind")[2].metadata == {"level": 2, "hard": True}
    assert items(path, metadata=("kind", "id"))[2].metadata == {"kind": "sum", "id": "c"}
    assert items(path, metadata=())[2].metadata == {}
    assert items(path, metadata=())[2].columns == ROWS[2]


def test_a_category_is_a_text(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"input": 1, "k": 3},
        {"input": 1, "k": "x"},
        {"input": 1, "k": None},
        {"input": 1, "k": True},
    )
    assert [item.category for item in items(path, category="k")] == ["3", "x", None, "true"]


def test_an_input_may_be_any_value(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input": {"a": [1, 2.5]}}, {"input": 0}, {"input": ""}, {"input": False})
    assert [item.input for item in items(path)] == [{"a": [1, 2.5]}, 0, "", False]


def test_what_json_has_no_shape_for_becomes_a_text(tmp_path: Path) -> None:
    rows = [
        {
            "input": "q",
            "target": decimal.Decimal("1.50"),
            "day": dt.date(2026, 1, 31),
            "missing": math.nan,
            "list": ["a", "b"],
            "bytes": b"\x00\xff",
        }
    ]
    (item,) = items(parquet(tmp_path, rows))
    assert item.targets == ("1.50",)
    assert item.metadata == {"day": "2026-01-31", "missing": None, "list": ["a", "b"], "bytes": "AP8="}
    write_items(tmp_path / "items.jsonl", [item])
    assert read_written(tmp_path / "items.jsonl") == [item]


# ------------------------------------------------------------------------------------ filter, shuffle, limit


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"kind": "sum"}, "ac"),
        ({"kind": ("sum", "nothing")}, "ac"),
        ({"level": 2}, "bc"),
        ({"level": 2.0}, "bc"),
        ({"level": (1, 3)}, "ad"),
        ({"hard": False}, "ab"),
        ({"hard": None}, "d"),
        ({"hard": (None, True)}, "cd"),
        ({"kind": "sum", "level": 2}, "c"),
    ],
)
def test_a_filter_takes_rows_by_value_and_type(tmp_path: Path, wanted: dict[str, Any], found: str) -> None:
    assert "".join(ids(jsonl(tmp_path, *ROWS), filter=wanted)) == found


@pytest.mark.parametrize("wanted", ["1", True, 0])
def test_a_number_is_neither_its_text_nor_true(tmp_path: Path, wanted: Any) -> None:
    path = jsonl(tmp_path, {"input": "a", "x": 1}, {"input": "b", "x": False})
    assert told(path, filter={"x": wanted}) == [
        f"{NONE_LEFT} none of the 2 rows, for x is never {json.dumps(wanted)} (but 1, false)"
    ]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (1, ["a"]),
        ("1", ["a"]),
        (True, ["b"]),
        ("true", ["b"]),
        (None, ["c"]),
        ("", ["c"]),
        ((1, None), ["a", "c"]),
    ],
)
def test_cells_of_csv_are_compared_as_texts(tmp_path: Path, wanted: Any, found: list[str]) -> None:
    path = csv(tmp_path, "id,input,x\na,q,1\nb,q,true\nc,q,\nd,q,1.0\n")
    assert ids(path, filter={"x": wanted}) == found


def test_a_column_that_a_row_lacks_is_null_to_a_filter(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input": "a", "x": 1}, {"input": "b"})
    assert ids(path, filter={"x": None}) == ["2"]


def test_a_shuffle_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """The orders are written down: a change of them makes other items of an old suite."""
    path = jsonl(tmp_path, *({"id": n, "input": "q"} for n in range(10)))
    assert "".join(ids(path, shuffle=0)) == SHUFFLED[0]
    assert "".join(ids(path, shuffle=7)) == SHUFFLED[7]


def test_an_item_more_moves_no_others(tmp_path: Path) -> None:
    before = ids(jsonl(tmp_path, *({"id": n, "input": "q"} for n in range(50))), shuffle=3)
    after = ids(jsonl(tmp_path, *({"id": n, "input": "q"} for n in range(51))), shuffle=3)
    assert [id for id in after if id != "50"] == before
    assert before != sorted(before, key=int)


def test_filter_then_shuffle_then_limit(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"id": n, "input": "q", "even": n % 2 == 0} for n in range(40)))
    shuffled = ids(path, filter={"even": True}, shuffle=1)
    assert sorted(map(int, shuffled)) == list(range(0, 40, 2))
    assert ids(path, filter={"even": True}, shuffle=1, limit=5) == shuffled[:5]
    assert ids(path, limit=3) == ["0", "1", "2"]
    assert len(ids(path, limit=1000)) == 40


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("rows", "said", "problems"),
    [
        (["{"], {}, ["d.jsonl:1: is not valid JSON: Input data was truncated"]),
        ([{"input": "a"}, [1]], {}, ["d.jsonl:2: is not a JSON object"]),
        ([{"q": "a", "a": 1}], {},
         ["d.jsonl: no row has the column 'input' that dataset.input names; there are q, a"]),
        ([{"input": "a"}, "", {"q": "b"}], {}, ["d.jsonl:3: input: is missing; the row has q"]),
        ([{"input": None}], {}, ["d.jsonl:1: input: is null; the row has input"]),
        ([{"input": "a"}],
         {"target": "answer", "id": "key", "category": "k", "metadata": ("m", "input"), "filter": {"f": 1}},
         [f"d.jsonl: no row has the column '{column}' that dataset.{part} names; there are input" for part, column in
          [("target", "answer"), ("id", "key"), ("category", "k"), ("metadata", "m"), ("filter", "f")]]),
        ([{"input": "a", "id": 1}, {"input": "b", "id": "2"}, {"input": "c", "id": "1"}], {},
         ["d.jsonl:3: id: '1' is the one of line 1 already"]),
        ([{"input": "a", "id": 2}, {"input": "b"}], {}, ["d.jsonl:2: id: '2' is the one of line 1 already"]),
        ([{"input": "a", "id": "x"}, {"input": "b"}], {"id": "id"}, ["d.jsonl:2: id: is missing; every row needs one"]),
        ([{"input": "a", "id": None}], {"id": "id"}, ["d.jsonl:1: id: is null; every row needs one"]),
        ([{"input": "a", "id": 1.5}], {}, ["d.jsonl:1: id: must be a text or a whole number"]),
        ([{"input": "a", "id": True}], {}, ["d.jsonl:1: id: must be a text or a whole number"]),
        ([{"input": "a", "id": " "}], {}, ["d.jsonl:1: id: is empty"]),
        ([{"input": "a", "id": "x" * 257}], {}, ["d.jsonl:1: id: must have at most 256 characters"]),
        ([{"input": "a", "id": "x\ny"}], {}, ["d.jsonl:1: id: has a control character in it"]),
        ([{"input": "a", "target": {"x": 1}}], {},
         ["d.jsonl:1: target: must be a text, a number, or a list of them"]),
        ([{"input": "a", "target": ["x", None]}], {},
         ["d.jsonl:1: target: must be a list of texts or numbers alone"]),
        ([], {}, ["d.jsonl has no rows"]),
        (["", ""], {}, ["d.jsonl has no rows"]),
        (ROWS, {"filter": {"kind": "sum", "level": 3}},
         [f"{NONE_LEFT} none of the 2 rows that are left, for level is never 3 (but 1, 2)"]),
        (ROWS, {"filter": {"kind": ("x", "y")}},
         [f'{NONE_LEFT} none of the 4 rows, for kind is never ["x","y"] (but sum, product)']),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_line_and_column(
    tmp_path: Path, rows: list[Any], said: dict[str, Any], problems: list[str]
) -> None:
    assert told(jsonl(tmp_path, *rows), **said) == problems


def test_rows_that_a_filter_leaves_out_may_be_anything(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path, {"id": 1, "x": 1}, {"id": 1, "x": 2, "input": "a"}, {"id": 1, "x": 3, "input": None}
    )
    assert ids(path, filter={"x": 2}) == ["1"]


def test_the_first_ten_bad_rows_are_told(tmp_path: Path) -> None:
    problems = told(jsonl(tmp_path, {"input": "a"}, *["nonsense"] * 13))
    assert len(problems) == 11
    assert problems[0].startswith("d.jsonl:2: is not valid JSON")
    assert problems[-1] == "d.jsonl: 3 more rows are wrong"


def test_lines_of_csv_and_rows_of_parquet_are_named(tmp_path: Path) -> None:
    assert told(csv(tmp_path, 'id,input\na,"two\nlines"\na,q\n')) == [
        "d.csv:4: id: 'a' is the one of line 2 already"
    ]
    assert told(csv(tmp_path, "id,input\na\n")) == ["d.csv:2: has 1 cells where the header has 2"]
    rows = [{"id": "a", "input": "q"}, {"id": "a", "input": None}]
    assert told(parquet(tmp_path, rows)) == ["d.parquet: row 2: input: is null; the row has id, input"]
    rows[1]["input"] = "r"
    assert told(parquet(tmp_path, rows)) == ["d.parquet: row 2: id: 'a' is the one of row 1 already"]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        TailraceError, match=r"there is no such file \(dataset.path is relative to the suite's folder\)"
    ):
        read_items(Dataset(path=Path("gone.jsonl")), tmp_path)
    with pytest.raises(TailraceError, match=r"is a folder; dataset.path must be"):
        read_items(Dataset(path=Path()), tmp_path)


# --------------------------------------------------------------------------------- what a run keeps of items

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=4,
)
_columns = st.dictionaries(_text, _json, max_size=4)
_items = st.lists(
    st.builds(
        Item,
        id=_text,
        input=_json,
        targets=st.lists(_text, max_size=3).map(tuple),
        metadata=_columns,
        columns=_columns,
        category=st.none() | _text,
    ),
    max_size=3,
)


@settings(max_examples=50)
@given(_items)
def test_items_written_are_those_read(tmp_path_factory: pytest.TempPathFactory, found: list[Item]) -> None:
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    write_items(path, found)
    again = read_written(path)
    assert again == found
    assert fingerprint(again) == fingerprint(found)


@settings(max_examples=50)
@given(_items)
def test_a_fingerprint_depends_on_items_and_their_order_but_not_that_of_keys(found: list[Item]) -> None:
    turned = [
        msgspec.structs.replace(
            item,
            columns=dict(reversed(item.columns.items())),
            metadata=dict(reversed(item.metadata.items())),
        )
        for item in found
    ]
    assert fingerprint(turned) == fingerprint(found)
    more = [*found, Item(id="more", input="", targets=(), metadata={}, columns={})]
    assert fingerprint(more) != fingerprint(found)
    if found[::-1] != found:
        assert fingerprint(found[::-1]) != fingerprint(found)


def test_a_fingerprint_stays_what_it_was() -> None:
    """A run of today finds its items unchanged under a version of tomorrow."""
    found = [
        Item(
            id="a",
            input="q",
            targets=("1",),
            metadata={"y": 1.0, "x": None},
            columns={"input": "q"},
            category="k",
        )
    ]
    assert fingerprint(found) == FINGERPRINT


def test_what_is_no_item_is_told(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    write_items(path, [Item(id="a", input="q", targets=(), metadata={}, columns={})])
    path.write_bytes(path.read_bytes() + b'{"id": 3}\n')
    with pytest.raises(TailraceError, match=r"items\.jsonl:2: is no item of a run: Expected `str`"):
        read_written(path)
    with pytest.raises(TailraceError, match=r"gone can't be read: No such file"):
        read_written(tmp_path / "gone")
