"""Who leads a run, and by more than chance: figures in the order in which people read them."""

from __future__ import annotations

import dataclasses

import msgspec

from tailrace.evaluation import formats
from tailrace.evaluation.figures import ArmFigures, Estimate, Figures, PairFigures


@dataclasses.dataclass(frozen=True, slots=True)
class Named:
    """An arm with what it is called, and its place in the suite, from 0."""

    place: int
    label: str
    figures: ArmFigures

    def score(self, scorer: str) -> Estimate | None:
        found = self.figures.scorers.get(scorer)
        return None if found is None else found.score


def named(figures: Figures) -> list[Named]:
    """The arms in the order of the suite."""
    labels = formats.labels(figures)
    return [Named(place, labels[arm.key], arm) for place, arm in enumerate(figures.arms)]


def ranking(figures: Figures, scorer: str) -> list[Named]:
    """The best first; those without a score last."""

    def rank(arm: Named) -> tuple[bool, float]:
        score = arm.score(scorer)
        return score is None, 0.0 if score is None else -score.mean

    return sorted(named(figures), key=rank)


def comparisons(figures: Figures, scorer: str) -> list[PairFigures]:
    """The scorer's pairs, each with the better one as ``b``; the surest difference first."""
    pairs = [_oriented(pair) for pair in figures.pairs if pair.scorer == scorer]
    return sorted(
        pairs, key=lambda pair: (2.0 if pair.p_adjusted is None else pair.p_adjusted, -pair.difference.mean)
    )


def is_sure(pair: PairFigures) -> bool:
    """Whether chance is an unlikely reason for the difference."""
    return pair.p_adjusted is not None and pair.p_adjusted < formats.SIGNIFICANT


def headline(figures: Figures, scorer: str) -> str:
    """One or two sentences: who is first, and whether the second is behind by more than chance."""
    scored = [(arm, score) for arm in ranking(figures, scorer) if (score := arm.score(scorer)) is not None]
    if not scored:
        return "No sample has a score yet."
    (first, score), *others = scored
    inside = formats.interval(score)
    said = f"{first.label} scores {formats.score(score)}" + (f" ({inside})" if inside else "")
    if not others:
        return f"{said}."
    second = others[0][0]
    keys = {first.figures.key, second.figures.key}
    pair = next((pair for pair in comparisons(figures, scorer) if {pair.a, pair.b} == keys), None)
    if pair is None:
        return f"{said}, the best of {len(scored)}."
    if pair.difference.mean == 0:
        return f"{said}, and so does {second.label} on the items that both have."
    ahead, behind = (first, second) if pair.b == first.figures.key else (second, first)
    gap = (
        f"{ahead.label} is {formats.points(pair.difference.mean).lstrip('+')} points ahead of {behind.label}"
    )
    if pair.p_adjusted is None:
        return f"{said}, the best of {len(scored)}. {gap}; there is too little to say whether that is chance."
    chance = formats.chance(pair.p_adjusted)
    p = f"p {chance}" if chance.startswith("<") else f"p = {chance}"
    verdict = "which chance hardly explains" if is_sure(pair) else "which may well be chance"
    return f"{said}, the best of {len(scored)}. {gap}, {verdict} ({p}, adjusted)."


def _oriented(pair: PairFigures) -> PairFigures:
    if pair.difference.mean >= 0:
        return pair
    d = pair.difference
    turned = msgspec.structs.replace(
        d, mean=-d.mean, low=None if d.high is None else -d.high, high=None if d.low is None else -d.low
    )
    return msgspec.structs.replace(
        pair, a=pair.b, b=pair.a, difference=turned, wins=pair.losses, losses=pair.wins
    )
