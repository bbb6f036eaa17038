"""Answers to score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tailrace.evaluation import suite
from tailrace.evaluation.scorers import make
from tailrace.evaluation.shapes import Answer, Item, Score

#: What the options of the tests' questions say.
CAPITALS = ["London", "Paris", "Rome", "Berlin"]


def answer(text: str, *targets: str, prompt: str = "", **columns: Any) -> Answer:
    messages = [{"role": "user", "content": prompt}] if prompt else []
    return Answer(Item("q1", columns.get("input", ""), targets, {}, columns), text, messages)


def score(spec: suite.Scorer, *answers: Answer, folder: Path = Path()) -> list[Score]:
    scorer = make(spec, folder)
    try:
        return scorer.score(answers)
    finally:
        scorer.close()


def value(spec: suite.Scorer, text: str, *targets: str, **more: Any) -> float | None:
    """What one answer is worth."""
    (found,) = score(spec, answer(text, *targets, **more))
    assert found.error is None, found.error
    return found.value
