"""Means of scores and pass@k, each with a 95% interval. Scores are from 0 to 1, and so are all limits.

The unit is the item: items are drawn from all that could be asked, samples of one item hang together, so what an
interval says of new items comes from the spread between items (Miller 2024, "Adding Error Bars to Evals",
arXiv:2411.00640). Every item weighs the same, however many of its samples have a score: so the mean, pass@1 and the
difference of two arms on the same items agree with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from tailrace.evaluation.figures import Estimate
from tailrace.evaluation.numerics import stats

LEVEL = 0.95
#: The normal quantile of LEVEL, 1.96.
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
#: What two scores may differ by and still be equal: sums of decimal fractions are off by less.
EPSILON = 1e-12

# What `Estimate.method` says.
WILSON = "Wilson"
WILSON_ITEMS = "Wilson, n = items"
WILSON_CLUSTERED = "Wilson, effective n by item"
T_CLUSTERED = "t over items"


def mean(values: Sequence[Sequence[float]]) -> Estimate | None:
    """The mean of the items' means. Outer: items; inner: the scores of the item's samples. Items without a score are
    left out; None where nothing is left.

    - Scores of 0 and 1, one for each item: Wilson's interval.
    - Scores of 0 and 1, several for an item: Wilson's with an effective n, see ``proportion``.
    - Any other: Student's t over the items' means, cut off at 0 and 1. Its standard error is the cluster-robust one
      (CR1) of a mean that weighs items alike; with as many samples for each item, that of the plain mean.
    - One item, or all the same: nothing is known of the spread between items. No variable between 0 and 1 varies more
      than a binary one of that mean, so Wilson's interval with n = items is wide enough.
    """
    items = [item for item in values if len(item) > 0]
    means = [math.fsum(item) / len(item) for item in items]
    samples = sum(map(len, items))
    if all(value in {0, 1} for item in items for value in item):
        return proportion(means, [len(item) for item in items], samples)
    centre = math.fsum(means) / len(means)
    if _alike(means):
        return _estimate(centre, wilson(centre, len(means)), means, samples, WILSON_ITEMS)
    half = t_quantile(len(means)) * standard_error(means)
    return _estimate(centre, (centre - half, centre + half), means, samples, T_CLUSTERED)


def pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> Estimate | None:
    """The chance that at least one of k samples is right; ``counts`` is (samples, right) for each item.

    For an item 1 - C(n-c, k) / C(n, k), the unbiased estimate of Chen et al. 2021, "Evaluating Large Language Models
    Trained on Code", arXiv:2107.03374, equation 1. Items with fewer than k samples are left out; None where nothing is
    left. Of an item's n samples n / k tries are made, so its interval is that of a proportion with as many.
    """
    enough = [(samples, right) for samples, right in counts if samples >= k]
    chances = [
        (math.comb(samples, k) - math.comb(samples - right, k)) / math.comb(samples, k)
        for samples, right in enough
    ]
    return proportion(chances, [samples / k for samples, _ in enough], sum(samples for samples, _ in enough))


def proportion(shares: Sequence[float], tries: Sequence[float], samples: int) -> Estimate | None:
    """A proportion from each item's share of tries that went well, and how many tries that were.

    Wilson's interval with an effective n = p (1-p) / v, where v is the cluster-robust variance: the n at which
    independent tries would vary as much. It is at most Kish's for these numbers of tries (1965, *Survey Sampling*), so
    that chance never makes clusters look better than independent tries, and times (z / t)² for the degrees of freedom,
    items - 1 (Korn and Graubard 1998, *Survey Methodology* 24:193; with Wilson's interval in place of the exact one,
    as Franco et al. 2019, *Journal of Survey Statistics and Methodology* 7:334, recommend). Near 0 and 1 it holds where
    mean ± t · error degenerates. With one try for each item it is Wilson's own; where all items have the same share,
    nothing is known of v, and n is the number of items, as if an item's tries all went the same way.
    """
    n = len(shares)
    if n == 0:
        return None
    centre = math.fsum(shares) / n
    if all(each == 1 for each in tries):
        interval = stats().binomtest(round(math.fsum(shares)), n).proportion_ci(LEVEL, method="wilson")
        return _estimate(centre, (float(interval.low), float(interval.high)), shares, samples, WILSON)
    if _alike(shares):
        return _estimate(centre, wilson(centre, n), shares, samples, WILSON_ITEMS)
    kish = n**2 / math.fsum(1 / each for each in tries)
    effective = min(centre * (1 - centre) / standard_error(shares) ** 2, kish)
    interval = wilson(centre, effective * (Z / t_quantile(n)) ** 2)
    return _estimate(centre, interval, shares, samples, WILSON_CLUSTERED)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's score interval (1927, *Journal of the American Statistical Association* 22:209) for any n > 0; SciPy's
    takes whole numbers alone."""
    scale = 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / scale
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / scale
    return middle - half, middle + half


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of at least two independent values."""
    n = len(values)
    centre = math.fsum(values) / n
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1) / n)


def t_quantile(n: int) -> float:
    """Student's t that LEVEL of n values' mean lies within, in standard errors."""
    return float(stats().t.ppf((1 + LEVEL) / 2, n - 1))


def _alike(values: Sequence[float]) -> bool:
    return max(values) - min(values) < EPSILON


def _estimate(
    centre: float, interval: tuple[float, float], items: Sequence[float], samples: int, method: str
) -> Estimate:
    """The limits are cut off at 0 and 1, and rounding never puts the mean outside them."""
    low, high = max(0.0, min(interval[0], centre)), min(1.0, max(interval[1], centre))
    return Estimate(mean=centre, low=low, high=high, items=len(items), samples=samples, method=method)
