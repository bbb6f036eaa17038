"""Two runs over the same items: who won where, regressions first."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from tailrace.errors import TailraceError
from tailrace.evaluation.estimates import EPSILON, mean
from tailrace.evaluation.figures import Estimate, PairFigures
from tailrace.evaluation.paired import Paired, compare
from tailrace.evaluation.shapes import Sample
from tailrace.evaluation.summarise import pair_figures
from tailrace.evaluation.tallies import scores


class Change(msgspec.Struct, frozen=True):
    """An item that came out otherwise in run b. ``a`` and ``b`` are the means of its scores, None where a run has no
    score for it (errors, or the scorer failed); the samples are all of the item's, in their order, to be shown."""

    item: str
    category: str | None
    a: float | None
    b: float | None
    a_samples: list[Sample]
    b_samples: list[Sample]

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a


class ArmComparison(msgspec.Struct, frozen=True):
    """An arm of run a against its counterpart in run b.

    ``figures`` and the two scores are over the items that both have scores for; None where there are none.
    ``regressions``: the largest loss first; ``improvements``: the largest gain first. ``lost``: items with a score in a
    and none in b, ``gained`` the other way round. ``only_a``, ``only_b``: ids of items that the other run didn't ask.
    """

    a: str
    b: str
    figures: PairFigures | None
    a_score: Estimate | None
    b_score: Estimate | None
    regressions: list[Change]
    improvements: list[Change]
    lost: list[Change]
    gained: list[Change]
    unchanged: int
    only_a: list[str]
    only_b: list[str]


class RunComparison(msgspec.Struct, frozen=True):
    """``unmatched_a``, ``unmatched_b``: arms without a counterpart."""

    scorer: str
    arms: list[ArmComparison]
    unmatched_a: list[str]
    unmatched_b: list[str]


def compare_runs(
    a: Sequence[Sample],
    b: Sequence[Sample],
    scorer: str,
    arms: Sequence[tuple[str, str]] | None = None,
) -> RunComparison:
    """Run ``b`` against run ``a`` under one scorer, on the items with the same id.

    ``arms`` pairs a's with b's; by default those with the same key, or, where each run has one alone, these two.
    p-values are adjusted for all pairs. Raises TailraceError where a run knows no such arm or scorer, or no arm has a
    counterpart.
    """
    runs = _by_arm_and_item(a), _by_arm_and_item(b)
    for name, run in zip("ab", (a, b), strict=True):
        _knows_scorer(name, run, scorer)
    matched = _match(list(runs[0]), list(runs[1]), arms)
    values = _scores_by_arm(a, scorer), _scores_by_arm(b, scorer)
    compared: list[tuple[str, str, Paired | None]] = [
        (left, right, compare(values[0][left], values[1][right])) for left, right in matched
    ]
    figures = pair_figures([(x, y, paired) for x, y, paired in compared if paired is not None], scorer)
    by_pair = {(each.a, each.b): each for each in figures}
    return RunComparison(
        scorer=scorer,
        arms=[
            _compare_arms(
                pair,
                (runs[0][pair[0]], runs[1][pair[1]]),
                (values[0][pair[0]], values[1][pair[1]]),
                by_pair.get(pair),
            )
            for pair in matched
        ],
        unmatched_a=[key for key in runs[0] if key not in {left for left, _ in matched}],
        unmatched_b=[key for key in runs[1] if key not in {right for _, right in matched}],
    )


_Items = dict[str, list[Sample]]
_Scores = dict[str, list[float]]


def _compare_arms(
    pair: tuple[str, str],
    items: tuple[_Items, _Items],
    values: tuple[_Scores, _Scores],
    figures: PairFigures | None,
) -> ArmComparison:
    changes = [_change(item, items, values) for item in items[0] if item in items[1]]
    both = [change for change in changes if change.difference is not None]
    shared = [change.item for change in both]
    by_loss = sorted(both, key=lambda change: change.difference or 0.0)  # stable: equal ones as in run a
    return ArmComparison(
        a=pair[0],
        b=pair[1],
        figures=figures,
        a_score=mean([values[0][item] for item in shared]),
        b_score=mean([values[1][item] for item in shared]),
        regressions=[change for change in by_loss if (change.difference or 0.0) < -EPSILON],
        improvements=sorted(
            (change for change in both if (change.difference or 0.0) > EPSILON),
            key=lambda change: -(change.difference or 0.0),
        ),
        lost=[change for change in changes if change.a is not None and change.b is None],
        gained=[change for change in changes if change.a is None and change.b is not None],
        unchanged=sum(abs(change.difference or 0.0) <= EPSILON for change in both),
        only_a=[item for item in items[0] if item not in items[1]],
        only_b=[item for item in items[1] if item not in items[0]],
    )


def _change(item: str, items: tuple[_Items, _Items], values: tuple[_Scores, _Scores]) -> Change:
    a, b = (math.fsum(each[item]) / len(each[item]) if each.get(item) else None for each in values)
    a_samples, b_samples = (sorted(each[item], key=lambda sample: sample.sample) for each in items)
    return Change(
        item=item,
        category=b_samples[0].category or a_samples[0].category,
        a=a,
        b=b,
        a_samples=a_samples,
        b_samples=b_samples,
    )


def _by_arm(run: Iterable[Sample]) -> dict[str, list[Sample]]:
    arms: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in run:
        arms[sample.arm].append(sample)
    return dict(arms)


def _by_arm_and_item(run: Iterable[Sample]) -> dict[str, _Items]:
    found: dict[str, _Items] = {}
    for key, samples in _by_arm(run).items():
        items: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            items[sample.item].append(sample)
        found[key] = dict(items)
    return found


def _scores_by_arm(run: Iterable[Sample], scorer: str) -> dict[str, _Scores]:
    return {key: scores(samples, scorer) for key, samples in _by_arm(run).items()}


def _knows_scorer(name: str, run: Sequence[Sample], scorer: str) -> None:
    known = sorted({each for sample in run for each in sample.scores})
    if known and scorer not in known:
        raise TailraceError(f"scorer: run {name} has no scores by {scorer!r}, it has {', '.join(known)}")


def _match(
    a: Sequence[str], b: Sequence[str], arms: Sequence[tuple[str, str]] | None
) -> list[tuple[str, str]]:
    if arms is not None:
        for name, known, asked in (("a", a, [x for x, _ in arms]), ("b", b, [y for _, y in arms])):
            unknown = next((key for key in asked if key not in known), None)
            if unknown is not None:
                raise TailraceError(f"arms: run {name} has no arm {unknown!r}, it has {', '.join(known)}")
        return list(dict.fromkeys(arms))
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    matched = [(key, key) for key in a if key in b]
    if not matched:
        raise TailraceError(
            f"the runs have no model in common: one has {', '.join(a)}, the other {', '.join(b)}"
        )
    return matched
