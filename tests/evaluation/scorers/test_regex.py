"""The scorer regex."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers import check_items, make, regex
from tests.evaluation.scorers.answers import answer, score, value

#: A pattern and a text that no search ends of.
ENDLESS, TEXT = r"(a+)+$|answer: (\d+)", "a" * 40 + "b"


@pytest.mark.parametrize(
    ("pattern", "text", "targets", "expected"),
    [
        (r"\d+", "it is 5", [], 1),
        (r"\d+", "none", [], 0),
        (r"^\d+$", "5 apples", [], 0),
        (r"answer: (\w+)", "ANSWER: B", ["b"], 1),
        (r"answer: (\w+)", "answer: A, no, answer: B", ["B"], 1),
        (r"answer: (\w+)", "answer: B, no, answer: A", ["B"], 0),
        (r"answer: (\w+)", "answer: B", [], 1),
        (r"answer: (.+)", "answer: **Paris.**", ["paris"], 1),
        (r"(x)|y", "x y", ["x"], 1),
        (r"(x)|y", "y", ["x"], 0),
        (r"(x)|y", "y", [], 0),
        (r"()", "y", [], 1),
        (r"\b{{ target | escape_regex }}\b", "it is c.d", ["c.d"], 1),
        (r"\b{{ target | escape_regex }}\b", "it is cxd", ["c.d"], 0),
        (r"{{ targets | join('|') }}", "it is b", ["a", "b"], 1),
        (r"\d{2}", "it is 42", [], 1),
        (r"(?s)a.b", "a\nb", [], 1),
        (r"[[a]", "a", [], 1),
        ("é", "É", [], 1),
    ],
)
def test_patterns(pattern: str, text: str, targets: list[str], expected: float) -> None:
    assert value(suite.Regex(pattern=pattern), text, *targets) == expected


def test_case_counts_where_it_is_asked_for() -> None:
    assert value(suite.Regex(pattern="paris", ignore_case=False), "Paris") == 0


def test_columns_stand_in_patterns() -> None:
    assert value(suite.Regex(pattern="^{{ unit }}$"), "km", unit="km|mi") == 1
    assert value(suite.Regex(pattern="{{ 2 * n }}"), "it is 8", n=4) == 1


@pytest.mark.parametrize(
    "pattern", ["(", "[a", "*", "(?P<x>a)(?P<x>b)", "a{2,1}", "{{ x", "{% if %}", "{{ x | nofilter }}"]
)
def test_a_pattern_that_is_none_is_told_before_anything_is_asked(pattern: str) -> None:
    with pytest.raises(TailraceError, match=r"^regex: pattern: "):
        make(suite.Regex(pattern=pattern), Path())


@pytest.mark.parametrize(
    ("pattern", "what"),
    [("{{ nosuch }}", "'nosuch' is undefined"), ("{{ target }}", "is no regular expression")],
)
def test_a_pattern_that_fails_for_an_item_names_it(pattern: str, what: str) -> None:
    items = [answer("", "fine").item, answer("", "(").item]
    with pytest.raises(TailraceError, match=f"^regex: item 'q1': pattern: .*{what}"):
        check_items(suite.Regex(pattern=pattern), items)
    assert score(suite.Regex(pattern=pattern), answer("", "("))[0].error is not None


def test_templates_are_sandboxed() -> None:
    spec = suite.Regex(pattern="{{ target.__class__.__mro__ }}")
    with pytest.raises(TailraceError, match=r"unsafe|undefined"):
        check_items(spec, [answer("", "x").item])


def test_a_search_without_an_end_is_given_up_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex, "SEARCH", 0.3)
    spec = suite.Regex(pattern=ENDLESS)
    before, hung, after = score(spec, answer("answer: 5", "x"), answer(TEXT, "x"), answer("aaa", "aaa"))
    assert (before.value, after.value) == (0.0, 1.0)
    assert (hung.value, hung.error) == (None, "the pattern took more than 0.3 s")


def test_a_pattern_that_hangs_again_and_again_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex, "SEARCH", 0.1)
    monkeypatch.setattr(regex, "PATIENCE", 2)
    began = time.monotonic()
    scores = score(suite.Regex(pattern=ENDLESS), *[answer(TEXT, "x")] * 500)
    assert [found.error for found in scores[:2]] == ["the pattern took more than 0.1 s"] * 2
    assert {found.error for found in scores[2:]} == {
        "not tried: the pattern took more than 0.1 s for 2 answers"
    }
    assert time.monotonic() - began < 50  # of 500 searches
