"""Means and pass@k with their intervals: against SciPy, statsmodels 0.15.0 and published figures, and by simulation."""

from __future__ import annotations

import importlib
import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.evaluation.estimates import Z, mean, pass_at_k, wilson
from tailrace.evaluation.figures import Estimate

# What is known of their types differs between their versions, and so between Pythons.
np: Any = importlib.import_module("numpy")
scipy_stats: Any = importlib.import_module("scipy.stats")

binary_items = st.lists(
    st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=6), min_size=1, max_size=40
)
any_items = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=1, max_size=40)
counts = st.lists(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=30
)


def limits(estimate: Estimate | None) -> tuple[float, float]:
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def width(estimate: Estimate | None) -> float:
    low, high = limits(estimate)
    return high - low


# Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
@pytest.mark.parametrize(
    ("right", "items", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_newcombe_prints_it(right: int, items: int, low: float, high: float) -> None:
    estimate = mean([[1.0]] * right + [[0.0]] * (items - right))
    assert limits(estimate) == pytest.approx((low, high), abs=5e-5)
    assert estimate is not None
    assert (estimate.items, estimate.samples, estimate.method) == (items, items, "Wilson")


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_for_any_n_is_scipys_for_whole_ones(case: tuple[int, int]) -> None:
    right, n = case
    expected = scipy_stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_mean_of_as_many_samples_for_each_item_is_statsmodels_clustered() -> None:
    """OLS(y, ones).fit(cov_type="cluster", cov_kwds={"groups": item}, use_t=True)."""
    estimate = mean([[0.2, 0.4, 0.9], [1, 0.5, 0.75], [0, 0.1, 0.3], [0.6, 0.6, 1], [0.8, 0.35, 0.55]])
    assert estimate is not None
    assert estimate.mean == pytest.approx(0.5366666666666666)
    assert limits(estimate) == pytest.approx((0.22680300918952218, 0.8465303241438111))
    assert (estimate.items, estimate.samples) == (5, 15)


def test_a_mean_of_unequally_many_samples_weighs_items_alike() -> None:
    """WLS(y, ones, weights=1 / samples of the item).fit(cov_type="cluster", …, use_t=True)."""
    estimate = mean([[0.2, 0.4, 0.9], [1, 0.5], [0], [0.6, 0.6, 1, 0.7], [0.8, 0.35, 0.55]])
    assert estimate is not None
    assert estimate.mean == pytest.approx(0.5083333333333332)
    assert limits(estimate) == pytest.approx((0.13211619943992814, 0.8845504672267382))


# The standard errors are those of the fits above, on these.
@pytest.mark.parametrize(
    ("items", "error"),
    [
        (
            [[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 0, 1]],
            0.12198750911856672,
        ),
        (
            [[1, 1, 0], [0, 0], [1], [1, 0, 0, 1], [0, 1], [1, 1, 1], [0, 0, 1], [1, 0, 1]],
            0.11785113019775789,
        ),
    ],
)
def test_a_clustered_proportion_is_wilsons_at_the_n_that_varies_as_much(
    items: list[list[float]], error: float
) -> None:
    estimate = mean(items)
    assert estimate is not None
    share = 0.5833333333333334
    assert estimate.mean == pytest.approx(share)
    effective = share * (1 - share) / error**2
    assert effective < len(items) * 2.5
    adjusted = effective * (Z / scipy_stats.t.ppf(0.975, len(items) - 1)) ** 2
    assert limits(estimate) == pytest.approx(wilson(share, adjusted))


def test_with_many_items_a_clustered_proportion_has_the_t_interval() -> None:
    rng = np.random.default_rng(7)
    items = (rng.random((4000, 3)) < rng.beta(2, 2, size=(4000, 1))).astype(float)
    estimate = mean(items.tolist())
    means = items.mean(axis=1)
    expected = scipy_stats.t.interval(0.95, 3999, means.mean(), scipy_stats.sem(means))
    assert limits(estimate) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    "items", [[[1.0, 1.0]] * 20, [[0.0, 0.0, 0.0]] * 20, [[0.0, 1.0]] * 20, [[0.5]] * 20]
)
def test_items_that_are_all_alike_count_as_one_sample_each(items: list[list[float]]) -> None:
    """The standard error is 0, but the interval isn't."""
    share = sum(items[0]) / len(items[0])
    assert limits(mean(items)) == pytest.approx(wilson(share, 20))


@pytest.mark.parametrize("scores", [[1.0], [0.0], [1.0, 0.0, 1.0], [0.37], [0.2, 0.9]])
def test_one_item_says_next_to_nothing(scores: list[float]) -> None:
    assert width(mean([scores])) > 0.75


def test_no_scores_have_no_mean() -> None:
    assert mean([]) is None
    assert mean([[], []]) is None


def test_items_without_scores_are_left_out() -> None:
    assert mean([[1.0], [], [0.0], []]) == mean([[1.0], [0.0]])


@given(any_items | binary_items)
def test_the_interval_contains_the_mean_and_stays_between_0_and_1(items: list[list[float]]) -> None:
    estimate = mean(items)
    assert estimate is not None
    low, high = limits(estimate)
    assert 0 <= low <= estimate.mean <= high <= 1
    assert low < high
    assert estimate.samples == sum(map(len, items))


@given(any_items | binary_items, st.randoms(use_true_random=False))
def test_order_changes_nothing(items: list[list[float]], shuffler: random.Random) -> None:
    shuffled = [shuffler.sample(item, len(item)) for item in items]
    shuffler.shuffle(shuffled)
    assert mean(shuffled) == mean(items)


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=60), st.integers(2, 5))
def test_asking_again_and_getting_the_same_narrows_nothing(values: list[float], copies: int) -> None:
    once, again = mean([[value] for value in values]), mean([[value] * copies for value in values])
    assert width(again) >= width(once) - 1e-9


@given(binary_items)
def test_clusters_never_look_better_than_independent_samples(items: list[list[float]]) -> None:
    same = len(items[0])
    items = [(item * same)[:same] for item in items]
    estimate = mean(items)
    assert estimate is not None
    assert width(estimate) >= width(Estimate(0, *wilson(estimate.mean, estimate.samples), 0, 0, "")) - 1e-9


@pytest.mark.parametrize(
    ("items", "samples", "a", "b"),
    [
        (30, 2, 5, 5),
        (30, 5, 9, 1),
        (60, 3, 0.5, 0.5),
        (100, 2, 0.9, 0.1),
        (100, 5, 9, 1),
        (200, 4, 1.9, 0.1),
        (200, 2, 0.1, 1.9),
    ],
)
def test_95_of_100_intervals_of_clustered_answers_contain_the_truth(
    items: int, samples: int, a: float, b: float
) -> None:
    """Each item has a chance of its own, Beta(a, b): from nearly alike to nearly all or nothing, up to 95% right."""
    rng = np.random.default_rng(items * 1000 + samples)
    runs = 500
    chances = rng.beta(a, b, size=(runs, items, 1))
    answers = (rng.random((runs, items, samples)) < chances).astype(int)
    covered = 0
    for run in answers.tolist():
        low, high = limits(mean(run))
        covered += low <= a / (a + b) <= high
    assert 0.92 <= covered / runs <= 0.98


@pytest.mark.parametrize("k", [1, 2, 5])
def test_95_of_100_intervals_of_pass_at_k_contain_the_truth(k: int) -> None:
    rng = np.random.default_rng(k)
    runs, items, samples = 400, 80, 5
    chances = rng.beta(1, 2, size=(runs, items))
    right = rng.binomial(samples, chances)
    # E[1 - (1 - p)^k] under Beta(1, 2) is 1 - 2 / (k + 2).
    truth = 1 - 2 / (k + 2)
    covered = 0
    for run in right.tolist():
        low, high = limits(pass_at_k([(samples, each) for each in run], k))
        covered += low <= truth <= high
    assert 0.92 <= covered / runs <= 0.98


def human_eval(n: int, c: int, k: int) -> float:
    """The stable product that Chen et al. 2021 print as figure 3."""
    return 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@given(counts, st.integers(1, 12))
def test_pass_at_k_is_human_evals_mean_over_items_with_enough_samples(
    cases: list[tuple[int, int]], k: int
) -> None:
    expected = [human_eval(n, c, k) for n, c in cases if n >= k]
    estimate = pass_at_k(cases, k)
    if not expected:
        assert estimate is None
        return
    assert estimate is not None
    assert estimate.mean == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    assert estimate.items == len(expected)
    low, high = limits(estimate)
    assert 0 <= low <= estimate.mean <= high <= 1


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 2), (5, 2, 4), (6, 0, 3), (6, 6, 3), (7, 1, 7)])
def test_pass_at_k_of_an_item_is_the_share_of_choices_with_a_right_one(n: int, c: int, k: int) -> None:
    answers = [True] * c + [False] * (n - c)
    choices = [any(choice) for choice in itertools.combinations(answers, k)]
    estimate = pass_at_k([(n, c)], k)
    assert estimate is not None
    assert estimate.mean == pytest.approx(sum(choices) / math.comb(n, k))


@given(counts)
def test_pass_at_1_is_the_mean(cases: list[tuple[int, int]]) -> None:
    assert pass_at_k(cases, 1) == mean([[1.0] * right + [0.0] * (n - right) for n, right in cases])


def test_thousands_of_items_with_hundreds_of_samples() -> None:
    estimate = pass_at_k([(200, each % 201) for each in range(5000)], 100)
    assert estimate is not None
    assert estimate.mean > 0.9
    assert width(estimate) < 0.02
