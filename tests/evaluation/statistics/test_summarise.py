"""What counts where: every sample once, and nothing that isn't known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.evaluation.figures import ArmFigures, JudgeFigures, Spread
from tailrace.evaluation.paired import holm
from tailrace.evaluation.shapes import Outcome, Record, Sample, Score, Verdict
from tailrace.evaluation.summarise import summarise
from tests.evaluation.statistics.runs import failed, missing, sample


def only_arm(samples: list[Sample], scorers: tuple[str, ...] = ("exact",)) -> ArmFigures:
    (arm,) = summarise(samples, scorers).arms
    return arm


def test_refused_and_truncated_answers_score_what_they_score_and_are_counted_apart() -> None:
    arm = only_arm(
        [
            sample("m", "1", 1.0),
            sample("m", "2", 0.0),
            sample("m", "3", 0.5),
            sample("m", "4", 0.0, outcome=Outcome.REFUSED),
            sample("m", "5", 1.0, outcome=Outcome.REFUSED),
            sample("m", "6", 0.0, outcome=Outcome.TRUNCATED),
            sample("m", "7", None),
            failed("m", "8"),
            missing("m", "9"),
        ]
    )
    exact = arm.scorers["exact"]
    assert exact.score is not None
    assert exact.score.mean == pytest.approx(2.5 / 6)
    assert (exact.score.items, exact.score.samples) == (6, 6)
    assert exact.verdicts == {
        "right": 2,
        "partly": 1,
        "wrong": 1,
        "truncated": 1,
        "refused": 1,
        "error": 1,
        "unscored": 1,
        "missing": 1,
    }
    assert arm.outcomes == {"answered": 4, "truncated": 1, "refused": 2, "error": 1, "missing": 1}


outcomes = st.sampled_from(Outcome)
any_samples = st.lists(
    st.builds(
        lambda arm, item, number, outcome, value, scorer: sample(
            arm, item, sample=number, outcome=outcome, scores={scorer: Score(value)}
        ),
        st.sampled_from("ab"),
        st.sampled_from("123456"),
        st.integers(0, 3),
        outcomes,
        st.none() | st.sampled_from([0.0, 0.5, 1.0]),
        st.sampled_from(["exact", "judge"]),
    ),
    max_size=40,
)


@given(any_samples)
def test_each_sample_has_one_verdict_for_each_scorer(samples: list[Sample]) -> None:
    figures = summarise(iter(samples), ("exact", "judge"))
    assert figures.samples == len(samples)
    assert figures.items == len({each.item for each in samples})
    assert {arm.key: arm.samples for arm in figures.arms} == Counter(each.arm for each in samples)
    for arm in figures.arms:
        assert sum(arm.outcomes.values()) == arm.samples
        for scorer in arm.scorers.values():
            assert list(scorer.verdicts) == [verdict.value for verdict in Verdict]
            assert sum(scorer.verdicts.values()) == arm.samples
            uncounted = sum(scorer.verdicts[name] for name in ("error", "unscored", "missing"))
            assert (scorer.score.samples if scorer.score else 0) == arm.samples - uncounted


def test_a_score_that_an_error_carries_does_not_count() -> None:
    arm = only_arm([failed("m", "1", scores={"exact": Score(1.0)}), sample("m", "2", 0.0)])
    score = arm.scorers["exact"].score
    assert score is not None
    assert (score.mean, score.samples) == (0.0, 1)


def test_pass_at_every_k_that_items_have_samples_for() -> None:
    samples = [
        sample("m", item, float(number < right), sample=number)
        for item, right in (("1", 1), ("2", 0), ("3", 6))
        for number in range(6)
    ]
    passing = only_arm(samples).scorers["exact"].pass_at
    assert {k: each.mean for k, each in passing.items()} == {
        1: pytest.approx((1 / 6 + 1) / 3),
        2: pytest.approx((2 / 6 + 1) / 3),
        5: pytest.approx((5 / 6 + 1) / 3),
        6: pytest.approx(2 / 3),
    }
    assert passing[1] == only_arm(samples).scorers["exact"].score


def test_partly_right_does_not_pass() -> None:
    samples = [sample("m", "1", value, sample=number) for number, value in enumerate((0.9, 0.5))]
    passing = only_arm(samples).scorers["exact"].pass_at
    assert [each.mean for each in passing.values()] == [0.0, 0.0]


def test_one_sample_each_has_no_pass_at() -> None:
    assert only_arm([sample("m", "1"), sample("m", "2")]).scorers["exact"].pass_at == {}


def test_samples_without_an_answer_are_no_tries_to_pass() -> None:
    samples = [
        sample("m", "1", 0.0),
        sample("m", "1", 0.0, sample=1),
        sample("m", "2", 1.0),
        failed("m", "2"),
    ]
    passing = only_arm(samples).scorers["exact"].pass_at
    assert (passing[1].items, passing[1].mean) == (2, 0.5)
    assert (passing[2].items, passing[2].mean) == (1, 0.0)


def test_categories_stand_apart_and_items_without_one_in_none() -> None:
    categories = (
        only_arm(
            [
                sample("m", "1", 1.0, category="sums"),
                sample("m", "2", 0.0, category="sums"),
                sample("m", "3", 1.0, category="facts"),
                sample("m", "4", 0.0),
                failed("m", "5", category="never answered"),
            ]
        )
        .scorers["exact"]
        .categories
    )
    assert {name: (each.mean, each.items) for name, each in categories.items()} == {
        "facts": (1.0, 1),
        "sums": (0.5, 2),
    }


def test_arms_are_compared_on_the_items_that_both_have_scores_for() -> None:
    figures = summarise(
        [
            *(sample("old", str(item), 0.0) for item in range(9)),
            *(sample("new", str(item), 1.0) for item in range(8)),
            failed("new", "8"),
        ],
        ["exact"],
    )
    (pair,) = figures.pairs
    assert (pair.a, pair.b, pair.scorer) == ("old", "new", "exact")
    assert (pair.wins, pair.losses, pair.ties, pair.difference.items) == (8, 0, 0, 8)
    assert pair.difference.mean == 1.0
    assert pair.p_value == pytest.approx(2 / 2**8)
    assert pair.p_adjusted == pair.p_value


def test_p_values_are_adjusted_over_all_pairs_of_one_scorer() -> None:
    samples = [
        sample(f"m{arm}", str(item), 1.0, scores={name: Score(float(item % 12 < arm)) for name in ("x", "y")})
        for arm in range(12)
        for item in range(24)
    ]
    figures = summarise(samples, ["x", "y"])
    for scorer in ("x", "y"):
        pairs = [pair for pair in figures.pairs if pair.scorer == scorer]
        assert len(pairs) == 12 * 11 // 2
        assert [pair.p_adjusted for pair in pairs] == holm([pair.p_value for pair in pairs])


def test_arms_come_in_the_order_asked_for_and_only_those() -> None:
    samples = [sample(arm, "1") for arm in "abc"]
    figures = summarise(samples, ["exact"], arms=["c", "a", "never ran"])
    assert [arm.key for arm in figures.arms] == ["c", "a"]
    assert [(pair.a, pair.b) for pair in figures.pairs] == [("c", "a")]
    assert figures.samples == 2


def timed(cache: str, duration: int | None, first: int | None, tokens: int, **more: Any) -> Record:
    return Record(cache=cache, duration_ms=duration, first_chunk_ms=first, completion_tokens=tokens, **more)


def test_times_are_those_of_answers_that_a_provider_gave_for_this_run() -> None:
    records: list[tuple[Callable[..., Sample], Record]] = [
        (sample, timed("miss", 1000, 200, 80)),  # 100 tokens per second
        (sample, timed("miss", 3000, 1000, 100)),  # 50
        (sample, timed("bypass", 2000, 1000, 20)),  # 20
        (sample, timed("hit", 1, 1, 500)),
        (sample, timed("join", 5, 1, 500)),
        (sample, timed("miss", None, None, 500)),
        (sample, timed("miss", 2000, 2000, 500)),  # all in one chunk: no rate
        (sample, timed("miss", 2000, 1999, 1)),  # one token: no rate
        (failed, timed("miss", 60_000, 10, 500)),
        (missing, Record()),
    ]
    arm = only_arm([make("m", str(item), record=record) for item, (make, record) in enumerate(records)])
    assert arm.duration == Spread(count=5, p50=2000.0, p90=2600.0, p99=2960.0)
    assert arm.first_chunk is not None
    assert (arm.first_chunk.count, arm.first_chunk.p50) == (5, 1000)
    assert arm.tokens_per_second == 50
    assert arm.cache == {"hit": 1, "join": 1, "miss": 5, "bypass": 1}


def test_without_times_there_is_no_spread() -> None:
    arm = only_arm([sample("m", "1"), missing("m", "2")])
    assert (arm.duration, arm.first_chunk, arm.tokens_per_second) == (None, None, None)


def test_costs_add_up_what_is_known_and_count_answers_that_have_no_price() -> None:
    arm = only_arm(
        [
            sample("m", "1", record=Record(cost_nano=5, answer_cost_nano=5, prompt_tokens=2)),
            sample(
                "m", "2", record=Record(cache="hit", cost_nano=0, answer_cost_nano=70, completion_tokens=3)
            ),
            sample("m", "3", record=Record(reasoning_tokens=4)),
            failed("m", "4", record=Record(cost_nano=11, prompt_tokens=9)),
            failed("m", "5", record=Record()),
            missing("m", "6"),
        ]
    )
    assert (arm.cost_nano, arm.answer_cost_nano, arm.unpriced) == (16, 75, 1)
    assert (arm.prompt_tokens, arm.completion_tokens, arm.reasoning_tokens) == (11, 3, 4)


def test_errors_are_counted_by_code() -> None:
    arm = only_arm(
        [
            failed("m", "1", "rate_limited"),
            failed("m", "2", "timeout"),
            failed("m", "3", "timeout"),
            failed("m", "4", error=None),
        ]
    )
    assert arm.errors == {"timeout": 2, "rate_limited": 1, "unknown": 1}


def test_what_a_judge_took_stands_beside_the_arms() -> None:
    records = [
        Record(cost_nano=5, prompt_tokens=10, completion_tokens=1),
        Record(cost_nano=None, prompt_tokens=10, completion_tokens=2),
    ]
    figures = summarise(
        [sample("m", "1", scores={"judge": Score(0.5)}), sample("m", "2", scores={"judge": Score(None)})],
        ["judge"],
        judges={"judge": ("fake:judge", records, 1)},
        seconds=2.5,
    )
    assert figures.judges == [
        JudgeFigures(
            scorer="judge",
            model="fake:judge",
            graded=1,
            failed=1,
            prompt_tokens=20,
            completion_tokens=3,
            cost_nano=5,
            unpriced=1,
        )
    ]
    assert figures.seconds == 2.5
    assert figures.arms[0].cost_nano == 20


def test_a_run_without_samples_has_no_figures() -> None:
    figures = summarise([], ["exact"])
    assert (figures.arms, figures.pairs, figures.items, figures.samples) == ([], [], 0, 0)


def test_an_arm_without_scores_has_none_but_is_counted() -> None:
    exact = only_arm([failed("m", "1"), missing("m", "2")]).scorers["exact"]
    assert (exact.score, exact.pass_at, exact.categories) == (None, {}, {})
    assert (exact.verdicts["error"], exact.verdicts["missing"]) == (1, 1)
