"""Who leads a run, and whether that is more than chance."""

from __future__ import annotations

import msgspec

from tailrace.evaluation import standing
from tailrace.evaluation.figures import Estimate, Figures, PairFigures
from tests.support.evaluation import made_run


def _figures(p: float | None, difference: float = -0.1) -> Figures:
    """Of acme:large-2 (a) and acme:small-2 (b)."""
    figures = made_run(arms=2, items=30).figures
    estimate = Estimate(difference, difference - 0.08, difference + 0.05, 30, 30, "t")
    pair = PairFigures("acme:large-2", "acme:small-2", "numeric", estimate, p, p, "permutation", 3, 9, 18)
    other = msgspec.structs.replace(pair, scorer="judge")
    return msgspec.structs.replace(figures, pairs=[pair, other])


def test_the_better_one_of_a_pair_comes_as_b() -> None:
    (pair,) = standing.comparisons(_figures(0.01), "numeric")
    assert (pair.b, pair.a, pair.wins, pair.losses, pair.ties) == ("acme:large-2", "acme:small-2", 9, 3, 18)
    d = pair.difference
    assert (d.mean, d.low, d.high) == (0.1, 0.1 - 0.05, 0.1 + 0.08)
    kept = _figures(0.01, 0.1)
    assert standing.comparisons(kept, "numeric") == kept.pairs[:1]


def test_the_surest_difference_comes_first_and_what_nobody_knows_last() -> None:
    figures = _figures(0.01)
    pairs = [msgspec.structs.replace(figures.pairs[0], p_adjusted=p) for p in (None, 0.5, 0.01, 0.04)]
    found = standing.comparisons(msgspec.structs.replace(figures, pairs=pairs), "numeric")
    assert [pair.p_adjusted for pair in found] == [0.01, 0.04, 0.5, None]
    assert [standing.is_sure(pair) for pair in found] == [True, True, False, False]


def test_the_ranking_has_those_without_a_score_last() -> None:
    figures = made_run().figures
    first, *others = figures.arms
    scorers = {name: msgspec.structs.replace(own, score=None) for name, own in first.scorers.items()}
    figures = msgspec.structs.replace(
        figures, arms=[msgspec.structs.replace(first, scorers=scorers), *others]
    )
    ranked = standing.ranking(figures, "numeric")
    assert [(arm.place, arm.label) for arm in ranked] == [
        (1, "acme:small-2"),
        (2, "local:tiny-135m"),
        (0, "acme:large-2"),
    ]


def test_the_headline_says_whether_chance_explains_it() -> None:
    sure = standing.headline(_figures(0.0004), "numeric")
    assert sure.startswith("acme:large-2 scores ")
    assert sure.endswith(
        "acme:large-2 is 10.0 points ahead of acme:small-2, which chance hardly explains (p <0.001, adjusted)."
    )
    assert "which may well be chance (p = 0.21, adjusted)" in standing.headline(_figures(0.21), "numeric")
    assert "too little to say" in standing.headline(_figures(None), "numeric")
    assert "and so does acme:small-2" in standing.headline(_figures(1.0, 0.0), "numeric")


def test_the_headline_of_one_arm_compares_it_with_nothing() -> None:
    said = standing.headline(made_run(arms=1).figures, "numeric")
    assert said.count("acme:large-2") == 1
    assert standing.headline(made_run(arms=1).figures, "no such scorer") == "No sample has a score yet."
