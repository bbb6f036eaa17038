"""The scorer ``numeric``."""

from __future__ import annotations

from tailrace.evaluation import suite
from tailrace.evaluation.scorers import numbers
from tailrace.evaluation.scorers.base import Each, said, shortened
from tailrace.evaluation.shapes import Answer, Score


class Numeric(Each):
    """1 where the answer's final number is a target's value within one of the two tolerances."""

    def __init__(self, spec: suite.Numeric) -> None:
        super().__init__(spec.label)
        self._tolerance = spec.tolerance
        self._relative = spec.relative

    def one(self, answer: Answer) -> Score:
        number = numbers.final(said(answer))
        if number is None:
            return Score(0.0, explanation="there is no number in the answer")
        for target in answer.item.targets:
            wanted = numbers.target(target)
            if wanted is not None and numbers.is_near(
                number.value, wanted, tolerance=self._tolerance, relative=self._relative
            ):
                return Score(1.0, answer=number.text)
        wanted = " or ".join(shortened(target) for target in answer.item.targets)
        return Score(0.0, answer=number.text, explanation=f"{number.text} is not {wanted}")
