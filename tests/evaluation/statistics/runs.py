"""Samples to count."""

from __future__ import annotations

from typing import Any

from tailrace.evaluation.shapes import Failure, Outcome, Record, Sample, Score

ANSWER = Record(cache="miss", cost_nano=10, answer_cost_nano=10, prompt_tokens=7, completion_tokens=3)


def sample(arm: str, item: str, value: float | None = 1.0, **changes: Any) -> Sample:
    """An answer with that score by ``exact``; with None the scorer failed."""
    given: dict[str, Any] = {
        "arm": arm,
        "model": f"fake:{arm}",
        "prompt": "default",
        "item": item,
        "sample": 0,
        "category": None,
        "outcome": Outcome.ANSWERED,
        "text": f"{arm} says {value}",
        "record": ANSWER,
        "scores": {"exact": Score(value)},
    }
    return Sample(**(given | changes))


def failed(arm: str, item: str, code: str = "timeout", **changes: Any) -> Sample:
    given: dict[str, Any] = {
        "outcome": Outcome.ERROR,
        "text": None,
        "error": Failure(code, "no answer"),
        "scores": {},
    }
    return sample(arm, item, None, **(given | {"record": Record(cost_nano=4)} | changes))


def missing(arm: str, item: str, **changes: Any) -> Sample:
    given: dict[str, Any] = {"outcome": Outcome.MISSING, "text": None, "scores": {}, "record": Record()}
    return sample(arm, item, None, **(given | changes))
