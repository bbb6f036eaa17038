"""Two arms, or two runs, on the same items: how much better is one, and could that be chance?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tailrace.evaluation.estimates import EPSILON, Z, standard_error, t_quantile
from tailrace.evaluation.figures import Estimate
from tailrace.evaluation.numerics import numpy, stats

#: Outcomes of sign flips that are all looked at; beyond, DRAWS of them.
ENUMERABLE = 2**20
DRAWS = 9_999
#: Two looks at one run must not differ by the draw.
SEED = 20_260_101
#: Octets of signs that are drawn at once; what they add up to takes 16 MiB.
OCTETS_AT_ONCE = 2 * 1024 * 1024

# What `Estimate.method` and `Paired.test` say.
BONETT_PRICE = "Bonett-Price"
T_PAIRED = "t over items' differences"
MCNEMAR = "McNemar, exact"
FLIPS_EXACT = "sign flips, exact"
FLIPS_DRAWN = f"sign flips, {DRAWS} draws"


class Paired(msgspec.Struct, frozen=True):
    """``difference``: the mean over shared items of b's mean minus a's; its ``samples`` are those of both. ``wins``:
    items on which b is better. ``test`` names how ``p_value`` was made: two-sided, that neither is better."""

    difference: Estimate
    p_value: float
    test: str
    wins: int
    losses: int
    ties: int


def compare(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> Paired | None:
    """``b`` against ``a`` on the items that both have scores for (item → scores from 0 to 1); None if there are none.

    - Scores of 0 and 1, one for each item: Bonett and Price's interval, McNemar's exact test.
    - Any other: Student's t over the items' differences, and the permutation test that flips their signs. Where all
      items differ alike (or there is one), t has nothing to go by, and Bonett and Price's interval stands in.
    """
    shared = [item for item, scores in a.items() if len(scores) > 0 and len(b.get(item, ())) > 0]
    if not shared:
        return None
    differences = [_mean(b[item]) - _mean(a[item]) for item in shared]
    samples = sum(len(a[item]) + len(b[item]) for item in shared)
    wins = sum(difference > EPSILON for difference in differences)
    losses = sum(difference < -EPSILON for difference in differences)
    once = samples == 2 * len(shared)
    binary = once and all(run[item][0] in {0, 1} for item in shared for run in (a, b))
    if binary:
        p_value, test = mcnemar(wins, losses), MCNEMAR
    else:
        p_value, test = flip_signs(differences)
    return Paired(
        difference=_difference(differences, samples, binary=binary),
        p_value=p_value,
        test=test,
        wins=wins,
        losses=losses,
        ties=len(shared) - wins - losses,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _difference(differences: Sequence[float], samples: int, *, binary: bool) -> Estimate:
    n = len(differences)
    centre = math.fsum(differences) / n
    if binary or max(differences) - min(differences) < EPSILON:
        ups = math.fsum(max(difference, 0) for difference in differences)
        downs = math.fsum(max(-difference, 0) for difference in differences)
        low, high = bonett_price(ups, downs, n)
        method = BONETT_PRICE
    else:
        half = t_quantile(n) * standard_error(differences)
        low, high = centre - half, centre + half
        method = T_PAIRED
    low, high = max(-1.0, min(low, centre)), min(1.0, max(high, centre))
    return Estimate(mean=centre, low=low, high=high, items=n, samples=samples, method=method)


def bonett_price(ups: float, downs: float, n: int) -> tuple[float, float]:
    """The interval of a difference of two proportions on the same n items, ``ups`` and ``downs`` of which differ.

    Bonett and Price 2012, *Journal of Educational and Behavioral Statistics* 37:479: Wald's, after one more of each.
    Of differences that are not whole, the sums may be given: none of them varies more than a whole one in its place.
    """
    up, down = (ups + 1) / (n + 2), (downs + 1) / (n + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return up - down - Z * error, up - down + Z * error


def mcnemar(wins: int, losses: int) -> float:
    """McNemar's exact test: of the items that differ, half should go each way (1947, *Psychometrika* 12:153)."""
    if wins + losses == 0:
        return 1.0
    return float(stats().binomtest(wins, wins + losses, 0.5).pvalue)


def flip_signs(differences: Sequence[float]) -> tuple[float, str]:
    """The p-value of a sum of differences under all flips of their signs, and how it was made.

    Fisher 1935, *The Design of Experiments*, section 21. Differences of one size can only be told apart by how many of
    them are positive, so a thousand items of two samples often still have few enough outcomes for all of them to be
    looked at. Otherwise flips are drawn, and the observed one counts as a draw (Phipson and Smyth 2010, *Statistical
    Applications in Genetics and Molecular Biology* 9:39). ``scipy.stats.permutation_test`` sorts 10,000 items for each
    draw, which takes a hundred times as long.
    """
    np = numpy()
    # Sorted, so that neither the order of items nor the direction of the comparison changes what is drawn.
    sizes: Any = np.sort(np.abs(np.asarray(differences, dtype=float)))
    sizes = sizes[sizes > EPSILON]
    # Rounded, so that sums of the same sizes are equal whatever order they are added in.
    observed = abs(math.fsum(differences)) - EPSILON * max(1, len(differences))
    distinct, counts = np.unique(np.round(sizes, 12), return_counts=True)
    if math.prod(count + 1 for count in counts.tolist()) <= ENUMERABLE:
        return _all_flips(distinct, counts, observed), FLIPS_EXACT
    # Eight signs are the bits of an octet: what each of 256 octets adds to the sum is computed once for each place.
    places = np.pad(sizes, (0, -len(sizes) % 8)).reshape(-1, 8)
    signs = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) - 1
    added = places @ signs.T
    rng = np.random.default_rng(SEED)
    extreme = 0
    at_once = max(1, OCTETS_AT_ONCE // len(places))
    for start in range(0, DRAWS, at_once):
        octets = rng.integers(0, 256, size=(min(at_once, DRAWS - start), len(places)), dtype=np.uint8)
        sums = added[np.arange(len(places)), octets].sum(axis=1)
        extreme += int((np.abs(sums) >= observed).sum())
    return (extreme + 1) / (DRAWS + 1), FLIPS_DRAWN


def _all_flips(sizes: Any, counts: Any, observed: float) -> float:
    np = numpy()
    positive = [np.arange(count + 1) for count in counts.tolist()]
    sums, chances = np.zeros(1), np.ones(1)
    if positive:
        each = stats().binom.pmf(np.concatenate(positive), np.repeat(counts, counts + 1), 0.5)
        for size, up, chance in zip(sizes, positive, np.split(each, np.cumsum(counts + 1)[:-1]), strict=True):
            sums = np.add.outer(sums, size * (2 * up - up[-1])).ravel()
            chances = np.multiply.outer(chances, chance).ravel()
    return min(1.0, float(chances[np.abs(sums) >= observed].sum()))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for being looked at together: the chance that even one of them is a false alarm.

    Holm 1979, *Scandinavian Journal of Statistics* 6:65, in the step-down form. None stays None, and doesn't count.
    """
    known = sorted((value, place) for place, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[place] = largest
    return adjusted
