"""What a suite's scorers are made of, and what is told of items before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers import check_items, make, needs_target
from tests.evaluation.scorers.answers import answer, score

SIMPLE: list[suite.Scorer] = [
    suite.Exact(),
    suite.Includes(),
    suite.Includes(all=True),
    suite.Choice(),
    suite.Numeric(),
    suite.F1(),
    suite.JsonSchema(schema=True),
]


@pytest.mark.parametrize(
    ("spec", "needed"),
    [(spec, not isinstance(spec, suite.JsonSchema)) for spec in SIMPLE]
    + [
        (suite.Regex(pattern="x"), False),
        (suite.Judge(model="m"), False),
        (suite.Function(function="m:f"), False),
    ],
)
def test_which_scorers_need_a_target(spec: suite.Scorer, needed: bool) -> None:
    assert needs_target(spec) is needed
    if needed:
        with pytest.raises(TailraceError, match=f"^{spec.label}: item 'q1': target: is missing"):
            check_items(spec, [answer("").item])
    else:
        check_items(spec, [answer("").item])


def test_scorers_are_called_by_their_names() -> None:
    assert make(suite.Exact(), Path()).label == "exact"
    assert make(suite.Exact(name="same"), Path()).label == "same"
    with pytest.raises(TailraceError, match=r"^sum: item 'q1': target: 'many' is not one number"):
        check_items(suite.Numeric(name="sum"), [answer("", "4").item, answer("", "many").item])


def test_judges_are_made_elsewhere() -> None:
    with pytest.raises(TypeError):
        make(suite.Judge(model="m"), Path())


def test_every_target_of_an_item_is_looked_at() -> None:
    with pytest.raises(TailraceError, match="'x' is not one number"):
        check_items(suite.Numeric(), [answer("", "4", "x").item])


@pytest.mark.parametrize("spec", SIMPLE, ids=lambda spec: spec.label)
def test_an_empty_answer_is_wrong_and_no_error(spec: suite.Scorer) -> None:
    (found,) = score(spec, answer("", "B" if isinstance(spec, suite.Choice) else "5"))
    assert (found.value, found.error) == (0.0, None)


@given(st.text(max_size=80), st.sampled_from(SIMPLE))
def test_any_answer_has_a_score_within_bounds(text: str, spec: suite.Scorer) -> None:
    target = "B" if isinstance(spec, suite.Choice) else "5"
    (found,) = score(spec, answer(text, target))
    assert found.error is None
    assert found.value is not None
    assert 0 <= found.value <= 1


def test_nothing_is_scored_where_nothing_is_answered() -> None:
    assert all(score(spec) == [] for spec in SIMPLE)
