"""Scorers that compare texts: exact, includes, F1."""

from __future__ import annotations

from collections import Counter

from tailrace.evaluation import suite
from tailrace.evaluation.scorers.base import Each, said, shortened
from tailrace.evaluation.scorers.text import contains, normalise, same, tokens
from tailrace.evaluation.shapes import Answer, Score


def _tellings(answer: Answer) -> list[str]:
    """What an answer says, with and without a prompt that it repeats: a target may be a whole sentence, whose beginning
    was the prompt."""
    return list(dict.fromkeys([said(answer), answer.text.strip()]))


def _is_exact(answer: Answer, target: str) -> bool:
    return any(same(text, target) for text in _tellings(answer))


class Exact(Each):
    """1 where the answer and a target are the same once normalised."""

    def __init__(self, spec: suite.Exact) -> None:
        super().__init__(spec.label)

    def one(self, answer: Answer) -> Score:
        text = said(answer)
        if any(_is_exact(answer, target) for target in answer.item.targets):
            return Score(1.0, answer=text)
        return Score(0.0, answer=text, explanation=f"is not {_any_of(answer.item.targets)}")


class Includes(Each):
    """1 where a target (with ``all``, each of them) stands in the answer as whole words."""

    def __init__(self, spec: suite.Includes) -> None:
        super().__init__(spec.label)
        self._all = spec.all

    def one(self, answer: Answer) -> Score:
        text = said(answer)
        words = normalise(text)
        missing = [target for target in answer.item.targets if not _includes(answer, text, words, target)]
        found = [target for target in answer.item.targets if target not in missing]
        if found and not (self._all and missing):
            return Score(1.0, answer=", ".join(found))
        without = _any_of(missing) if not self._all else ", ".join(shortened(target) for target in missing)
        return Score(0.0, answer=", ".join(found) or None, explanation=f"is without {without}")


def _includes(answer: Answer, text: str, words: str, target: str) -> bool:
    wanted = normalise(target)
    inside = contains(words, wanted) if wanted else bool(target.strip()) and target.strip() in text
    return inside or _is_exact(answer, target)


class F1(Each):
    """F1 over tokens, the best over the targets: Rajpurkar et al., SQuAD (2016), with our own normalisation."""

    def __init__(self, spec: suite.F1) -> None:
        super().__init__(spec.label)

    def one(self, answer: Answer) -> Score:
        value = max((_f1(answer, target) for target in answer.item.targets), default=0.0)
        return Score(value, answer=said(answer))


def _f1(answer: Answer, target: str) -> float:
    if _is_exact(answer, target):
        return 1.0
    wanted = tokens(target)
    return max(f1(tokens(text), wanted) for text in _tellings(answer))


def f1(found: list[str], wanted: list[str]) -> float:
    """The harmonic mean of precision and recall over two bags of tokens; 0 where either is empty."""
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def _any_of(targets: tuple[str, ...] | list[str]) -> str:
    return " or ".join(shortened(target) for target in targets) or "anything: the item has no target"
