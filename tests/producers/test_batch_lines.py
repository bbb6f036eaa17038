"""A line of a batch's input file: what it asks for, or what is wrong with it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers import batchlines
from producers.batchlines import Headers, InputRow, Line, LineError, read_lines, read_row
from schemas.batches import MAX_CUSTOM_ID

MOST = 10_000
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}
MISSING = object()


def line(**fields: Any) -> bytes:
    return json.dumps({k: v for k, v in {**GOOD, **fields}.items() if v is not MISSING}).encode()


def read(data: bytes) -> InputRow | list[LineError]:
    return read_row(Line(7, data), MOST)


def errors(data: bytes) -> list[tuple[str, str | None]]:
    found = read(data)
    assert isinstance(found, list), found
    assert all(error.line == 7 and error.message for error in found)
    return [(error.code, error.param) for error in found]


def good(data: bytes) -> InputRow:
    found = read(data)
    assert isinstance(found, InputRow), found
    return found


def test_a_row_is_read() -> None:
    row = good(line())
    assert (row.line, row.custom_id, row.headers) == (7, "a", Headers())
    assert row.request.params() == BODY


def test_a_row_under_the_other_path_and_one_that_streams_are_read_too() -> None:
    good(line(url="/api/v1/llm/chat/completions"))
    assert good(line(body=BODY | {"stream": True})).request.stream


def test_headers_of_a_row_count_in_any_case() -> None:
    sent = {"X-Sample": "3", "cache-control": "no-cache, max-age=5", "X-ON-BEHALF-OF": "ann"}
    assert good(line(headers=sent)).headers == Headers(3, "no-cache, max-age=5", "ann")
    assert good(line(headers={})).headers == good(line(headers=None)).headers == Headers()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", "invalid_json_line"),
        (b'{"custom_id": "a"} {}', "invalid_json_line"),
        (b'{"body": NaN}', "invalid_json_line"),
        (b'{"custom_id": "\\ud800"}', "invalid_json_line"),
        (b"[" * 9000, "invalid_json_line"),
        (b"[1]", "invalid_json_line"),
        (b'"text"', "invalid_json_line"),
        (b"null", "invalid_json_line"),
        (b"\xef\xbb\xbf" + line(), "invalid_json_line"),
        (line().replace(b"hi", b"h\xff"), "invalid_encoding"),
        (line().decode().encode("utf-16"), "invalid_encoding"),
        (b"", "blank_line"),
    ],
)
def test_what_is_no_row_at_all(data: bytes, code: str) -> None:
    assert errors(data) == [(code, None)]


def test_a_line_that_is_too_long() -> None:
    assert read_row(Line(7, None), MOST) == [
        LineError("line_too_long", "This line has more than 10,000 bytes.", None, 7)
    ]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"custom_id": MISSING}, "missing_required_parameter", "custom_id"),
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"custom_id": 5}, "invalid_custom_id", "custom_id"),
        ({"custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "  "}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "a\0"}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "x" * (MAX_CUSTOM_ID + 1)}, "invalid_custom_id", "custom_id"),
        ({"method": MISSING}, "missing_required_parameter", "method"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"method": 5}, "invalid_method", "method"),
        ({"url": MISSING}, "missing_required_parameter", "url"),
        ({"url": "/v1/embeddings"}, "invalid_url", "url"),
        ({"url": ["x"]}, "invalid_url", "url"),
        ({"body": MISSING}, "missing_required_parameter", "body"),
        ({"body": "x"}, "invalid_body", "body"),
        ({"body": [BODY]}, "invalid_body", "body"),
        ({"body": BODY | {"temperature": 3}}, "invalid_request", "body.temperature"),
        ({"body": {"model": "m"}}, "invalid_request", "body.messages"),
        ({"body": BODY | {"messages": [{"role": "x", "content": "y"}]}}, "invalid_request", "body.messages[0].role"),
        ({"bodi": BODY}, "unknown_parameter", "bodi"),
        ({"headers": []}, "invalid_headers", "headers"),
        ({"headers": {"Authorization": "x"}}, "invalid_headers", "headers.Authorization"),
        ({"headers": {"x-sample": 1}}, "invalid_headers", "headers.x-sample"),
        ({"headers": {"x-sample": "-1"}}, "invalid_headers", "headers.x-sample"),
        ({"headers": {"Cache-Control": "max-age=soon"}}, "invalid_headers", "headers.Cache-Control"),
        ({"headers": {"X-On-Behalf-Of": " "}}, "invalid_headers", "headers.X-On-Behalf-Of"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_field(fields: dict[str, Any], code: str, param: str) -> None:
    assert errors(line(**fields)) == [(code, param)]


def test_everything_that_is_wrong_with_a_row_is_told() -> None:
    wrong = line(custom_id=5, method="GET", url="x", body={}, headers={"a": "b"}, more=1)
    assert {param for _, param in errors(wrong)} == {
        *("custom_id", "method", "url", "body.model", "headers.a", "more")
    }


def test_the_message_names_the_field_of_the_body() -> None:
    found = read(line(body=BODY | {"temperature": 3}))
    assert isinstance(found, list)
    assert found[0].message == "'body.temperature' must be at most 2."


_NUMBERS = st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.none() | st.booleans() | _NUMBERS | st.text(max_size=4)
_FIELDS = {
    "custom_id": st.just("a") | _VALUES,
    "method": st.just("POST") | _VALUES,
    "url": st.just("/v1/chat/completions") | _VALUES,
    "body": st.just(BODY)
    | st.fixed_dictionaries(
        {"model": st.just("m") | _VALUES, "messages": st.just(BODY["messages"]) | _VALUES},
        optional={"temperature": _VALUES, "max_tokens": _VALUES, "x": _VALUES},
    )
    | _VALUES,
}


@given(st.fixed_dictionaries({}, optional={**_FIELDS, "headers": st.just({}) | _VALUES, "other": _VALUES}))
def test_the_short_way_through_a_row_says_what_the_long_one_does(fields: dict[str, Any]) -> None:
    data = json.dumps(fields).encode()
    short, long = read_row(Line(1, data), MOST), batchlines._read_fields(1, data)
    assert short == long


def lines(data: bytes, most: int = MOST) -> list[tuple[int, bytes | None]]:
    return [(found.number, found.data) for found in read_lines(io.BytesIO(data), most)]


def test_line_ends_byte_order_mark_and_blank_lines_at_the_end_are_passed_over() -> None:
    assert lines(b"\xef\xbb\xbf1\r\n2\n3") == [(1, b"1"), (2, b"2"), (3, b"3")]
    assert lines(b"1\n\n \r\n\n") == [(1, b"1")]
    assert lines(b"") == lines(b"\n\n") == lines(b"\xef\xbb\xbf") == []


def test_blank_lines_between_rows_are_found() -> None:
    assert lines(b"\n1\n \n\r\n2\n\n") == [(1, b""), (2, b"1"), (3, b""), (4, b""), (5, b"2")]


@given(
    st.lists(st.integers(0, 12), max_size=8), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans()
)
def test_no_line_is_longer_than_it_may_be(sizes: list[int], end: bytes, mark: bool, open_end: bool) -> None:
    rows = [b"x" * (size + 1) for size in sizes]
    data = (b"\xef\xbb\xbf" if mark else b"") + b"".join(row + end for row in rows)
    if open_end and rows:
        data = data.removesuffix(end)
    expected = [(n + 1, row if len(row) <= 5 else None) for n, row in enumerate(rows)]
    assert lines(data, 5) == expected
