"""Comparisons on the same items: against SciPy, statsmodels 0.15.0 and published examples, and by simulation."""

from __future__ import annotations

import importlib
import itertools
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.evaluation.paired import (
    DRAWS,
    FLIPS_DRAWN,
    FLIPS_EXACT,
    MCNEMAR,
    Paired,
    bonett_price,
    compare,
    flip_signs,
    holm,
    mcnemar,
)

# What is known of their types differs between their versions, and so between Pythons.
np: Any = importlib.import_module("numpy")
scipy_stats: Any = importlib.import_module("scipy.stats")

Run = dict[str, list[float]]

binary_runs = st.dictionaries(st.sampled_from("abcdefghijkl"), st.sampled_from([[0.0], [1.0]]), min_size=1)
any_runs = st.dictionaries(
    st.sampled_from("abcdefghijkl"),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=3),
    min_size=1,
)
p_values = st.lists(st.none() | st.floats(0, 1), max_size=12)


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[Run, Run]:
    """Two runs whose items are right in both, in one of them, or in neither so many times."""
    pairs = [(1.0, 1.0)] * both + [(1.0, 0.0)] * only_a + [(0.0, 1.0)] * only_b + [(0.0, 0.0)] * neither
    return (
        {str(item): [a] for item, (a, _) in enumerate(pairs)},
        {str(item): [b] for item, (_, b) in enumerate(pairs)},
    )


def compared(a: Run, b: Run) -> Paired:
    paired = compare(a, b)
    assert paired is not None
    return paired


def limits(paired: Paired) -> tuple[float, float]:
    assert paired.difference.low is not None
    assert paired.difference.high is not None
    return paired.difference.low, paired.difference.high


def test_the_difference_of_proportions_has_bonett_and_prices_interval() -> None:
    """The example of ``ci.prop.ps(.05, 12, 4, 26, 6)`` in the R package statpsych, by the first of the two authors."""
    paired = compared(*table(both=6, only_a=4, only_b=26, neither=12))
    assert limits(paired) == pytest.approx((0.2548067, 0.6251933), abs=5e-8)
    assert paired.difference.mean == pytest.approx(22 / 48)
    assert (paired.wins, paired.losses, paired.ties) == (26, 4, 18)
    assert (paired.difference.items, paired.difference.samples) == (48, 96)


# Armitage and Berry 1994, Statistical Methods in Medical Research, p. 127: 50 specimens on two media, P = 0.0129. The
# others are statsmodels' mcnemar(table, exact=True).pvalue, of tables in Agresti 1990, p. 350, Bentur 2009, Cavo 2012.
@pytest.mark.parametrize(
    ("cells", "p_value"),
    [
        ((20, 12, 2, 16), 0.012939453125),
        ((794, 86, 150, 570), 3.7159361395713866e-05),
        ((1, 1, 7, 12), 0.0703125),
        ((59, 6, 16, 80), 0.052478790283203125),
        ((10, 0, 0, 5), 1.0),
    ],
)
def test_mcnemars_exact_test(cells: tuple[int, int, int, int], p_value: float) -> None:
    paired = compared(*table(*cells))
    assert paired.p_value == pytest.approx(p_value)
    assert paired.test == MCNEMAR


def test_flipped_signs_as_fisher_counts_them() -> None:
    """The Design of Experiments, section 21: of 32,768 ways to sign the differences of Darwin's 15 pairs of maize, 863
    come to as much as 314 eighths of an inch, and as many to as little as -314."""
    eighths = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert flip_signs([each / 100 for each in eighths]) == (pytest.approx(2 * 863 / 32_768), FLIPS_EXACT)


def test_flipped_signs_as_scipy_permutes_them() -> None:
    rng = np.random.default_rng(5)
    a, b = np.round(rng.random(9), 3), np.round(rng.random(9), 3)
    expected = scipy_stats.permutation_test(
        (b, a), lambda x, y: float(np.mean(x - y)), permutation_type="samples", n_resamples=np.inf
    )
    assert flip_signs((b - a).tolist())[0] == pytest.approx(expected.pvalue)


@given(st.integers(0, 200), st.integers(0, 200))
def test_of_binary_differences_flipped_signs_are_mcnemars_test(wins: int, losses: int) -> None:
    p_value, test = flip_signs([1.0] * wins + [-1.0] * losses + [0.0] * 3)
    assert p_value == pytest.approx(mcnemar(wins, losses), abs=1e-9)
    assert test == FLIPS_EXACT


@given(st.lists(st.sampled_from([-1.0, -0.5, -1 / 3, 0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=9))
def test_counting_sizes_is_the_same_as_trying_every_sign(differences: list[float]) -> None:
    tried = [
        sum(sign * each for sign, each in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    extreme = sum(abs(each) >= abs(sum(differences)) - 1e-9 for each in tried)
    assert flip_signs(differences)[0] == pytest.approx(extreme / len(tried))


def test_what_is_drawn_is_near_what_all_flips_say() -> None:
    """21 sizes are too many outcomes; their exact p-value is found by brute force here."""
    rng = np.random.default_rng(11)
    differences = rng.normal(0.05, 0.3, size=21).clip(-1, 1)
    sums = np.zeros(1)
    for size in np.abs(differences):
        sums = np.concatenate([sums - size, sums + size])
    exact = float((np.abs(sums) >= abs(differences.sum()) - 1e-9).mean())
    p_value, test = flip_signs(differences.tolist())
    assert test == FLIPS_DRAWN
    assert 0.01 < exact < 0.5
    assert p_value == pytest.approx(exact, abs=4 * (exact / DRAWS) ** 0.5)


def test_a_difference_over_several_samples_has_the_t_interval() -> None:
    """statsmodels: OLS(differences, ones).fit().conf_int()."""
    differences = [0.5, -0.25, 0, 0.75, 0.25, 0.25, -0.5, 1, 0, 0.5]
    a = {str(item): [0.0, 0.5, 0.25, 0.25] for item in range(10)}
    b = {str(item): [0.25 + each] for item, each in enumerate(differences)}
    paired = compared(a, b)
    assert paired.difference.mean == pytest.approx(0.25)
    assert limits(paired) == pytest.approx((-0.07651426172269582, 0.5765142617226958))
    assert (paired.wins, paired.losses, paired.ties) == (6, 2, 2)


@pytest.mark.parametrize("change", [0.0, 0.5])
def test_items_that_all_differ_alike_are_no_proof_without_an_interval(change: float) -> None:
    a = {str(item): [0.0, 0.5] for item in range(12)}
    b = {str(item): [change, 0.5 + change] for item in range(12)}
    paired = compared(a, b)
    assert limits(paired) == pytest.approx(bonett_price(12 * change, 0, 12))
    assert limits(paired)[0] < change < limits(paired)[1]
    assert paired.p_value == pytest.approx(1.0 if change == 0 else 2 / 2**12)


def test_one_item_is_no_evidence() -> None:
    paired = compared({"x": [0.2, 0.4]}, {"x": [0.9]})
    assert paired.p_value == 1.0
    assert limits(paired)[0] < 0 < limits(paired)[1]


def test_runs_without_a_shared_item_are_not_compared() -> None:
    assert compare({"x": [1.0]}, {"y": [1.0]}) is None
    assert compare({"x": [1.0]}, {"x": []}) is None
    assert compare({}, {}) is None


def test_only_items_with_scores_in_both_count() -> None:
    a: Run = {"x": [1.0], "y": [0.0], "z": [1.0], "only a": [1.0]}
    b: Run = {"x": [0.0], "y": [0.0], "z": [], "only b": [1.0]}
    assert compared(a, b) == compared({"x": [1.0], "y": [0.0]}, {"x": [0.0], "y": [0.0]})


@given(binary_runs | any_runs, binary_runs | any_runs)
def test_the_other_way_round_it_is_the_opposite(a: Run, b: Run) -> None:
    there, back = compare(a, b), compare(b, a)
    if there is None or back is None:
        assert there is back is None
        return
    assert back.difference.mean == -there.difference.mean
    assert limits(back) == pytest.approx((-limits(there)[1], -limits(there)[0]), abs=1e-12)
    assert (back.wins, back.losses, back.ties) == (there.losses, there.wins, there.ties)
    assert back.p_value == there.p_value
    assert -1 <= limits(there)[0] <= there.difference.mean <= limits(there)[1] <= 1
    assert 0 < there.p_value <= 1


@given(any_runs, any_runs, st.randoms(use_true_random=False))
def test_order_changes_nothing(a: Run, b: Run, shuffler: random.Random) -> None:
    items = list(a)
    shuffler.shuffle(items)
    shuffled = {item: shuffler.sample(a[item], len(a[item])) for item in items}
    assert compare(shuffled, b) == compare(a, b)


def test_order_changes_nothing_that_is_drawn() -> None:
    rng = np.random.default_rng(2)
    a = {str(item): [value] for item, value in enumerate(rng.random(200).tolist())}
    b = {str(item): [value] for item, value in enumerate(rng.random(200).tolist())}
    paired = compared(a, b)
    assert paired.test == FLIPS_DRAWN
    assert compared(dict(reversed(a.items())), b) == paired


def test_ten_thousand_items_take_less_than_a_second() -> None:
    rng = np.random.default_rng(3)
    a = {str(item): [value] for item, value in enumerate(rng.random(10_000).tolist())}
    b = {item: [min(1.0, value + 0.002)] for item, (value,) in a.items()}
    compare(a, {"0": [0.5]})  # loads SciPy
    started = time.process_time()
    assert compared(a, b).p_value == 1 / (DRAWS + 1)
    assert time.process_time() - started < 1


def test_without_a_difference_5_of_100_comparisons_are_false_alarms_and_95_intervals_hold() -> None:
    rng = np.random.default_rng(17)
    runs, items, samples = 400, 60, 3
    alarms = covered = 0
    for _ in range(runs):
        chances = rng.beta(1, 1, size=(items, 1))
        answers = (rng.random((2, items, samples)) < chances).astype(float).tolist()
        a, b = ({str(item): values for item, values in enumerate(each)} for each in answers)
        paired = compared(a, b)
        alarms += paired.p_value < 0.05
        covered += limits(paired)[0] <= 0 <= limits(paired)[1]
    assert 0.02 <= alarms / runs <= 0.08
    assert 0.92 <= covered / runs <= 0.98


@pytest.mark.parametrize(("only_a", "only_b"), [(0.1, 0.2), (0.02, 0.05), (0.3, 0.3)])
def test_95_of_100_intervals_of_a_difference_of_proportions_contain_it(only_a: float, only_b: float) -> None:
    rng = np.random.default_rng(int(only_a * 100))
    tables = rng.multinomial(80, [only_a, only_b, 1 - only_a - only_b], size=3000).tolist()
    covered = 0
    for losses, wins, _ in tables:
        low, high = bonett_price(wins, losses, 80)
        covered += low <= only_b - only_a <= high
    assert 0.93 <= covered / 3000 <= 0.98


# statsmodels: multipletests(p, method="holm")[1]. The second is the example of Bretz, Hothorn and Westfall 2010,
# Multiple Comparisons Using R, chapter 2.
@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.015, 0.005], [0.02, 0.02, 0.015]),
        ([0.042, 0.001, 0.031, 0.014, 0.007], [0.062, 0.005, 0.062, 0.042, 0.028]),
        ([0.3, 0.6, 0.9, 0.04], [0.9, 1.0, 1.0, 0.16]),
        ([], []),
        ([0.2], [0.2]),
    ],
)
def test_holm(p: list[float | None], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted)


@given(p_values)
def test_holm_keeps_the_order_and_makes_nothing_smaller(p: list[float | None]) -> None:
    adjusted = holm(p)
    assert [each is None for each in adjusted] == [each is None for each in p]
    known = [
        (before, after)
        for before, after in zip(p, adjusted, strict=True)
        if before is not None and after is not None
    ]
    assert all(before <= after <= 1 for before, after in known)
    assert all(x[1] <= y[1] for x, y in itertools.pairwise(sorted(known)))


@given(p_values)
def test_holm_passes_over_what_is_unknown(p: list[float | None]) -> None:
    known = [each for each in p if each is not None]
    assert [each for each in holm(p) if each is not None] == holm(known)
