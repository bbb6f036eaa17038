"""Numbers as people read them, the same on the terminal and in reports. ``?`` is what nobody knows."""

from __future__ import annotations

from datetime import UTC, datetime

from tailrace.amounts import NANO
from tailrace.evaluation.figures import ArmFigures, Estimate, Figures, JudgeFigures

UNKNOWN = "?"
NONE = "–"
#: Below it a comparison is marked: the chance of one false mark among all of a scorer, as adjusted by Holm.
SIGNIFICANT = 0.05


def count(number: int, thing: str) -> str:
    """``1 item``, ``1,200 items``."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def percent(value: float) -> str:
    """A score from 0 to 1: ``71.7%``; the ends are for what is there exactly."""
    shown = f"{100 * value:.1f}"
    if shown == "100.0" and value < 1:
        shown = "99.9"
    elif shown == "0.0" and value > 0:
        shown = "0.1"
    return ("100" if value == 1 else "0" if value == 0 else shown) + "%"


def score(estimate: Estimate | None) -> str:
    return NONE if estimate is None else percent(estimate.mean)


def interval(estimate: Estimate | None) -> str:
    """``67.2–75.9``, in percent; nothing where there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"


def points(value: float) -> str:
    """A difference between scores, in percentage points: ``+5.2``."""
    return f"{100 * value:+.1f}".replace("-", "−")


def points_interval(estimate: Estimate) -> str:
    """``+1.1 to +9.3``; nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{points(estimate.low)} to {points(estimate.high)}"


def chance(p: float | None) -> str:
    """A p-value."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def dollars(amount: float) -> str:
    """``$1,234.50``, and under a dollar three digits that say something: ``$0.00312``."""
    if amount == 0:
        return "$0"
    if amount >= 0.995:
        return f"${amount:,.2f}"
    places = 2
    while places < 12 and amount < 10 ** (2 - places) * 0.9995:
        places += 1
    whole, _, decimals = f"{amount:.{places}f}".partition(".")
    return f"${whole}.{decimals[:2]}{decimals[2:].rstrip('0')}"


def cost(nano: int, unpriced: int, of: int) -> str:
    """What is known, ``≥`` where that isn't all, and ``?`` where it is nothing. ``unpriced`` of ``of`` answers have no
    known cost."""
    if unpriced and (unpriced >= of or not nano):
        return UNKNOWN
    return ("≥ " if unpriced else "") + dollars(nano / NANO)


def answered(arm: ArmFigures) -> int:
    """Samples with an answer: those that have a cost."""
    return arm.samples - arm.outcomes.get("error", 0) - arm.outcomes.get("missing", 0)


def paid(arm: ArmFigures) -> str:
    """What this run paid for the arm."""
    return cost(arm.cost_nano, arm.unpriced, answered(arm))


def answer_cost(arm: ArmFigures) -> str:
    """What the arm's answers cost, whoever paid."""
    return cost(arm.answer_cost_nano, arm.unpriced, answered(arm))


def judge_cost(judge: JudgeFigures) -> str:
    return cost(judge.cost_nano, judge.unpriced, judge.graded + judge.failed)


def total(figures: Figures) -> str:
    """What all of it cost this run, judges and tries that left no sample too."""
    nano = sum(arm.cost_nano for arm in figures.arms) + sum(judge.cost_nano for judge in figures.judges)
    nano = max(nano, figures.spent_nano or 0)
    unpriced = sum(arm.unpriced for arm in figures.arms) + sum(judge.unpriced for judge in figures.judges)
    answers = sum(map(answered, figures.arms)) + sum(j.graded + j.failed for j in figures.judges)
    return cost(nano, unpriced, answers)


def dollars_per_sample(arm: ArmFigures) -> float | None:
    """What an answer costs, whoever paid; None where not all of that is known."""
    count = answered(arm)
    return None if arm.unpriced or not count else arm.answer_cost_nano / NANO / count


def duration(ms: float | None) -> str:
    """``840 ms``, ``1.24 s``, ``12.3 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if ms is None:
        return NONE
    if ms < 999.5:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def rate(per_second: float | None) -> str:
    if per_second is None:
        return NONE
    return f"{per_second:,.0f}" if per_second >= 9.95 else f"{per_second:.1f}"


def when(created: float) -> str:
    """UTC, to the minute."""
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d %H:%M UTC")


def labels(figures: Figures) -> dict[str, str]:
    """What each arm is called, by its key: the name that its model has in the suite, with the prompt where there are
    several; all are different."""
    several = len({arm.prompt for arm in figures.arms}) > 1
    names = {
        arm.key: f"{arm.key.removesuffix(f'/{arm.prompt}')} · {arm.prompt}" if several else arm.key
        for arm in figures.arms
    }
    twice = len(set(names.values())) < len(names)
    return {key: key for key in names} if twice else names
