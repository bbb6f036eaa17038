"""The scorer json_schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers import make
from tailrace.evaluation.scorers.json_schema import found
from tests.evaluation.scorers.answers import answer, score, value

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def spec(schema: Any) -> suite.JsonSchema:
    return suite.JsonSchema(schema=schema)


@pytest.mark.parametrize(
    ("text", "expected", "explanation"),
    [
        ('{"n": 1}', 1, None),
        ('  {"n": 1}\n', 1, None),
        ('```json\n{"n": 1}\n```', 1, None),
        ('```\n{"n": 1}\n```', 1, None),
        ('~~~\n{"n": 1}\n~~~', 1, None),
        ('Sure:\n```json\n{"n": 1}\n```\nAnything else?', 1, None),
        ('Here it is: {"n": 1}. Anything else?', 1, None),
        ('As [1] says, {"n": 1}', 1, None),
        ('{"n": {"n": 1}}', 0, "$.n: {'n': 1} is not of type 'integer'"),
        ('{"n": 1.5}', 0, "$.n: 1.5 is not of type 'integer'"),
        ("{}", 0, "$: 'n' is a required property"),
        ("[1]", 0, "$: [1] is not of type 'object'"),
        ('{"n": 1} or {"n": 2}', 0, "the answer has 2 JSON values, not one"),
        ('{"n": 1', 0, "the answer is not JSON"),
        ("{'n': 1}", 0, "the answer is not JSON"),
        ('{"n": 1,}', 0, "the answer is not JSON"),
        ('{"n": NaN}', 0, "the answer is not JSON: NaN is no JSON"),
        ("", 0, "the answer is empty"),
        ("No.", 0, "the answer is not JSON"),
        ("```json\n{n: 1}\n```", 0, "what is in the fence is not JSON"),
        ("[" * 100_000, 0, "the answer is not JSON: it is nested too deeply"),
        ("{" * 100_000, 0, "the answer is not JSON"),
        ('{"a":' * 5_000, 0, "the answer is not JSON"),
        ('{"n": ' + "1" * 5_000 + "}", 0, "the answer is not JSON"),
    ],
)
def test_answers(text: str, expected: float, explanation: str | None) -> None:
    (result,) = score(spec(SCHEMA), answer(text))
    assert result.error is None
    assert result.value == expected
    assert (result.explanation or "").startswith(explanation or "")


@given(VALUES)
def test_any_json_is_found_bare_and_in_a_fence(thing: Any) -> None:
    text = json.dumps(thing, indent=2)
    assert found(text)[1] == thing
    assert found(f"Here:\n```json\n{text}\n```\nBye")[1] == thing


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_any_object_is_found_between_words(thing: Any) -> None:
    assert found(f"Here it is: {json.dumps(thing)} and that's it.")[1] == thing


@pytest.mark.parametrize(
    ("format", "good", "bad"),
    [
        ("date", "2024-02-29", "2023-02-29"),
        ("date-time", "2024-02-29T10:00:00Z", "2024-02-29"),
        ("date-time", "2024-02-29T10:00:00.5+02:00", "2024-02-29T25:00:00Z"),
        ("time", "10:00:00Z", "10:00"),
        ("email", "a@example.com", "a.example.com"),
        ("ipv4", "127.0.0.1", "127.0.0.256"),
        ("uri", "https://example.com/a", "example"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
        ("regex", "a+", "("),
    ],
)
def test_formats_are_checked(format: str, good: str, bad: str) -> None:
    schema = spec({"type": "string", "format": format})
    assert value(schema, json.dumps(good)) == 1
    assert value(schema, json.dumps(bad)) == 0


def test_a_schema_may_be_a_file_beside_the_suite(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (result,) = score(spec(Path("schema.json")), answer('{"n": 1}'), folder=tmp_path)
    assert result.value == 1


def test_the_draft_is_the_one_that_the_schema_names() -> None:
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 5, "exclusiveMaximum": True}
    assert value(spec(draft4), "5") == 0
    assert value(spec(True), "5") == 1
    assert value(spec(False), "5") == 0


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "strnig"}, r"\$.type: "),
        ({"properties": 5}, r"\$.properties: "),
        ({"$ref": "#/$defs/none"}, r"\$ref '#/\$defs/none' leads nowhere"),
        ({"items": {"$ref": "https://example.com/schema"}}, "leads nowhere"),
        (Path("absent.json"), "absent.json can't be read: No such file"),
        (Path("broken.json"), "broken.json is not JSON"),
        (Path("list.json"), "must have an object"),
    ],
)
def test_a_schema_that_is_none_is_told_before_anything_is_asked(
    tmp_path: Path, schema: Any, what: str
) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(TailraceError, match=f"^json_schema: schema: .*{what}"):
        make(spec(schema), tmp_path)


def test_references_within_a_schema_are_followed() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/n"}}}
    assert value(spec(schema), '{"n": 1}') == 1
    assert value(spec(schema), '{"n": "1"}') == 0
    meta = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    assert value(spec(meta), '{"type": "object"}') == 1
    identified = {"$id": "https://example.com/own", "$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}
    assert value(spec(identified), "1") == 1
