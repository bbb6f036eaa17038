"""A scorer out of what a suite says, and whether it suits the items: all that can be known before a model is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers import numbers
from tailrace.evaluation.scorers.base import Scorer, shortened
from tailrace.evaluation.scorers.choice import Choice, options_of, target_letter
from tailrace.evaluation.scorers.function import Function
from tailrace.evaluation.scorers.json_schema import JsonSchema
from tailrace.evaluation.scorers.judge import Judge
from tailrace.evaluation.scorers.matching import F1, Exact, Includes
from tailrace.evaluation.scorers.numeric import Numeric
from tailrace.evaluation.scorers.regex import Regex
from tailrace.evaluation.shapes import Item


def make(spec: suite.Scorer, folder: Path) -> Scorer:
    """The scorer of a spec; ``folder`` is where the suite file is. To be closed. Raises TailraceError where it can't
    work, TypeError for a judge."""
    match spec:
        case suite.Exact():
            return Exact(spec)
        case suite.Includes():
            return Includes(spec)
        case suite.Regex():
            return Regex(spec)
        case suite.Choice():
            return Choice(spec)
        case suite.Numeric():
            return Numeric(spec)
        case suite.JsonSchema():
            return JsonSchema(spec, folder)
        case suite.F1():
            return F1(spec)
        case suite.Function():
            return Function(spec, folder)
        case suite.Judge():
            raise TypeError("a judge is made by the run that asks its model")


def needs_target(spec: suite.Scorer) -> bool:
    """Whether items without a target can't be scored."""
    return isinstance(spec, suite.Exact | suite.Includes | suite.F1 | suite.Choice | suite.Numeric)


def check_items(spec: suite.Scorer, items: Sequence[Item]) -> None:
    """Raises TailraceError that names scorer, item and field where an item does not suit."""
    check = _check(spec)
    for item in items:
        where = f"{spec.label}: item {item.id!r}"
        if needs_target(spec) and not item.targets:
            raise TailraceError(f"{where}: target: is missing; this scorer compares answers with it")
        try:
            check(item, where)
        except TailraceError as error:
            text = str(error)
            raise TailraceError(
                text if text.startswith(where) else f"{where}: {text.removeprefix(f'{spec.label}: ')}"
            ) from None


def _check(spec: suite.Scorer) -> Callable[[Item, str], None]:
    match spec:
        case suite.Numeric():
            return _check_numeric
        case suite.Choice():
            return lambda item, where: _check_choice(spec, item, where)
        case suite.Regex():
            regex = Regex(spec)
            return lambda item, _: regex.check(item)
        case suite.Judge():
            judge = Judge(spec)
            return lambda item, _: judge.check(item)
        case _:
            return lambda item, where: None


def _check_numeric(item: Item, where: str) -> None:
    for target in item.targets:
        if numbers.target(target) is None:
            raise TailraceError(f"{where}: target: {shortened(target)} is not one number")


def _check_choice(spec: suite.Choice, item: Item, where: str) -> None:
    options = options_of(spec, item)
    letters = "".join(options) if options else spec.letters
    for target in item.targets:
        if target_letter(target, letters, options) is None:
            what = "nor the text of an option" if options else "(texts of options need 'choices')"
            raise TailraceError(
                f"{where}: target: {shortened(target)} is neither one of the letters {letters} {what}"
            )
