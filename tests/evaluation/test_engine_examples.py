"""What ``examples/engines`` calls right, and the questions that it asks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ENGINES = Path(__file__).parents[2] / "examples" / "engines"


@pytest.fixture(scope="module")
def scoring() -> Any:
    """The module that both engines import from their task's folder."""
    spec = importlib.util.spec_from_file_location("engines_scoring", ENGINES / "scoring.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("5", "2 + 3 = 5.", True),
        ("5", "It is 5, of course.", True),
        ("5", "That makes 25.", False),
        ("5", "About 1.5 of them.", False),
        ("5", "There are 5,000.", False),
        ("0", "The difference is 10.", False),
        ("Sun", "It is the sun.", True),
        ("Sun", "On a Sunday.", False),
        ("carbon dioxide", "Carbon dioxide, mostly.", True),
        ("Oslo", "", False),
    ],
)
def test_an_answer_counts_where_it_stands_alone(scoring: Any, answer: str, text: str, right: bool) -> None:
    """A number inside another one is another number."""
    assert scoring.says(answer, text) is right


def test_repeats_are_scored_by_their_mean(scoring: Any) -> None:
    """lm-eval hands over one text, or the list of a question's repeats."""
    assert scoring.process_results({"answer": "5"}, ["5"]) == {"acc": 1.0}
    assert scoring.process_results({"answer": "5"}, [["5", "6", "5", ""]]) == {"acc": 0.5}


def test_no_question_holds_its_answer(scoring: Any) -> None:
    """A model that repeats the question is not right; ids are unique."""
    rows = [json.loads(line) for line in (ENGINES / "questions.jsonl").read_text("utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) > 20
    assert not [row["id"] for row in rows if scoring.says(row["answer"], row["question"])]
