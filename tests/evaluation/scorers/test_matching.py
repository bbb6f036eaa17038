"""The scorers exact, includes and f1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.evaluation import suite
from tailrace.evaluation.scorers.matching import f1
from tests.evaluation.scorers.answers import answer, score, value
from tests.evaluation.scorers.test_text import TEXTS

EXACT, INCLUDES, F1 = suite.Exact(), suite.Includes(), suite.F1()


@pytest.mark.parametrize(
    ("text", "targets", "expected"),
    [
        ("Paris", ["paris"], 1),
        ("**Paris.**", ["Rome", "Paris"], 1),
        ("Paris, France", ["Paris"], 0),
        ("", ["Paris"], 0),
        ("", [""], 1),
        ("  ", [""], 1),
        ("?", ["?"], 1),
        ("!", ["?"], 0),
        ("...", [""], 0),
        ("A", ["a"], 1),
        ("The", ["the"], 1),
        ("-5", ["5"], 0),
    ],
)
def test_exact(text: str, targets: list[str], expected: float) -> None:
    assert value(EXACT, text, *targets) == expected


def test_a_repeated_prompt_is_passed_over() -> None:
    prompt = "What is the capital of France? Options: Paris, Rome."
    assert value(EXACT, f"{prompt}\nRome", "Rome", prompt=prompt) == 1
    assert value(INCLUDES, f"{prompt}\nRome", "Paris", prompt=prompt) == 0
    assert value(INCLUDES, prompt, "Paris", prompt=prompt) == 1  # nothing follows: it is the answer


def test_a_target_may_be_the_whole_sentence_that_the_prompt_began() -> None:
    prompt = "The capital of France is"
    assert (
        value(EXACT, "The capital of France is Paris.", "The capital of France is Paris", prompt=prompt) == 1
    )
    assert value(EXACT, "The capital of France is Paris.", "Paris", prompt=prompt) == 1
    assert value(F1, "The capital of France is Paris.", "The capital of France is Paris", prompt=prompt) == 1


def test_includes_takes_any_target_or_all_of_them() -> None:
    text = "Paris and Rome"
    assert value(INCLUDES, text, "Rome", "Berlin") == 1
    both = suite.Includes(all=True)
    assert value(both, text, "Rome", "Berlin") == 0
    assert value(both, text, "Rome", "Paris") == 1
    (found,) = score(both, answer(text, "Rome", "Berlin"))
    assert found.answer == "Rome"
    assert found.explanation == "is without 'Berlin'"


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("the cat sat", "cat sat", 1.0),
        ("cat", "the cat", 1.0),
        ("cat dog", "cat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("cat", "", 0.0),
        ("", "", 1.0),
        ("the", "the", 1.0),
        ("the", "a", 0.0),
        ("北京市", "北京", 0.8),
        # the example of the SQuAD paper's definition: 3 common tokens, 5 found, 4 wanted
        ("one two three four five", "one two three six", 6 / 9),
    ],
)
def test_f1(text: str, target: str, expected: float) -> None:
    assert value(F1, text, target) == pytest.approx(expected)


def test_f1_is_the_best_over_the_targets() -> None:
    assert value(F1, "cat dog", "bird", "cat", "cat dog") == 1


@given(TEXTS, TEXTS)
def test_exact_implies_f1_and_includes(text: str, target: str) -> None:
    for wanted in (target, text, f"**{text}**", text.upper()):
        if value(EXACT, text, wanted):
            assert value(F1, text, wanted) == 1
            assert value(INCLUDES, text, wanted) == 1
            assert value(suite.Includes(all=True), text, wanted) == 1


@given(st.lists(st.sampled_from("abcde"), max_size=8), st.lists(st.sampled_from("abcde"), max_size=8))
def test_f1_is_symmetric_and_within_bounds(one: list[str], other: list[str]) -> None:
    assert f1(one, other) == f1(other, one)
    assert 0 <= f1(one, other) <= 1
    assert (f1(one, other) == 1) == (sorted(one) == sorted(other) != [])


def test_an_explanation_says_what_was_wanted() -> None:
    (found,) = score(EXACT, answer("Rome", "Paris", "Lutetia"))
    assert found.answer == "Rome"
    assert found.explanation == "is not 'Paris' or 'Lutetia'"
