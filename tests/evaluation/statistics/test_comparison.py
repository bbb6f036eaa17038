"""Two runs against each other: regressions first, and nothing left out."""

from __future__ import annotations

import msgspec
import pytest

from tailrace.errors import TailraceError
from tailrace.evaluation.comparison import ArmComparison, Change, RunComparison, compare_runs
from tailrace.evaluation.paired import holm
from tailrace.evaluation.shapes import Sample, Score
from tests.evaluation.statistics.runs import failed, missing, sample


def only_arm(a: list[Sample], b: list[Sample]) -> ArmComparison:
    (arm,) = compare_runs(a, b, "exact").arms
    return arm


def moves(changes: list[Change]) -> list[tuple[str, float | None, float | None]]:
    return [(change.item, change.a, change.b) for change in changes]


def run(arm: str, values: dict[str, tuple[float, ...]]) -> list[Sample]:
    return [
        sample(arm, item, value, sample=number)
        for item, scores in values.items()
        for number, value in enumerate(scores)
    ]


def test_regressions_come_first_and_the_largest_loss_first_of_all() -> None:
    arm = only_arm(
        run("m", {"1": (1, 1), "2": (1, 1), "3": (0, 0), "4": (0, 1), "5": (0, 0), "6": (1, 1)}),
        run("m", {"1": (1, 0), "2": (0, 0), "3": (0, 1), "4": (1, 0), "5": (1, 1), "6": (0, 0)}),
    )
    assert moves(arm.regressions) == [("2", 1, 0), ("6", 1, 0), ("1", 1, 0.5)]
    assert moves(arm.improvements) == [("5", 0, 1), ("3", 0, 0.5)]
    assert arm.unchanged == 1
    assert arm.figures is not None
    assert (arm.figures.wins, arm.figures.losses, arm.figures.ties) == (2, 3, 1)
    assert arm.figures.difference.mean == pytest.approx(-1 / 6)
    assert arm.a_score is not None
    assert arm.b_score is not None
    assert arm.b_score.mean - arm.a_score.mean == pytest.approx(arm.figures.difference.mean)


def test_a_change_shows_both_samples_in_their_order() -> None:
    a = run("m", {"1": (1, 0.5)})
    b = [sample("m", "1", 0.0, sample=1, text="second"), sample("m", "1", 0.5, text="first", category="sums")]
    (change,) = only_arm(a, b).regressions
    assert [each.text for each in change.a_samples] == ["m says 1", "m says 0.5"]
    assert [each.text for each in change.b_samples] == ["first", "second"]
    assert [each.scores["exact"].value for each in change.b_samples] == [0.5, 0.0]
    assert change.category == "sums"
    assert change.difference == -0.5


def test_an_item_that_one_run_has_no_score_for_is_lost_or_gained() -> None:
    a = [sample("m", "1"), failed("m", "2"), sample("m", "3"), missing("m", "4"), sample("m", "5", 0.0)]
    b = [failed("m", "1"), sample("m", "2"), sample("m", "3", None), missing("m", "4"), sample("m", "5", 0.0)]
    arm = only_arm(a, b)
    assert moves(arm.lost) == [("1", 1, None), ("3", 1, None)]
    assert moves(arm.gained) == [("2", None, 1)]
    assert arm.lost[0].b_samples[0].error is not None
    assert (arm.regressions, arm.improvements, arm.unchanged) == ([], [], 1)


def test_items_that_only_one_run_asked_are_named() -> None:
    arm = only_arm(run("m", {"1": (1,), "2": (1,)}), run("m", {"2": (1,), "3": (1,)}))
    assert (arm.only_a, arm.only_b) == (["1"], ["3"])
    assert arm.figures is not None
    assert arm.figures.difference.items == 1


def test_arms_of_the_same_key_are_matched() -> None:
    result = compare_runs(
        [sample("gone", "1"), sample("kept", "1", 0.0)],
        [sample("kept", "1", 1.0), sample("new", "1")],
        "exact",
    )
    assert [(arm.a, arm.b) for arm in result.arms] == [("kept", "kept")]
    assert (result.unmatched_a, result.unmatched_b) == (["gone"], ["new"])


def test_runs_of_one_arm_each_are_compared_whatever_their_names() -> None:
    arm = only_arm([sample("small", "1", 0.0)], [sample("large", "1", 1.0)])
    assert (arm.a, arm.b) == ("small", "large")
    assert arm.figures is not None
    assert (arm.figures.a, arm.figures.b) == ("small", "large")


def test_arms_are_matched_as_asked() -> None:
    a = [sample("x", "1", 0.0), sample("y", "1", 0.0)]
    b = [sample("x", "1", 1.0), sample("y", "1", 1.0)]
    result = compare_runs(a, b, "exact", arms=[("x", "y")])
    assert [(arm.a, arm.b) for arm in result.arms] == [("x", "y")]
    assert (result.unmatched_a, result.unmatched_b) == (["y"], ["x"])


def test_p_values_are_adjusted_for_all_pairs() -> None:
    a = [sample(arm, str(item), 0.0) for arm in "xyz" for item in range(10)]
    b = [
        sample(arm, str(item), float(item < wins))
        for arm, wins in zip("xyz", (3, 6, 9), strict=True)
        for item in range(10)
    ]
    figures = [arm.figures for arm in compare_runs(a, b, "exact").arms]
    assert all(each is not None for each in figures)
    known = [each for each in figures if each is not None]
    assert [each.p_adjusted for each in known] == holm([each.p_value for each in known])


def test_runs_without_a_common_item_have_nothing_to_compare() -> None:
    arm = only_arm(run("m", {"1": (1,)}), run("m", {"2": (1,)}))
    assert (arm.figures, arm.a_score, arm.b_score) == (None, None, None)
    assert (arm.only_a, arm.only_b) == (["1"], ["2"])


def test_a_run_that_never_answered_can_be_compared() -> None:
    arm = only_arm(run("m", {"1": (1,)}), [failed("m", "1")])
    assert arm.figures is None
    assert moves(arm.lost) == [("1", 1, None)]


@pytest.mark.parametrize(
    ("scorer", "arms", "message"),
    [
        ("f1", None, "scorer: run a has no scores by 'f1', it has exact"),
        ("exact", [("x", "nope")], "arms: run b has no arm 'nope', it has v, w"),
        ("exact", [("nope", "v")], "arms: run a has no arm 'nope', it has x, y"),
        ("exact", None, "the runs have no model in common: one has x, y, the other v, w"),
    ],
)
def test_what_a_run_does_not_know_is_refused(
    scorer: str, arms: list[tuple[str, str]] | None, message: str
) -> None:
    a, b = [sample("x", "1"), sample("y", "1")], [sample("v", "1"), sample("w", "1")]
    with pytest.raises(TailraceError) as caught:
        compare_runs(a, b, scorer, arms)
    assert str(caught.value) == message


def test_a_comparison_survives_json() -> None:
    a = [sample("m", "1", scores={"exact": Score(1.0, answer="4", explanation="équation")})]
    result = compare_runs(a, [sample("m", "1", 0.0)], "exact")
    assert msgspec.json.decode(msgspec.json.encode(result), type=RunComparison) == result
