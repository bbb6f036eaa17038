"""Rows of every format, rendered: the lines that are sent, and what is wrong with those that are not."""

from __future__ import annotations

import json
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.batchinput import InvalidRow, Rendered, Renderer, Source, read
from tailrace.batchinput.rendering import Template
from tailrace.errors import TailraceError

MESSAGES = [{"role": "user", "content": "Hello"}]


def _how(how: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", **how}


def rendered(path: Path, **how: Any) -> list[Rendered | InvalidRow]:
    renderer = Renderer(**_how(how))
    found: list[Rendered | InvalidRow] = []
    for source in read(path):
        try:
            found.append(source if isinstance(source, InvalidRow) else renderer.render(source))
        except InvalidRow as invalid:
            found.append(invalid)
    return found


def file(tmp_path: Path, text: str | bytes, name: str = "in.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def one(row: dict[str, Any], **how: Any) -> Rendered:
    return Renderer(**_how(how)).render(Source(1, row, json.dumps(row).encode()))


def sent(row: Rendered | InvalidRow) -> dict[str, Any]:
    assert isinstance(row, Rendered), row
    return json.loads(row.payload)


def test_a_prompt_becomes_a_message_and_other_columns_are_carried() -> None:
    row = one({"id": 7, "prompt": "Hi", "topic": "t"}, params={"temperature": 0})
    assert sent(row) == {
        "custom_id": "7",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "Hi"}], "model": "m", "temperature": 0},
    }
    assert json.loads(row.carried or b"") == {"id": 7, "topic": "t"}


def test_messages_go_as_they_are() -> None:
    assert sent(one({"messages": MESSAGES}))["body"]["messages"] == MESSAGES


def test_the_model_of_a_row_counts_where_the_command_names_none() -> None:
    row = {"prompt": "Hi", "model": "own"}
    assert sent(one(row, model=None))["body"]["model"] == "own"
    assert one(row, model=None).carried is None
    assert sent(one(row))["body"]["model"] == "m"
    assert json.loads(one(row).carried or b"") == {"model": "own"}


def test_a_line_of_the_batch_format_goes_byte_by_byte() -> None:
    text = (
        b'{"custom_id": "a",  "method": "POST", "url": "/v1/chat/completions", '
        b'"body": {"model": "x", "messages": [{"role": "user", "content": "\\u00e4"}]}}'
    )
    row = Renderer().render(Source(1, json.loads(text), text))
    assert row.payload == text
    changed = Renderer(params={"seed": 1}).render(Source(1, json.loads(text), text))
    assert sent(changed)["body"] == {**json.loads(text)["body"], "seed": 1}


def test_what_is_beside_the_batch_format_is_carried_and_not_sent() -> None:
    row = one({"custom_id": "a", "body": {"messages": MESSAGES}, "headers": {"x-sample": "1"}, "gold": 4})
    assert set(sent(row)) == {"custom_id", "method", "url", "body", "headers"}
    assert json.loads(row.carried or b"") == {"gold": 4}


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.booleans(), max_size=4))
def test_equal_rows_have_equal_digests_whatever_the_order_of_their_keys(extra: dict[str, Any]) -> None:
    body = {"messages": MESSAGES, **{f"x{name}": value for name, value in extra.items()}}
    turned = dict(reversed(body.items()))
    assert one({"body": body}).digest == one({"body": turned}).digest
    assert one({"body": body}).digest != one({"body": body, "headers": {"x-sample": "1"}}).digest
    assert one({"body": body}).digest != one({"body": {**body, "seed": 1}}).digest


def test_rows_without_an_id_are_called_by_what_they_ask(tmp_path: Path) -> None:
    """A line that is put before them doesn't change that."""
    alone = rendered(file(tmp_path, '{"prompt": "a"}\n'))
    behind = rendered(file(tmp_path, '{"prompt": "b"}\n{"prompt": "a"}\n'))
    assert sent(alone[0])["custom_id"] == sent(behind[1])["custom_id"]
    assert sent(alone[0])["custom_id"].startswith("row-")


# --------------------------------------------------------------------------------------------------------- formats


def test_jsonl_with_bom_crlf_and_empty_lines(tmp_path: Path) -> None:
    path = file(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert [(row.line, sent(row)["body"]["messages"][0]["content"]) for row in rendered(path)] == [
        (1, "a"),
        (3, "b"),
    ]


def test_csv_with_quotes_line_breaks_and_a_bom(tmp_path: Path) -> None:
    path = file(tmp_path, '\ufeffid,prompt,note\n1,"two\nlines, and a ""quote""",x\n\n2,b,\n', "in.csv")
    first, second = rendered(path)
    assert sent(first)["body"]["messages"][0]["content"] == 'two\nlines, and a "quote"'
    assert (first.line, second.line) == (2, 5)
    assert isinstance(second, Rendered)
    assert json.loads(second.carried or b"") == {"id": "2", "note": ""}


def test_a_cell_of_csv_may_have_messages_as_json(tmp_path: Path) -> None:
    path = file(
        tmp_path, "id\tmessages\n1\t" + json.dumps(MESSAGES).replace('"', '""').join('""') + "\n", "in.tsv"
    )
    assert sent(rendered(path)[0])["body"]["messages"] == MESSAGES


def test_parquet_by_its_library(tmp_path: Path) -> None:
    pyarrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    when = date(2026, 1, 31)
    table = pyarrow.table(
        {"id": [1, None], "messages": [MESSAGES, MESSAGES], "day": [when, when], "raw": [b"ab", None]}
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    first, second = rendered(tmp_path / "in.parquet")
    assert sent(first)["custom_id"] == "1"
    assert sent(first)["body"]["messages"] == MESSAGES
    assert sent(second)["custom_id"].startswith("row-")
    assert isinstance(first, Rendered)
    assert json.loads(first.carried or b"") == {"id": 1, "day": "2026-01-31", "raw": "YWI="}


def test_a_file_that_is_not_parquet_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(TailraceError, match="can't be read as Parquet"):
        list(read(file(tmp_path, "hello", "in.parquet")))


# ----------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "line 1: is not valid JSON"),
        (b'{"a": 1} {"b": 2}', "line 1: is not valid JSON"),
        (b'{"prompt": NaN}', "line 1: is not valid JSON"),
        (b"[1]", "line 1: is not a JSON object"),
        (b'{"prompt": "\xff"}', "line 1: is not UTF-8 text"),
        (b'{"prompt": "\\ud800"}', "line 1: is not valid JSON"),
        (b'{"prompt": " "}', "line 1: prompt: is empty"),
        (b'{"prompt": 3}', "line 1: prompt: must be a string"),
        (b'{"messages": []}', "line 1: messages: must be an array"),
        (b'{"messages": ["hi"]}', "line 1: messages[0]: must be an object with a 'role'"),
        (b'{"text": "hi"}', "line 1: has no 'prompt', 'messages' or 'body' (it has 'text')"),
        (b'{"custom_id": "", "prompt": "hi"}', "line 1: custom_id: must be a string"),
        (b'{"custom_id": [1], "prompt": "hi"}', "line 1: custom_id: must be a string"),
        (b'{"custom_id": "a", "body": 1}', "line 1: body: must be a JSON object"),
        (b'{"custom_id": "a", "body": {}}', "line 1: body.messages: must be an array"),
        (b'{"custom_id": "a", "method": "GET", "body": {}}', "line 1: method: must be POST"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "line 1: url: must be /v1/chat"),
        (b'{"custom_id": "a", "headers": 1, "body": {}}', "line 1: headers: must be a JSON object"),
    ],
)
def test_a_bad_line_says_line_and_field(tmp_path: Path, line: bytes, complaint: str) -> None:
    """And the rows around it are read."""
    good = b'{"prompt": "hi"}'
    bad, fine = rendered(file(tmp_path, line + b"\n" + good + b"\n"))
    assert isinstance(bad, InvalidRow)
    assert str(bad).startswith(complaint)
    assert isinstance(fine, Rendered)


def test_a_model_is_missing() -> None:
    with pytest.raises(InvalidRow, match="line 1: model: is missing: say --model"):
        one({"prompt": "hi"}, model=None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,prompt\n1\n2,b\n", "line 2: has 1 cells where the header has 2"),
        ('id,prompt\n1,"a"b\n2,b\n', "line 2: is not valid CSV"),
        (b"id,prompt\n1,\xff\n2,b\n", "line 2: is not UTF-8 text"),
    ],
)
def test_a_bad_row_of_csv(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    bad, fine = rendered(file(tmp_path, text, "in.csv"))
    assert isinstance(bad, InvalidRow)
    assert str(bad).startswith(complaint)
    assert isinstance(fine, Rendered)


def test_a_column_twice_in_a_header(tmp_path: Path) -> None:
    with pytest.raises(TailraceError, match="column 'a' more than once"):
        list(read(file(tmp_path, "a,a\n1,2\n", "in.csv")))


# -------------------------------------------------------------------------------------------------------- templates


def test_a_template_over_the_columns(tmp_path: Path) -> None:
    path = file(tmp_path, "Capital of {{ country | upper }}?\n", "prompt.j2")
    for text in (str(path), "Capital of {{ country | upper }}?"):
        row = one({"id": "fr", "country": "France"}, template=Template(text))
        assert sent(row)["body"]["messages"][0]["content"] == "Capital of FRANCE?"
        assert json.loads(row.carried or b"") == {"id": "fr", "country": "France"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{{ city }}", "'city' is undefined"),
        ("{{ country.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 // 0 }}", "integer division"),
        ("{% if false %}{% endif %}", "the template's text: is empty"),
    ],
)
def test_a_template_that_fails_is_an_error_of_its_row(text: str, complaint: str) -> None:
    with pytest.raises(InvalidRow, match=f"^line 1: .*{complaint}"):
        one({"country": "France"}, template=Template(text))


def test_a_template_is_for_columns() -> None:
    with pytest.raises(InvalidRow, match="for which --template has no use"):
        one({"body": {"messages": MESSAGES}}, template=Template("{{ a }}"))
