"""The lines of batches that a run keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tailrace.evaluation.lines import Lines, with_fields


def answered(id: str, text: str = "yes") -> tuple[str, bytes]:
    body = {"id": f"chatcmpl-{id}", "choices": [{"message": {"content": text}}]}
    line = {"custom_id": id, "response": {"status_code": 200, "body": body}, "error": None}
    return id, json.dumps(line).encode() + b"\n"


def failed(id: str, code: str | None = None, status: int = 500) -> tuple[str, bytes]:
    response = None if code else {"status_code": status, "body": {"error": {"code": "bad"}}}
    error = {"code": code, "message": "no"} if code else None
    return id, json.dumps({"custom_id": id, "response": response, "error": error}).encode() + b"\n"


def texts(lines: Lines) -> dict[str, Any]:
    found = {}
    for id, _, line in lines.read():
        body = line["response"]["body"]
        found[id] = body["choices"][0]["message"]["content"] if "choices" in body else None
    return found


def test_an_answer_is_one_to_what_was_asked(tmp_path: Path) -> None:
    """Of another request it is none, here and when the file is read again."""
    kept = Lines(tmp_path / "a.jsonl")
    assert kept.merge([answered("x")], {"x": "d1"}) == set()
    for lines in (kept, Lines(tmp_path / "a.jsonl")):
        assert lines.answers("x", "d1")
        assert not lines.answers("x", "d2")
        assert not lines.answers("y", "d1")
        assert next(iter(lines.by_request()))[0] == "d1"


def test_rows_that_were_never_sent_have_no_line(tmp_path: Path) -> None:
    """A batch that was stopped says of each that it was cancelled: they are still to be asked."""
    lines = Lines(tmp_path / "a.jsonl")
    given_up = [failed("a", code) for code in ("batch_expired", "batch_cancelled", "batch_stopped")]
    assert lines.merge(given_up, {"a": "d"}) == set()
    assert "a" not in lines
    assert lines.merge([failed("a", "request_timeout")], {"a": "d"}) == {"a"}
    assert lines.failed("a", "d")


def test_an_answer_is_not_lost_to_a_later_failure(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    lines.merge([failed("a")], {"a": "d"})
    lines.merge([answered("a", "at last")], {"a": "d"})
    lines.merge([failed("a")], {"a": "d"})
    assert texts(lines) == {"a": "at last"}
    lines.merge([failed("a")], {"a": "another request"})
    assert texts(lines) == {"a": None}


def test_lines_of_nobody_and_what_is_no_line_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = Lines(path)
    lines.merge([answered("a"), answered("stranger")], {"a": "d"})
    assert set(texts(lines)) == {"a"}
    path.write_bytes(b"{broken\n\xff\xfe\n[]\n" + path.read_bytes() + b'{"custom_id": null}\n')
    assert set(texts(Lines(path))) == {"a"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.text(st.characters(codec=None), max_size=8),  # half surrogate pairs too
        ),
        max_size=12,
    )
)
def test_the_last_answer_stands_whatever_is_in_it(
    tmp_path_factory: Any, merged: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = Lines(path)
    for id, text in merged:
        lines.merge([answered(id, text)], {id: "d"})
    assert texts(lines) == texts(Lines(path)) == dict(merged)


def test_fields_are_added_at_the_end() -> None:
    assert json.loads(with_fields(b'{"a": 1}\n', asked="x\n")) == {"a": 1, "asked": "x\n"}
